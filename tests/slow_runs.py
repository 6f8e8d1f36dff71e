"""Real `ghostvis train` processes of a tiny run, to be signalled while they train."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from miniature import write_tokenizer

from components.trackers.jsonl import read_metrics
from stages.loop import MEASURED

HERE = Path(__file__).resolve().parent
STEPS = 24


def make_home(folder: Path) -> Path:
    """A folder with a tokenizer to start from."""
    write_tokenizer(folder / "tokenizer")
    return folder


PLUGIN = ["--plugin", str(HERE / "slow_plugin.py")]
GHOSTVIS = [sys.executable, "-m", "ghostvis_cli", *PLUGIN]


def arguments(name: str, seconds: float = 0.05) -> list[str]:
    """``train`` and its options."""
    sets = {
        "stage.steps": STEPS,
        "stage.batch_tokens": 200,
        "stage.micro_tokens": 100,
        "stage.eval_every": 8,
        "stage.eval_samples": 8,
        "stage.checkpoint_every": 5,
        "stage.show_samples": 0,
        "backbone.depth": 1,
        "backbone.aspect": 16,
        "backbone.head_dim": 8,
        "backbone.max_positions": 128,
        "tracker.seconds": seconds,
        "threads": 1,
    }
    words = ["train", "--stage", "pretrain", "--backbone", "gpt", "--dataset", "words", "--tracker", "slow"]
    words += ["--from", "tokenizer", "--name", name, "--seed", "7", "--device", "cpu"]
    return words + [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]


def train(
    home: Path, name: str, *more: str, nproc: int = 1, seconds: float = 0.05, resume: bool = False
) -> subprocess.Popen[str]:
    """Start a run, or go on with it."""
    command = [*GHOSTVIS, *arguments(name, seconds), "--nproc", str(nproc)]
    command += [*(["--resume"] if resume else []), *more]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    with (home / f"{name}.log").open("a") as log:
        return subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log, text=True)


def wait_for_step(home: Path, name: str, step: int, process: subprocess.Popen[str]) -> None:
    """Until the metrics say that ``step`` is done."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        found = read_metrics(home / "runs" / name)
        if found and found[-1]["step"] >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"{name} did not reach step {step}: {process.poll()}\n{log_of(home, name)}")


def log_of(home: Path, name: str) -> str:
    return (home / f"{name}.log").read_text()


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the ranks that a launcher started, in their order (Linux)."""
    pids = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    pids = [pid for pid in pids if b"ghostvis_cli.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    ranks = {int(_environment(pid)["RANK"]): pid for pid in pids}
    return [ranks[rank] for rank in sorted(ranks)]


def _environment(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def end(process: subprocess.Popen[str]) -> int:
    """Its exit code; whatever happens, it does not outlive the test."""
    try:
        return process.wait(120)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)


def rows(home: Path, name: str) -> list[dict[str, Any]]:
    """Metrics without wall-clock figures."""
    found = read_metrics(home / "runs" / name)
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in found]
