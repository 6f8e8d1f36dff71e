"""Too many steps in a row that are no number: a run goes back to a checkpoint, once, and on behind the bad samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import interruption, registry, values
from safetensors.torch import load_file
from test_distributed import two_processes

from components.trackers.jsonl import read_metrics
from ghostvis_plugins.errors import GhostVisError
from stages.context import RunContext
from stages.data import Stream
from stages.distributed import Distributed
from stages.loop import MEASURED
from stages.runner import run
from stages.start import open_start

STEPS, SIZE = 16, 400  # less than an epoch of colours: a poisoned sample comes once
BAD = range(7, 11)


def given(start: Path, bad: range, **more: Any) -> dict[str, Any]:
    """A run in whose ``bad`` steps, and in no other, one sample makes infinities."""
    result = values(
        start,
        encoder__brittle=True,
        dataset__colours__size=SIZE,
        stage__steps=STEPS,
        stage__train={"projector": 1e-2, "backbone": 1e-2},
        stage__eval_samples=0,
        stage__features="none",
        stage__checkpoint_every=4,
        stage__keep_checkpoints=1,
        **more,
    )
    context = RunContext(result, registry(), start, Distributed())
    stream = Stream(context.datasets("train"), open_start(context, vision=True).tokenizer, 4, seed=7, limit=100)
    poison = []
    for step in range(1, STEPS + 1):
        drawn = stream.next_step(200, 100).samples
        if step in bad:
            poison.append(next(one.index for one in drawn if one.source == "colours"))
    result["dataset"]["colours"]["poison"] = poison
    return result


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """Metrics without what hangs on the machine, nan as text."""
    return [{k: str(v) for k, v in row.items() if k not in MEASURED} for row in read_metrics(run_dir)]


def incidents(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "incidents.jsonl").read_text().splitlines()]


def assert_same(a: Path, b: Path) -> None:
    """Bit for bit: metrics with the order of the data, what was written down, weights."""
    assert rows(a) == rows(b)
    assert incidents(a) == incidents(b)
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (a, b))
    assert all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


@pytest.fixture(scope="module")
def whole(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went back, and nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "a"
    run(given(start, BAD), registry(), folder)
    return folder


def test_it_goes_back_and_on_behind_the_bad_samples(start: Path, tmp_path: Path, whole: Path) -> None:
    *bad, back = incidents(whole)
    poisoned = [f"colours/train/{n}" for n in given(start, BAD)["dataset"]["colours"]["poison"]]
    assert [entry["step"] for entry in bad] == list(BAD)
    assert all(name in entry["samples"] for name, entry in zip(poisoned, bad, strict=True))
    assert back == {"step": 10, "rolled_back_to": 4, "bad_steps": [7, 10]}
    run(given(start, range(0)), registry(), tmp_path / "sane")
    found, sane = rows(whole), rows(tmp_path / "sane")
    assert [row["data_hash"] for row in found] == [row["data_hash"] for row in sane]
    assert [row["lr"] for row in found] == [row["lr"] for row in sane]
    assert found[:6] == sane[:6]
    assert [row["rollbacks"] for row in found] == ["0"] * 9 + ["1"] * 7
    assert found[-1]["skipped_steps"] == "4"
    report = (whole / "report.md").read_text()
    assert "4 with a loss or gradient that is no number, went back 1 times" in report


def test_weights_and_optimizer_are_those_of_the_checkpoint(start: Path, tmp_path: Path) -> None:
    run(given(start, BAD, stage__schedule="constant"), registry(), tmp_path / "a")
    assert not (tmp_path / "a/checkpoints/step_4").exists()  # it was kept no longer than it was needed
    ending = given(start, BAD, stage__schedule="constant")
    ending["stage"] |= {"steps": 10, "keep_checkpoints": 9}
    run(ending, registry(), tmp_path / "b")
    for name in ("model.safetensors", "optimizer.safetensors"):
        four, eight, ten = (load_file(tmp_path / f"b/checkpoints/step_{step}" / name) for step in (4, 8, 10))
        assert all(torch.equal(ten[key], four[key]) for key in four)
        assert any(not torch.equal(eight[key], four[key]) for key in four)


@pytest.mark.parametrize("step", [9, 11, 13])
def test_stopped_within_the_bad_steps_or_behind_them_it_is_the_same_run(
    start: Path, tmp_path: Path, whole: Path, step: int
) -> None:
    """Before it goes back; after it went back and before another checkpoint; after another one."""
    stopped = given(start, BAD, tracker={"name": "interrupt"})
    with pytest.raises(KeyboardInterrupt):
        run(stopped, registry(interruption(step)), tmp_path / "a")
    run(given(start, BAD), registry(), tmp_path / "a", resume=True)
    assert_same(tmp_path / "a", whole)


def test_two_processes_go_back_together_and_continue_what_one_began(start: Path, tmp_path: Path, whole: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(given(start, BAD, tracker={"name": "interrupt"}), registry(interruption(11)), tmp_path / "killed")
    assert incidents(tmp_path / "killed")[-1]["rolled_back_to"] == 4
    plain = given(start, BAD)
    two_processes([[str(tmp_path / "two"), plain, False], [str(tmp_path / "killed"), plain, True]], tmp_path)
    for name in ("two", "killed"):
        assert incidents(tmp_path / name) == incidents(whole)
        for row, other in zip(read_metrics(tmp_path / name), read_metrics(whole), strict=True):
            assert row["data_hash"] == other["data_hash"]
            assert row["loss"] == pytest.approx(other["loss"], rel=1e-5, nan_ok=True)
    one, two = (load_file(folder / "model/model.safetensors") for folder in (whole, tmp_path / "two"))
    assert all(torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-5) for name in one)


def test_again_before_another_checkpoint_stops_with_both_windows(start: Path, tmp_path: Path) -> None:
    message = r"bad are steps 11 to 14; after steps 7 to 10 the run went back to checkpoint 4, and nothing was saved"
    with pytest.raises(GhostVisError, match=message):
        run(given(start, range(7, 15)), registry(), tmp_path / "a")
    assert [entry["step"] for entry in incidents(tmp_path / "a")] == [7, 8, 9, 10, 10, 11, 12, 13, 14]
    with pytest.raises(GhostVisError, match=message):  # and resuming changes nothing about it
        run(given(start, range(7, 15)), registry(), tmp_path / "a", resume=True)
    assert not (tmp_path / "a" / "model").exists()


def test_after_another_checkpoint_it_goes_back_again(start: Path, tmp_path: Path) -> None:
    often = given(start, range(7, 12, 4), stage__max_skipped_steps=0)  # 7 and 11, and a checkpoint of step 8
    run(often, registry(), tmp_path / "a")
    back = [entry for entry in incidents(tmp_path / "a") if "rolled_back_to" in entry]
    assert [(entry["step"], entry["rolled_back_to"]) for entry in back] == [(7, 4), (11, 8)]


def test_without_a_checkpoint_it_stops_and_says_what_would_help(start: Path, tmp_path: Path) -> None:
    never = given(start, BAD)
    never["stage"]["checkpoint_every"] = 0
    with pytest.raises(GhostVisError, match="4 such steps in a row") as caught:
        run(never, registry(), tmp_path / "a")
    assert "stage.checkpoint_every" in str(caught.value.hint)
