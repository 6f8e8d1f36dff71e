"""Runs that are told to stop: the step is finished and saved, and another process goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import slow_runs
from miniature import registry, values, write_tokenizer
from pydantic import BaseModel
from safetensors.torch import load_file

from components.trackers.jsonl import read_metrics
from ghostvis_plugins import ComponentSpec, ExitCode, tracker
from ghostvis_plugins.errors import RequeueError
from stages import checkpoint
from stages.loop import MEASURED
from stages.runner import run

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")


class NoOptions(BaseModel):
    pass


def signaller(number: signal.Signals, at: int) -> ComponentSpec:
    """A tracker that signals its own process when step ``at`` is logged."""

    class Signaller:
        def log(self, step: int, metrics: Mapping[str, Any]) -> None:
            if step == at:
                os.kill(os.getpid(), number)

        def finish(self) -> None: ...

    return tracker("signaller", config=NoOptions, build=lambda config, *, run_dir: Signaller())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_finishes_the_step_saves_and_asks_to_be_continued(tmp_path: Path, number: signal.Signals) -> None:
    given = values(write_tokenizer(tmp_path / "tokenizer"), stage__eval_every=4, stage__train={"backbone": 1e-2})
    run(given, registry(), tmp_path / "whole")
    before = signal.getsignal(number)
    with pytest.raises(RequeueError, match="after step 6 of 12") as caught:
        run({**given, "tracker": {"name": "signaller"}}, registry(signaller(number, 5)), tmp_path / "parts")
    assert caught.value.exit_code == ExitCode.REQUEUE == 85
    assert signal.getsignal(number) is before
    assert checkpoint.at_step(tmp_path / "parts" / "checkpoints", 6).step == 6
    run(given, registry(), tmp_path / "parts", resume=True)
    assert_same(tmp_path / "parts", tmp_path / "whole")


def assert_same(parts: Path, whole: Path) -> None:
    rows = [
        [{key: value for key, value in row.items() if key not in MEASURED} for row in read_metrics(path)]
        for path in (parts, whole)
    ]
    assert rows[0] == rows[1]
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (parts, whole))
    assert all((ours[name] == theirs[name]).all() for name in ours.keys() | theirs.keys())


def test_a_run_that_is_at_its_end_is_finished_instead(tmp_path: Path) -> None:
    given = values(write_tokenizer(tmp_path / "tokenizer"), stage__steps=3, stage__eval_samples=0)
    model = run({**given, "tracker": {"name": "signaller"}}, registry(signaller(signal.SIGTERM, 2)), tmp_path / "a")
    assert (model / "model.safetensors").is_file()


IMPATIENT = """
import os, signal, sys, time
from stages.stopping import SAME_REQUEST, Stopping

with Stopping() as stopping:
    for _ in range(3):  # the job manager's, the launcher's, and the one for the group
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopping.requested
    time.sleep(SAME_REQUEST + 0.1)
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""


def test_a_second_request_ends_the_process() -> None:
    command = [sys.executable, "-c", IMPATIENT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.stdout == "still here\n", done.stderr
    assert done.returncode == -signal.SIGTERM


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = slow_runs.make_home(tmp_path_factory.mktemp("home"))
    assert slow_runs.end(slow_runs.train(folder, "whole", seconds=0)) == 0, slow_runs.log_of(folder, "whole")
    return folder


def test_the_command_ends_with_the_requeue_code(home: Path) -> None:
    process = slow_runs.train(home, "one")
    slow_runs.wait_for_step(home, "one", 3, process)
    process.send_signal(signal.SIGUSR1)
    assert slow_runs.end(process) == 85, slow_runs.log_of(home, "one")
    assert "--resume goes on" in slow_runs.log_of(home, "one")


@pytest.mark.slow
@pytest.mark.parametrize("to", ["launcher", "group of both", "one worker"])
def test_two_processes_stop_together(home: Path, to: str) -> None:
    name = to.replace(" ", "-")
    process = slow_runs.train(home, name, nproc=2)
    slow_runs.wait_for_step(home, name, 3, process)
    workers = slow_runs.workers_of(process)
    if to == "one worker":
        os.kill(workers[1], signal.SIGTERM)
    else:
        for pid in [process.pid, *(workers if to == "group of both" else [])]:
            os.kill(pid, signal.SIGTERM)
    assert slow_runs.end(process) == 85, slow_runs.log_of(home, name)
    assert slow_runs.log_of(home, name).count("stopped by a signal after step") == 1
    assert "Traceback" not in slow_runs.log_of(home, name)
    stopped = slow_runs.rows(home, name)[-1]["step"]
    assert checkpoint.at_step(home / "runs" / name / "checkpoints", stopped).step == stopped < slow_runs.STEPS
    again = slow_runs.train(home, name, nproc=2, seconds=0.05, resume=True)
    assert slow_runs.end(again) == 0, slow_runs.log_of(home, name)
    for row, whole in zip(slow_runs.rows(home, name), slow_runs.rows(home, "whole"), strict=True):
        assert row["data_hash"] == whole["data_hash"]
        assert row["loss"] == pytest.approx(whole["loss"], rel=1e-5)
