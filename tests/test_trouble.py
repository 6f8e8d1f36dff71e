"""What goes wrong while a run trains: losses that are no numbers, a full disk, a step that hangs."""

from __future__ import annotations

import errno
import gc
import json
import math
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import COLOURS, EncoderOptions, TinyEncoder, registry, square, values
from pydantic import BaseModel
from safetensors.torch import load_file
from torch import Tensor

from components.images import pixels_of
from components.trackers.jsonl import read_metrics
from ghostvis_plugins import ComponentSpec, encoder, tracker
from ghostvis_plugins.errors import UnavailableError
from stages import checkpoint
from stages.loop import MEASURED
from stages.runner import run
from stages.watchdog import Watchdog

EVERYTHING = {"projector": 1e-2, "backbone": 1e-2}


class NoOptions(BaseModel):
    pass


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in read_metrics(run_dir)]


class Brittle(TinyEncoder):
    """An encoder that makes infinities of one picture, that of the training sample colours/train/5."""

    def forward(self, pixels: Tensor) -> Tensor:
        features = super().forward(pixels)
        culprit = pixels_of(self, square(list(COLOURS.values())[5 % len(COLOURS)], 5))
        hit = (pixels == culprit).flatten(1).all(1)
        return torch.where(hit[:, None, None], torch.inf, features)


