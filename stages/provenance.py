"""What a figure has to carry: the command, the hardware, the software and the commit it came from."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch


def provenance(argv: Sequence[str], device: torch.device, processes: int) -> dict[str, str]:
    """The four lines under every table of a report; no absolute path among them."""
    return {
        "command": f"`{' '.join([_program(argv[0]), *argv[1:]])}`" if argv else "unknown",
        "hardware": hardware(device, processes),
        "software": f"Python {platform.python_version()}, torch {torch.__version__}",
        "commit": commit(),
    }


def _program(path: str) -> str:
    """``python -m ghostvis_cli`` is ``ghostvis``, too."""
    name = Path(path).name
    return "ghostvis" if name == "__main__.py" else name


def hardware(device: torch.device, processes: int) -> str:
    """Model and number of what computed."""
    if device.type == "cuda":
        return f"{processes} × {torch.cuda.get_device_name(device)}"
    return f"{device.type}: {_cpu()}, {_cores()} cores, {processes} × {torch.get_num_threads()} threads"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    """The processor's name: Linux keeps it in a file, other systems tell :mod:`platform`."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The checkout's commit, marked when it had changes; an installed package has none."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return "unknown (installed package)"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown (git did not answer)"
    return found.stdout.strip() if found.returncode == 0 else "unknown (a checkout without commits)"


def table(rows: dict[str, object]) -> str:
    """Two columns of Markdown."""
    return "\n".join(["| | |", "|---|---|", *(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items())])


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
