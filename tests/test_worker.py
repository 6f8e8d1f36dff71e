"""Processes of one start that fail: it is said once, and the exit code stays, in whichever order they come."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ghostvis_cli import worker
from ghostvis_cli.launch import _worker_code
from ghostvis_plugins import ExitCode
from stages.rundir import exit_codes

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none"}
STEP = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)


def fail(run_dir: Path, rank: int, **more: str) -> str:
    """A worker without a run: what it says before it ends."""
    who = {"SLURM_PROCID": str(rank)} if "SLURM_STEP_ID" in more else {"RANK": str(rank), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", worker.__name__, "--resolved", str(run_dir / "resolved.json")]
    environment = {**os.environ, **who, **more, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == ExitCode.DATA
    return done.stderr


@pytest.mark.parametrize("launcher", [TORCHRUN, STEP], ids=["torchrun", "srun"])
def test_what_a_rank_left_before_the_first_one_began_stays(tmp_path: Path, launcher: dict[str, str]) -> None:
    assert "rank 1: " in fail(tmp_path, 1, **launcher)
    assert fail(tmp_path, 0, **launcher) == ""
    (left,) = exit_codes(tmp_path)
    assert _worker_code(tmp_path) == ExitCode.DATA
    assert not left.exists()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (TORCHRUN, {**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "1"}),
        (STEP, {**STEP, "SLURM_STEP_ID": "1"}),
        (STEP, {**STEP, "SLURM_RESTART_COUNT": "1"}),
        ({}, {}),  # variables set by hand: nobody knows which processes belong together
    ],
)
def test_what_an_earlier_start_left_silences_nobody(
    tmp_path: Path, first: dict[str, str], second: dict[str, str]
) -> None:
    assert "rank 1: " in fail(tmp_path, 1, **first)
    assert "rank 1: " in fail(tmp_path, 1, **second)
    assert len(exit_codes(tmp_path)) == (1 if second else 0)


def test_files_of_another_node_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "exit_code.other-node.1-2-0").write_text("3")
    fail(tmp_path, 0, **TORCHRUN)
    assert len(exit_codes(tmp_path)) == 2