def test_a_step_that_is_no_number_is_left_out(start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The weights stay as they were, the data goes on, the row counts it; also across a resumed run."""
    given = values(
        start,
        stage__train=EVERYTHING,
        stage__checkpoint_every=1,
        stage__keep_checkpoints=99,
        stage__eval_samples=0,
        stage__features="none",
    )
    run(given, registry(), tmp_path / "sane")
    brittle = {**given, "encoder": {"name": "brittle"}}
    with_it = registry(encoder("brittle", config=EncoderOptions, build=Brittle))
    run(brittle, with_it, tmp_path / "a")
    incidents = [json.loads(line) for line in (tmp_path / "a" / "incidents.jsonl").read_text().splitlines()]
    hit = [entry["step"] for entry in incidents]
    assert 0 < len(hit) < 6
    assert all("colours/train/5" in entry["samples"] for entry in incidents)
    found = rows(tmp_path / "a")
    assert [row["data_hash"] for row in found] == [row["data_hash"] for row in rows(tmp_path / "sane")]
    for row in found:
        assert math.isfinite(row["loss"]) == (row["step"] not in hit)
        assert row["skipped_steps"] == sum(step <= row["step"] for step in hit)
    saved = {
        step: load_file(tmp_path / "a" / "checkpoints" / f"step_{step}" / "model.safetensors") for step in range(1, 13)
    }
    for step in range(2, 13):
        same = all(torch.equal(saved[step][name], saved[step - 1][name]) for name in saved[step])
        assert same == (step in hit), step
    assert capsys.readouterr().err.count("the step is left out") == len(hit)
    for step in range(hit[0] + 1, 13):  # the count goes on where it was
        (tmp_path / "a" / "checkpoints" / f"step_{step}" / "manifest.json").unlink()
    run(brittle, with_it, tmp_path / "a", resume=True)
    assert json.dumps(rows(tmp_path / "a")) == json.dumps(found)  # as text, where nan is nan


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def hog(disk: Path, *, first: int, last: int = 0, at_the_end: bool = False, after: Path | None = None) -> ComponentSpec:
    """A tracker that fills ``disk`` at step ``first``, or when all steps are done, and frees it after step ``last``.

    It waits for ``after`` to be there, which may be on its way.
    """

    class Hog:
        def log(self, step: int, metrics: Mapping[str, Any]) -> None:
            if step == first:
                self.fill()
            if step == last:
                (disk / "ballast").unlink()

        def fill(self) -> None:
            while after is not None and not after.exists():
                time.sleep(0.01)
            with pytest.raises(OSError, match="No space"):
                fill(disk / "ballast")

        def finish(self) -> None:
            if at_the_end:
                self.fill()

    return tracker("hog", config=NoOptions, build=lambda config, *, run_dir: Hog())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"needs to mount a small file system: {mounted.stderr}")
    try:
        yield folder
    finally:
        gc.collect()  # what was read from a checkpoint there is mapped, and in cycles
        subprocess.run(["umount", folder], check=True)


def given_often(start: Path, **more: Any) -> dict[str, Any]:
    return values(start, stage__checkpoint_every=1, stage__eval_samples=0, tracker={"name": "hog"}, **more)


def test_a_full_disk_costs_old_checkpoints_first(
    start: Path, tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = given_often(start, stage__keep_checkpoints=99, stage__keep_every=2)
    run(given, registry(hog(disk, first=6, last=9)), disk / "a")
    said = capsys.readouterr().err
    assert "is full: removed checkpoints 1, 3" in said  # 2 and 4 are to be kept, 5 is the newest
    assert "NO CHECKPOINT of step" not in said.split("removed checkpoints 1, 3")[0]
    kept = checkpoint.steps(disk / "a" / "checkpoints")
    assert {2, 4, 6, 10, 11, 12} <= set(kept)
    assert not {1, 3} & set(kept)
    assert all(checkpoint.verify(disk / "a" / "checkpoints" / f"step_{step}") is None for step in kept)
    run({**given, "tracker": {"name": "jsonl"}}, registry(), tmp_path / "whole")
    assert rows(disk / "a") == rows(tmp_path / "whole")


def test_training_goes_on_while_a_disk_is_full(
    start: Path, tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = given_often(start, stage__keep_checkpoints=1)
    run(given, registry(hog(disk, first=5, last=9)), disk / "a")
    said = capsys.readouterr().err
    assert all(f"NO CHECKPOINT of step {step}:" in said for step in (5, 6, 7, 8))
    assert "NO CHECKPOINT of step 9:" not in said
    run({**given, "tracker": {"name": "jsonl"}}, registry(), tmp_path / "whole")
    assert rows(disk / "a") == rows(tmp_path / "whole")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_last_checkpoint_is_not_given_up(start: Path, disk: Path, asynchronous: bool) -> None:
    given = given_often(start, stage__keep_checkpoints=1, stage__checkpoint_async=asynchronous)
    with pytest.raises(UnavailableError, match="No space left"):
        run(given, registry(hog(disk, first=5, last=99, after=disk / "a/checkpoints/step_4")), disk / "a")
    found = checkpoint.latest(disk / "a" / "checkpoints", pytest.fail)
    assert found is not None
    assert found.step == 4
    assert not list((disk / "a" / "checkpoints").glob(".partial*"))


def test_what_is_written_down_waits_for_room(
    start: Path, tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unusable samples and bad steps are met while the disk is full; all are in the files at the end, whole."""
    given = values(
        start,
        encoder__brittle=True,
        stage__train=EVERYTHING,
        stage__eval_samples=0,
        stage__features="none",
        stage__max_bad_fraction=1.0,
        stage__checkpoint_every=20,
        dataset__colours={"size": 100, "broken": 30, "mute": 30, "poison": [80, 90], "weight": 2.0},
    )
    run(given, registry(), tmp_path / "whole")
    run({**given, "tracker": {"name": "hog"}}, registry(hog(disk, first=1, last=11)), disk / "a")
    said = capsys.readouterr().err
    for name in ("bad_samples.jsonl", "incidents.jsonl"):
        found = (disk / "a" / name).read_text()
        assert found == (tmp_path / "whole" / name).read_text()
        assert {json.loads(line)["step"] for line in found.splitlines()} & set(range(2, 12))
        assert said.count(f"{disk / 'a' / name} cannot be written now") == 1


def test_a_model_that_does_not_fit_is_exported_by_resume(start: Path, tmp_path: Path, disk: Path) -> None:
    given = values(start, stage__eval_samples=0, tracker={"name": "hog"})
    with pytest.raises(UnavailableError, match=r"is trained, but its model .* cannot be written .*No space") as caught:
        run(given, registry(hog(disk, first=0, at_the_end=True)), disk / "a")
    assert "--resume" in str(caught.value.hint)
    assert not (disk / "a" / "model").exists()
    assert not list((disk / "a").glob(".model*"))
    (disk / "ballast").unlink()
    plain = {**given, "tracker": {"name": "jsonl"}}
    run(plain, registry(), disk / "a", resume=True)
    run(plain, registry(), tmp_path / "whole")
    assert rows(disk / "a") == rows(tmp_path / "whole")
    files = [folder / "model/model.safetensors" for folder in (disk / "a", tmp_path / "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_systems_error_is_not_hidden(disk: Path) -> None:
    with pytest.raises(OSError, match="No space") as caught:
        checkpoint._write_tensors({"a": torch.zeros(10**7)}, disk / "x.safetensors")
    assert caught.value.errno == errno.ENOSPC


def test_a_stall_shows_where_threads_are_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stuck_in_here(event: threading.Event) -> None:
        event.wait()

    event = threading.Event()
    thread = threading.Thread(target=stuck_in_here, args=(event,))
    thread.start()
    try:
        with Watchdog(0.2, tmp_path, rank=3) as watchdog:
            for _ in range(10):  # busy, but alive
                time.sleep(0.05)
                watchdog.beat()
            assert not watchdog.path.exists()
            time.sleep(1.0)
            watchdog.beat()
            first = watchdog.path.read_text()
            time.sleep(1.0)  # another stall
    finally:
        event.set()
        thread.join()
    assert first.count("stuck_in_here") == 1
    text = (tmp_path / "stall-rank3.txt").read_text()
    assert text.count("rank 3: nothing finished for") == 2
    assert "stuck_in_here" in capsys.readouterr().err
