"""Preparing shards: the same bytes however it is done and however often it is interrupted; bad samples are listed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import shard_samples as world

from components.datasets.config_shards import WebDataset
from components.datasets.webdataset import build
from components.rendering import render
from components.shards import index as indexes
from components.shards.files import UNFINISHED as STATE
from components.shards.index import NAME
from components.shards.reader import ShardDataset
from components.shards.verify import LEDGER, repair, verify
from components.tokenizers import Tokenizer
from ghostvis_plugins.errors import ConfigError, DataError, UnavailableError
from ghostvis_plugins.manager import Registry
from ghostvis_plugins.types import Image, Sample
from stages import prepare as module
from stages.prepare import Job, Prepared, prepare

SCENES = {"size": 120}
SMALL = 0.05  # MB: several shards of anything


def run(folder: Path, name: str = "faulty", workers: int = 1, **options: Any) -> Prepared:
    job = Job(name, options.pop("options", {}), "train", folder, shard_mb=SMALL, **options)
    return prepare(job, world.registry(), workers=workers)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def with_bytes(sample: Sample) -> Sample:
    """A sample whose pictures are bytes, as they are out of a shard."""
    from dataclasses import replace

    if not hasattr(sample, "messages"):
        return sample
    turns = [
        replace(m, parts=tuple(Image(data=p.read()) if isinstance(p, Image) else p for p in m.parts))
        for m in sample.messages
    ]
    return replace(sample, messages=tuple(turns))


def test_what_is_prepared_is_the_data_set(tmp_path: Path) -> None:
    done = run(tmp_path / "train", "scenes", options=SCENES)
    assert (done.samples, done.bad, done.new) == (120, 0, True)
    assert done.shards > 2
    registry = world.registry()
    source = registry.get("dataset", "scenes").load_build()(
        registry.make_config("dataset", "scenes", SCENES), split="train"
    )
    prepared = build(WebDataset(path=str(tmp_path), validation=0), split="train")
    assert len(prepared) == len(source)
    for number in range(len(source)):
        assert prepared[number] == with_bytes(source[number])
        assert prepared.length(number) == source.length(number)
    assert not verify(tmp_path / "train").damage
    names = {path.name for path in (tmp_path / "train").iterdir()}
    assert names == {NAME, *(f"scenes-train-{number:06d}.tar" for number in range(done.shards))}


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path) -> None:
    run(tmp_path / "one", "scenes", options=SCENES)
    run(tmp_path / "two", "scenes", workers=2, options=SCENES)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert not (tmp_path / "one" / STATE).exists()


def test_done_is_done_and_something_else_is_refused(tmp_path: Path) -> None:
    first = run(tmp_path / "a", max_bad_fraction=1.0)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    again = run(tmp_path / "a")
    assert (again.new, again.samples, again.bytes) == (False, first.samples, first.bytes)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()} == before
    with pytest.raises(ConfigError, match="holds other data: its options"):
        run(tmp_path / "a", options={"size": 9})


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, workers: int) -> None:
    """kill -9 in the middle: what is complete is kept, the rest is made again."""
    run(tmp_path / "whole" / "scenes" / "train", "scenes", options={"size": 400})
    command = [sys.executable, "-m", "ghostvis_cli", "data", "prepare", "scenes", "--set", "size=400"]
    command += ["--shard-size", str(SMALL), "--out", str(tmp_path / "killed")]
    folder = tmp_path / "killed" / "scenes" / "train"
    process = subprocess.Popen([*command, "--workers", str(workers)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((folder / STATE).glob("0*.npz"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert not (folder / NAME).exists()
    with pytest.raises(DataError, match="is not finished"):
        build(WebDataset(path=str(folder.parent)), split="train")
    with pytest.raises(DataError, match="is not finished"):
        repair(folder)
    kept = [folder / f"scenes-train-{path.stem}.tar" for path in (folder / STATE).glob("0*.npz")]
    times = [path.stat().st_mtime_ns for path in kept]
    (folder / ".partial-1-scenes-train-000003.tar").write_bytes(b"half a shard")
    subprocess.run(command, check=True, capture_output=True)
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


@pytest.mark.slow
def test_workers_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ghostvis_cli", "data", "prepare", "scenes", "--set", "size=100000"]
    process = subprocess.Popen(
        [*command, "--shard-size", "1", "--out", str(tmp_path), "--workers", "2"],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob(".partial-*.tar")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail("a worker outlived its parent")


FAULTS = {"broken": (3, 5), "surrogate": (7,), "silent": (9,)}


def test_bad_samples_are_left_out_and_listed(tmp_path: Path) -> None:
    done = run(tmp_path / "train", options=FAULTS, max_bad_fraction=0.2)
    assert (done.samples, done.bad) == (20, 4)
    rows = [json.loads(line) for line in (tmp_path / "train" / LEDGER).read_text().splitlines()]
    assert [row["id"] for row in rows] == ["faulty/3", "faulty/5", "faulty/7", "faulty/9"]
    assert {row["source"] for row in rows} == {"faulty"}
    for row, reason in zip(rows, ["damaged PNG", "damaged PNG", "not valid Unicode", "empty answer"], strict=True):
        assert reason in row["reason"]
    found = build(WebDataset(path=str(tmp_path / "train"), validation=0), split="train")
    assert [found[number].id for number in range(3, 6)] == ["faulty/4", "faulty/6", "faulty/8"]


def test_too_many_bad_samples_stop_with_a_table_and_go_on_later(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="are allowed") as raised:
        run(tmp_path / "train", options=FAULTS)
    assert "is a damaged PNG file" in raised.value.message
    assert "--max-bad-fraction" in raised.value.hint
    assert not (tmp_path / "train" / NAME).exists()
    assert (tmp_path / "train" / LEDGER).is_file()
    run(tmp_path / "train", options=FAULTS, max_bad_fraction=0.2)
    run(tmp_path / "other", options=FAULTS, max_bad_fraction=0.2)
    assert content(tmp_path / "train") == content(tmp_path / "other")


def test_repeated_ids_are_cut_out(tmp_path: Path) -> None:
    done = run(tmp_path / "train", options={"repeat": (4, 5, 20)}, max_bad_fraction=0.2)
    assert (done.samples, done.bad) == (21, 3)
    dataset = ShardDataset(indexes.load(tmp_path / "train" / NAME))
    ids = [dataset[number].id for number in range(len(dataset))]
    assert ids == [f"faulty/{number}" for number in range(24) if number not in (4, 5, 20)]
    assert not verify(tmp_path / "train").damage
    rows = [json.loads(line) for line in (tmp_path / "train" / LEDGER).read_text().splitlines()]
    assert [(row["id"], row["reason"]) for row in rows] == [
        ("faulty/0", "another sample before it has the same id")
    ] * 3
    with pytest.raises(DataError, match="another sample before it has the same id"):
        run(tmp_path / "strict", options={"repeat": (4, 5, 20)})


def test_an_interruption_while_repeated_ids_are_cut_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"repeat": (4, 20)}
    run(tmp_path / "whole", options=options, max_bad_fraction=0.2)

    def power_cut(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.indexes, "write", power_cut)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", options=options, max_bad_fraction=0.2)
    run(tmp_path / "cut", options=options, max_bad_fraction=0.2)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_two_ids_of_one_hash_are_two_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.shards.writer.id_hash", lambda id: 7)
    assert run(tmp_path, options={"repeat": (4,)}, max_bad_fraction=0.2).samples == 23


def test_a_data_set_of_nothing_usable_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of 64 samples can be used") as raised:
        run(tmp_path, options={"surrogate": tuple(range(24))})
    assert "not valid Unicode" in raised.value.hint


def test_tokens_are_counted_as_training_counts_them(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    tiny_tokenizer.save(tmp_path / "words")
    run(tmp_path / "train", "colours", tokenizer=tmp_path / "words")
    index = indexes.load(tmp_path / "train" / NAME)
    assert index.tokenizer == tiny_tokenizer.fingerprint == Tokenizer.load(tmp_path / "words").fingerprint
    dataset = ShardDataset(index)
    for number in range(len(dataset)):
        rendered = render(dataset[number], tiny_tokenizer, 9)
        row = index.rows[number]
        assert row["text_tokens"] + 9 * row["pictures"] == len(rendered.ids)
        assert row["answer_tokens"] == rendered.targets
    with pytest.raises(ConfigError, match="its tokenizer is"):
        run(tmp_path / "train", "colours")


def test_a_remote_stream_becomes_indexed_shards(tmp_path: Path) -> None:
    some = world.samples(12)
    source = world.write(tmp_path / "source", some)
    url = f"pipe:cat {source}/mixed-train-{{000000..000002}}.tar"
    registry = Registry.load()
    done = prepare(Job("webdataset", {"path": url}, "train", tmp_path / "out"), registry, workers=1)
    assert (done.samples, done.shards) == (12, 3)
    dataset = ShardDataset(indexes.load(tmp_path / "out" / NAME))
    assert [dataset[number] for number in range(12)] == some
    broken = {"path": f"pipe:head -c 3000 {source}/mixed-train-000001.tar"}
    with pytest.raises(UnavailableError, match="the stream broke off"):
        prepare(Job("webdataset", broken, "train", tmp_path / "broken"), registry)
    assert not list((tmp_path / "broken").glob("*.tar"))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="cannot write"):
        run(tmp_path / "file" / "train")
