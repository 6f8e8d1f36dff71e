"""Checkpoints that a thread writes while the run goes on: the same files as without it, whatever goes wrong."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import test_rollback
import torch
from miniature import NoOptions, registry, values
from safetensors.torch import load_file
from test_distributed import two_processes

from components.trackers.jsonl import read_metrics
from ghostvis_plugins import ComponentSpec, tracker
from ghostvis_plugins.errors import RequeueError, UnavailableError
from stages import checkpoint
from stages.loop import MEASURED
from stages.runner import run
from stages.validation import Validation

ROOT = Path(__file__).resolve().parents[1]
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ghostvis-checkpoint")]


def given(start: Path, **more: Any) -> dict[str, Any]:
    options = {"stage__checkpoint_async": True, "stage__checkpoint_every": 4, "stage__keep_checkpoints": 99, **more}
    return values(start, stage__train={"projector": 1e-2, "backbone": 1e-2}, stage__eval_samples=8, **options)


def listening(hear: Callable[[int], None]) -> ComponentSpec:
    """A tracker that calls ``hear`` with each step, which is logged before it is saved."""

    class Listener:
        def log(self, step: int, metrics: Mapping[str, Any]) -> None:
            hear(step)

        def finish(self) -> None: ...

    return tracker("listener", config=NoOptions, build=lambda config, *, run_dir: Listener())


def listened(start: Path, hear: Callable[[int], None], run_dir: Path, **more: Any) -> None:
    run({**given(start, **more), "tracker": {"name": "listener"}}, registry(listening(hear)), run_dir)


def before_writing(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """``act`` before the weights of ``step``'s checkpoint are written, in the thread that writes them."""
    write = checkpoint._write_tensors

    def wrapped(tensors: Mapping[str, torch.Tensor], path: Path, about: dict[str, str] | None = None) -> None:
        if path.parent.name == f".partial-step_{step}" and path.name == "model.safetensors":
            act()
        write(tensors, path, about)

    monkeypatch.setattr(checkpoint, "_write_tensors", wrapped)


def held(monkeypatch: pytest.MonkeyPatch, step: int) -> threading.Event:
    """A disk that is stuck with that step's checkpoint until the event is set."""
    released = threading.Event()

    def wait() -> None:
        assert threading.current_thread() is not threading.main_thread()
        assert released.wait(60)

    before_writing(monkeypatch, step, wait)
    return released


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in read_metrics(run_dir)]


def assert_same(run_dir: Path, other: Path, steps: list[int]) -> None:
    """Metrics, exported weights, and those checkpoints: bit for bit."""
    assert rows(run_dir) == rows(other)
    assert checkpoint.steps(run_dir / "checkpoints") == checkpoint.steps(other / "checkpoints") == steps
    names = [*(f"checkpoints/step_{step}/{name}" for step in steps for name in FILES), "model/model.safetensors"]
    assert all((run_dir / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.fixture(scope="module")
def plain(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that writes each checkpoint before it goes on."""
    folder = tmp_path_factory.mktemp("plain") / "a"
    run(given(start, stage__checkpoint_async=False), registry(), folder)
    return folder


def test_steps_go_on_while_a_slow_disk_writes_what_was(
    start: Path, tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps change all weights before one is written; the next checkpoint waits for its turn."""
    released, published = held(monkeypatch, 4), []

    def hear(step: int) -> None:
        published.append(checkpoint.steps(tmp_path / "a" / "checkpoints"))
        if step == 7:
            released.set()

    listened(start, hear, tmp_path / "a")
    assert published[4:7] == [[], [], []]
    assert published[8][:1] == [4]  # it was waited for before step 8's was taken
    assert_same(tmp_path / "a", plain, [4, 8, 12])
    weights = [load_file(tmp_path / f"a/checkpoints/step_{step}/model.safetensors") for step in (4, 8)]
    moved = [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])]
    assert len(moved) > 5
    waited = {row["step"]: row["time_checkpoint"] for row in read_metrics(tmp_path / "a") if "time_checkpoint" in row}
    assert waited.keys() == {5, 9}
    assert all(0 < seconds < 5 for seconds in waited.values())


def fill(monkeypatch: pytest.MonkeyPatch, *, once: int, always: int) -> None:
    """No room for the first attempt at the checkpoint of step ``once``, and for any at that of step ``always``."""
    full = {f".partial-step_{once}": 1, f".partial-step_{always}": 9}
    write = checkpoint._write_json

    def wrapped(path: Path, value: Any) -> None:
        if full.get(path.parent.name):
            full[path.parent.name] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, value)

    monkeypatch.setattr(checkpoint, "_write_json", wrapped)


