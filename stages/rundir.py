"""Run directories: a fresh one is empty, a finished one is what ``latest`` points to."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ghostvis_plugins.errors import ConfigError

LATEST = "latest"
QUEUED = "queued"
"""Marks a run that was prepared for a job, until that starts."""
EXIT_CODE = "exit_code"
"""Prefix of the file in which the first process of a start that fails leaves its exit code.

Its whole name is ``exit_code.PLACE.START``: so no process takes away what another of its start has left already, and
none is silent because of what was left by an earlier start.
"""
_PRODUCTS = ("checkpoints", "model", "metrics.jsonl")


def claim(run_dir: Path, resume: bool) -> None:
    """Make the folder of a new run. Raises ConfigError when it holds another run's results."""
    run_dir.mkdir(parents=True, exist_ok=True)
    found = products(run_dir)
    if found and not resume:
        raise ConfigError(
            f"{run_dir} already holds a run ({', '.join(found)})",
            hint="continue it with --resume, or choose another --name",
        )


def products(run_dir: Path) -> list[str]:
    """What a run has left in its folder so far: nothing when it failed before its first step."""
    return [name for name in _PRODUCTS if (run_dir / name).exists()]


def exit_codes(run_dir: Path) -> list[Path]:
    """The files that failures left, the first one first."""
    times = {}
    for file in run_dir.glob(f"{EXIT_CODE}.*"):
        with contextlib.suppress(FileNotFoundError):  # another launcher took it away
            times[file] = file.stat().st_mtime_ns
    return sorted(times, key=times.__getitem__)


def resolved_of(run_dir: Path, values: dict[str, Any]) -> dict[str, Any]:
    """``resolved.json`` of the run (values, origins, plugins); the bare values when nobody wrote one."""
    path = run_dir / "resolved.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    return {"values": values}


def set_latest(run_dir: Path, model: Path) -> None:
    """Point ``latest`` beside ``run_dir`` to a finished model directory: relative, replaced in one step."""
    target = os.path.relpath(model, run_dir.parent)
    private = run_dir.parent / f".{LATEST}.{os.getpid()}"
    try:
        private.symlink_to(target, target_is_directory=True)
    except OSError:  # a system or user without symbolic links: the same path as text
        private.write_text(f"{target}\n", encoding="utf-8")
    private.replace(run_dir.parent / LATEST)


def read_latest(runs: Path) -> Path | None:
    """The model directory that ``latest`` points to, or None when there is none (any more)."""
    pointer = runs / LATEST
    if pointer.is_symlink():
        target = runs / os.readlink(pointer)
    elif pointer.is_file():
        target = runs / pointer.read_text(encoding="utf-8").strip()
    else:
        return None
    return target if target.is_dir() else None
