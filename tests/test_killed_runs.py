"""Killed at random moments, continued, and the same in the end; GHOSTVIS_KILLS says how many runs, 3 by default."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and POSIX signals")
def test_killed_runs_are_continued_as_if_nothing_had_been() -> None:
    """In a process of its own: one that has computed already must not be forked."""
    count = os.environ.get("GHOSTVIS_KILLS", "3")
    command = [sys.executable, "tests/killed_runs.py", count, os.environ.get("GHOSTVIS_SEED", "0")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} killed, {count} continued" in done.stdout