def score(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Let validations come to these losses, one after the other."""
    validate, left = Validation.__call__, iter(losses)

    def wrapped(self: Validation, *parts: Any) -> Any:
        metrics, bad = validate(self, *parts)
        return {**metrics, "val_loss": next(left)}, bad

    monkeypatch.setattr(Validation, "__call__", wrapped)


def test_a_full_disk_is_met_as_without_the_thread(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Room is made once; then a checkpoint is given up, and its step is no longer the best one."""
    often = given(start, stage__checkpoint_every=2, stage__eval_every=2, stage__export="best")
    said = []
    for name, asynchronous in (("a", True), ("b", False)):
        often["stage"]["checkpoint_async"] = asynchronous
        with monkeypatch.context() as patched:
            fill(patched, once=6, always=10)
            score(patched, [5.0, 4.0, 3.0, 2.0, 1.0, 1.5])
            run(often, registry(), tmp_path / name)
        said.append(capsys.readouterr().err.replace(str(tmp_path / name), "RUN"))
    lines = [[line for line in text.splitlines() if "disk" in line] for text in said]
    assert lines[0] == lines[1]
    assert "is full: removed checkpoints 2" in lines[0][0]
    assert "NO CHECKPOINT of step 10" in lines[0][-1]
    assert_same(tmp_path / "a", tmp_path / "b", [8, 12])
    assert checkpoint.at_step(tmp_path / "a" / "checkpoints", 12).state()["best"]["step"] == 12


def test_a_run_goes_back_to_what_was_being_written(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad step right after the checkpoint, on a slow disk: it is waited for."""
    bad = test_rollback.given(start, range(5, 6), stage__max_skipped_steps=0)
    run(bad, registry(), tmp_path / "b")
    before_writing(monkeypatch, 4, lambda: time.sleep(0.5))
    bad["stage"]["checkpoint_async"] = True
    run(bad, registry(), tmp_path / "a")
    assert [entry.get("rolled_back_to") for entry in test_rollback.incidents(tmp_path / "a")] == [None, 4]
    test_rollback.assert_same(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [(RuntimeError("cosmic ray"), RuntimeError, "cosmic ray"), (OSError(5, "bad disk"), UnavailableError, "bad disk")],
)
def test_what_ends_the_writing_ends_the_run_a_step_later(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], message: str
) -> None:
    released = threading.Event()

    def fail() -> None:
        assert released.wait(60)
        raise error

    def hear(step: int) -> None:
        if step == 6:
            released.set()
            time.sleep(0.5)  # so that step 7 sees that it has failed

    before_writing(monkeypatch, 4, fail)
    with pytest.raises(kind, match=message):
        listened(start, hear, tmp_path / "a", stage__steps=40)
    assert read_metrics(tmp_path / "a")[-1]["step"] == 7
    assert not (tmp_path / "a" / "model").exists()


def test_an_interrupted_run_finishes_the_checkpoint(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    released = held(monkeypatch, 4)

    def hear(step: int) -> None:
        if step == 6:
            threading.Timer(0.3, released.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        listened(start, hear, tmp_path / "a")
    assert checkpoint.at_step(tmp_path / "a" / "checkpoints", 4).step == 4
    assert "checkpoint of step 4 is being written; the run ends after that" in capsys.readouterr().err


def test_an_error_of_the_thread_does_not_hide_what_ended_the_run(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = threading.Event()

    def fail() -> None:
        assert stopping.wait(60)
        time.sleep(0.2)
        raise RuntimeError("cosmic ray")

    def hear(step: int) -> None:
        if step == 6:
            stopping.set()
            raise KeyboardInterrupt

    before_writing(monkeypatch, 4, fail)
    with pytest.raises(KeyboardInterrupt):
        listened(start, hear, tmp_path / "a")
    assert "is lost: RuntimeError('cosmic ray')" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_a_run_told_to_stop_has_both_checkpoints(
    start: Path, tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That which was being written, and that of the last step."""
    released = held(monkeypatch, 4)

    def hear(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        if step == 6:
            released.set()

    with pytest.raises(RequeueError, match="after step 6"):
        listened(start, hear, tmp_path / "a")
    for step in (4, 6):
        assert checkpoint.at_step(tmp_path / "a" / "checkpoints", step).step == step
    run(given(start), registry(), tmp_path / "a", resume=True)
    assert rows(tmp_path / "a") == rows(plain)


FAULTY = """
import errno, os, sys
sys.path.insert(0, "tests")
import miniature
from ghostvis_plugins.errors import UnavailableError
from stages import checkpoint

write = checkpoint._write_tensors

def fail(tensors, path, about=None):
    where = (os.environ["RANK"], path.parents[2].name, path.parent.name)
    if where == ("1", "full", ".partial-step_4"):
        raise OSError(errno.ENOSPC, "No space left on device")
    if where == ("1", "broken", ".partial-step_8"):
        raise OSError(errno.EIO, "Input/output error")
    write(tensors, path, about)

checkpoint._write_tensors = fail
try:
    miniature.main(sys.argv[1])
except UnavailableError as error:
    print("ENDED:", error)
"""


def test_ranks_agree_on_what_only_one_of_them_could_not_write(start: Path, tmp_path: Path) -> None:
    runs = [[str(tmp_path / name), given(start), False] for name in ("full", "broken")]
    two_processes(runs, tmp_path, ["-c", FAULTY])
    said = [(tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert [text.count("NO CHECKPOINT of step 4") for text in said] == [1, 0]
    assert [text.count("ENDED: cannot write a checkpoint to") for text in said] == [1, 1]
    assert rows(tmp_path / "full")[-1]["step"] == 12
    assert 9 <= rows(tmp_path / "broken")[-1]["step"] <= 12
    for name, steps in (("full", [8, 12]), ("broken", [4])):
        root = tmp_path / name / "checkpoints"
        assert checkpoint.steps(root) == steps
        assert all(checkpoint.verify(root / f"step_{step}") is None for step in steps)
        assert not list(root.glob(".partial*"))


KILLED = """
import json, sys, time
sys.path.insert(0, "tests")
from miniature import registry
from stages import checkpoint
from stages.runner import run

flush = checkpoint._flush
checkpoint._flush = lambda path: time.sleep(600) if "step_8" in str(path) else flush(path)
run(json.loads(sys.argv[2]), registry(), sys.argv[1])
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_killed_while_a_checkpoint_is_written_the_one_before_is_there(start: Path, tmp_path: Path, plain: Path) -> None:
    killed = {**given(start), "tracker": {"name": "killer", "at": 10}}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a"), json.dumps(killed)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    root = tmp_path / "a" / "checkpoints"
    assert [folder.name for folder in root.glob(".partial*")] == [".partial-step_8"]
    found = checkpoint.latest(root, pytest.fail)
    assert found is not None
    assert found.step == 4
    run(given(start), registry(), tmp_path / "a", resume=True)
    assert_same(tmp_path / "a", plain, [4, 8, 12])
    assert not list(root.glob(".partial*"))


def test_a_long_write_is_no_stall_and_hides_none(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released, stall, seen = held(monkeypatch, 10), tmp_path / "a" / "stall-rank0.txt", []

    def hear(step: int) -> None:
        if 10 < step < 19:
            time.sleep(0.3)
        if step == 19:
            seen.append(stall.exists())
            time.sleep(3)
            seen.append(stall.exists())
            released.set()

    often = {"stage__steps": 20, "stage__checkpoint_every": 10, "stage__stall_seconds": 2.0}
    listened(start, hear, tmp_path / "a", **often)
    assert seen == [False, True]
