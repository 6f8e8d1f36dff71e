"""Trackers against the libraries they write for: what was logged can be read back."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from miniature import registry, values, write_tokenizer

from components.trackers.config import TensorBoard, Trackio, Wandb
from components.trackers.jsonl import read_metrics
from components.trackers.services import build_tensorboard, build_trackio, build_wandb, settings_of
from ghostvis_plugins.errors import ExitCode, UnavailableError
from stages.runner import run


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_gets_what_metrics_jsonl_gets(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    start = write_tokenizer(tmp_path / "tokenizer")
    run(values(start, tracker__name="tensorboard", stage__steps=3), registry(), tmp_path / "a")
    metrics = read_metrics(tmp_path / "a")
    for name in ("loss", "time_forward", "flops"):
        found = scalars(tmp_path / "a" / "tensorboard", name)
        assert [step for step, _ in found] == [1, 2, 3]
        assert [value for _, value in found] == pytest.approx([row[name] for row in metrics], rel=1e-5)


def test_tensorboard_forgets_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for first, loss in ((1, 1.0), (3, 0.5)):
        tracker = build_tensorboard(TensorBoard(), run_dir=tmp_path)
        for step in range(first, 5):
            tracker.log(step, {"loss": loss, "data_hash": "text is no curve"})
        tracker.finish()
    assert scalars(tmp_path / "tensorboard", "loss") == [(1, 1.0), (2, 1.0), (3, 0.5), (4, 0.5)]


@pytest.mark.slow
def test_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    (tmp_path / "resolved.json").write_text(json.dumps({"values": {"seed": 7}}))
    tracker = build_wandb(Wandb(), run_dir=tmp_path)
    tracker.log(1, {"loss": 1.5, "data_hash": "abc"})
    tracker.finish()
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    content = file.read_bytes()  # records of protocol buffers, whose strings stand there as they are
    assert b"loss" in content
    assert b"1.5" in content
    assert b"seed" in content


@pytest.mark.slow
def test_trackio_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    tracker = build_trackio(Trackio(), run_dir=tmp_path)
    tracker.log(1, {"loss": 1.5})
    tracker.finish()
    from trackio.sqlite_storage import SQLiteStorage

    (row,) = SQLiteStorage.get_logs("ghostvis", tmp_path.name)
    assert (row["step"], row["loss"]) == (1, 1.5)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_library_that_is_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    found = registry()
    config = found.make_config("tracker", name, {})
    with pytest.raises(UnavailableError, match=f"tracker {name}") as caught:
        found.get("tracker", name).load_build()(config, run_dir=tmp_path)
    assert caught.value.exit_code is ExitCode.ENVIRONMENT
    assert f"pip install 'ghostvis[{name}]'" in str(caught.value)


def test_settings_are_those_of_the_run(tmp_path: Path) -> None:
    assert settings_of(tmp_path) == {}
    (tmp_path / "resolved.json").write_text('{"values": {"seed": 7}}')
    assert settings_of(tmp_path) == {"seed": 7}
