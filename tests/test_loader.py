"""Work ahead: the same steps, batches and errors for any number of threads and any look-ahead; clean ends; bad data."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from miniature import (
    EncoderOptions,
    Options,
    TinyEncoder,
    build_colours,
    build_texts,
    registry,
    values,
)
from pydantic import BaseModel
from safetensors.torch import load_file

from components.batch import Batch
from components.tokenizers import CONTROL_TOKENS, Tokenizer
from components.trackers.jsonl import read_metrics
from ghostvis_plugins import ComponentSpec, dataset, tracker
from ghostvis_plugins.errors import ConfigError, DataError
from ghostvis_plugins.types import Conversation, Image, Sample, SampleList, Split, assistant, user
from stages.config import AlignConfig
from stages.data import Stream
from stages.distributed import Distributed
from stages.features import FeatureCache
from stages.ledger import BadSample, by_index
from stages.loader import Collator, Loader
from stages.loop import MEASURED
from stages.order import Order
from stages.packing import Cost
from stages.runner import run
from stages.workers import Ahead, Workers

TOKENIZER = Tokenizer.train(["What colour is it? red green blue the fox sees a leaf"] * 9, 320)
SETTINGS = [(0, 0), (2, 0), (0, 1), (1, 2), (4, 7)]  # workers, prefetch
EVERYTHING = {"projector": 1e-2, "backbone": 1e-2}


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while any(t.name.startswith("ghostvis") for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [t.name for t in threading.enumerate() if t.name.startswith("ghostvis")] == []


def followed(
    workers: int, prefetch: int, steps: int = 8, features: bool = False, data: dict[str, Any] | None = None
) -> list[Any]:
    """Everything that the loop sees of some steps; an error ends the list."""
    encoder = TinyEncoder(EncoderOptions()).requires_grad_(False)
    torch.nn.init.constant_(encoder.patches.weight, 0.1)
    torch.nn.init.zeros_(encoder.patches.bias)
    config = AlignConfig(steps=steps, batch_tokens=150, micro_tokens=80, workers=workers, prefetch=prefetch)
    mixture = data or {
        "colours": (build_colours(Options(broken=4, mute=2), split="train"), 2.0),
        "texts": (build_texts(Options(), split="train"), 1.0),
    }
    seen: list[Any] = []
    pool = Workers(workers)
    cache = None
    if features:
        cache = FeatureCache(encoder, {}, on_disk=False, memory_bytes=2000, encode_batch=3, device=torch.device("cpu"))
    stream = Stream(mixture, TOKENIZER, 4, seed=3, limit=80, workers=pool)
    collator = Collator(encoder, cache, workers=pool)
    try:
        with Loader(stream, collator, config, Distributed(), Cost(), steps) as loader:
            for _ in range(steps):
                step = loader.next_step()
                batches = [tensors(batch) for batch in step.batches()]
                plan = step.plan
                seen.append((plan.data_hash, plan.rows, plan.bad, plan.state.to_json(), step.bad, batches))
    except Exception as error:
        seen.append((type(error), str(error), getattr(error, "__notes__", None)))
    finally:
        pool.close()
    return seen


def tensors(batch: Batch) -> dict[str, Any]:
    found = {name: getattr(batch, name) for name in ("ids", "cu_seqlens", "loss_mask", "pixels", "features")}
    return {name: None if t is None else t.tolist() for name, t in found.items()} | {"samples": batch.sample_ids}


@pytest.mark.parametrize("features", [False, True])
def test_steps_do_not_depend_on_threads(features: bool) -> None:
    expected = followed(0, 0, features=features)
    assert len(expected) == 8
    assert any(bad for _, _, bad, *_ in expected)  # samples without an answer
    assert any(bad for *_, bad, _ in expected)  # and with broken pictures
    for workers, prefetch in SETTINGS[1:]:
        assert followed(workers, prefetch, features=features) == expected, (workers, prefetch)


class Failing(SampleList):
    """Samples of which one is beyond hope: reading it is a defect."""

    def __init__(self, samples: list[Sample], bad: int) -> None:
        super().__init__(samples)
        self.bad = bad

    def __getitem__(self, index: int) -> Sample:
        if index == self.bad:
            raise ZeroDivisionError("a defect")
        return super().__getitem__(index)


def test_errors_come_in_their_turn_as_they_are() -> None:
    late = Order(3, "c", 200)(120)
    samples: list[Sample] = [
        Conversation((user("red"), assistant("blue " * (1 + n % 3))), id=str(n)) for n in range(200)
    ]
    long = [*samples]
    long[late] = Conversation((user("red " * 99), assistant("b")), id="long")
    for data, kind in ((Failing(samples, late), ZeroDivisionError), (SampleList(long), ConfigError)):
        expected = followed(0, 0, steps=99, data={"c": (data, 1.0)})
        assert expected[-1][0] is kind
        assert len(expected) > 5
        for workers, prefetch in SETTINGS[1:]:
            assert followed(workers, prefetch, steps=99, data={"c": (data, 1.0)}) == expected
    assert expected[-1][1].startswith("sample 'long' has")


def test_no_more_is_prepared_than_allowed() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    with Ahead(numbers(), 3) as ahead:
        assert next(ahead) == 0
        _until(lambda: len(made) == 4)
        time.sleep(0.05)
        assert made == [0, 1, 2, 3]
    time.sleep(0.02)
    assert len(made) <= 5


def test_an_iterator_ahead_ends_like_any_other() -> None:
    for depth in (0, 1, 5):
        with Ahead(iter(range(4)), depth) as ahead:
            assert list(ahead) == [0, 1, 2, 3]
            assert list(ahead) == []


def test_leaving_early_does_not_wait_for_what_nobody_wants() -> None:
    def slow() -> Iterator[int]:
        yield 0
        time.sleep(0.2)
        yield from range(1, 1000)

    began = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt), Ahead(slow(), 2) as ahead:
        assert next(ahead) == 0
        raise KeyboardInterrupt
    assert time.monotonic() - began < 2


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not true() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert true()


def test_runs_are_the_same_with_any_threads(start: Path, tmp_path: Path) -> None:
    """Bit for bit: metrics, weights, and the state of the data in the checkpoint, which knows nothing of look-ahead."""
    for features in ("none", "memory"):
        for workers, prefetch in ((0, 0), (3, 6)):
            given = values(
                start, stage__train=EVERYTHING, stage__features=features, stage__checkpoint_every=5,
                stage__workers=workers, stage__prefetch=prefetch, stage__keep_checkpoints=9,
            )  # fmt: skip
            run(given, registry(), tmp_path / f"{features}{workers}")
        first, second = tmp_path / f"{features}0", tmp_path / f"{features}3"
        assert _rows(first) == _rows(second)
        for step in (5, 10, 12):
            for name in ("model.safetensors", "state.json"):
                files = [folder / "checkpoints" / f"step_{step}" / name for folder in (first, second)]
                assert files[0].read_bytes() == files[1].read_bytes(), (step, name)


def test_an_interrupted_run_leaves_no_thread(start: Path, tmp_path: Path) -> None:
    """Ctrl-C in the middle of a step, with batches ready that nobody takes."""

    class Interrupt:
        def __init__(self, config: HurtOptions, *, run_dir: Path) -> None: ...

        def log(self, step: int, metrics: Any) -> None:
            if step == 3:
                raise KeyboardInterrupt

        def finish(self) -> None: ...

    given = values(start, stage__prefetch=9, stage__workers=3, tracker={"name": "interrupt"})
    with pytest.raises(KeyboardInterrupt):
        run(given, registry(tracker("interrupt", config=HurtOptions, build=Interrupt)), tmp_path / "a")
    assert len(read_metrics(tmp_path / "a")) == 3


def test_unpacked_equals_packed(start: Path, tmp_path: Path) -> None:
    """One sample a forward pass: the reference of everything that packing could do wrong."""
    for packing in (True, False):
        given = values(start, stage__train=EVERYTHING, stage__packing=packing)
        run(given, registry(), tmp_path / str(packing))
    for row, other in zip(_rows(tmp_path / "True"), _rows(tmp_path / "False"), strict=True):
        assert row["data_hash"] == other["data_hash"]
        assert row["samples"] > 4
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("True", "False")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5)


def _rows(run_dir: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in read_metrics(run_dir)]


# Bad data in a real run.


def jpeg(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 200 megapixels in 20 KB: the header and the start of a stream of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(20_000_000), 9)
    assert len(data) < 20_000
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


class Hurt(SampleList):
    """A data set as disks give it, which knows in which shard a sample lies."""

    def __init__(self, size: int) -> None:
        good = [
            Conversation((user(Image(data=jpeg(n)), "What colour is it?"), assistant("red")), id=f"s{n}")
            for n in range(size)
        ]
        super().__init__(good)
        self.reads: list[int] = []

    def __getitem__(self, index: int) -> Sample:
        self.reads.append(index)
        sample = super().__getitem__(index)
        assert isinstance(sample, Conversation)
        question, answer = sample.messages
        if index == 0:
            return Conversation((user(Image(data=jpeg(0)[:-300]), "?"), answer), id="truncated")
        if index == 1:
            return Conversation((user(Image(data=bomb()), "?"), answer), id="bomb")
        if index == 2:
            return Conversation((question, assistant(" \n")), id="empty")
        if index == 3:
            raise DataError("2 image parts, but 1 image")
        if index == 4:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
        if index == 5:
            return Conversation((user(*question.parts, "".join(CONTROL_TOKENS)), answer), id="control")
        return sample

    def shard_of(self, index: int) -> str:
        return f"{index // 100:06}.tar"


class HurtOptions(BaseModel):
    size: int = 60


def hurt() -> tuple[ComponentSpec, list[Hurt]]:
    made: list[Hurt] = []

    def build(config: HurtOptions, *, split: Split) -> Hurt:
        made.append(Hurt(config.size))
        return made[-1]

    return dataset("hurt", config=HurtOptions, build=build), made


def hurt_values(start: Path, **more: Any) -> dict[str, Any]:
    small = {"stage__steps": 20, "stage__batch_tokens": 400, "stage__micro_tokens": 128, "stage__eval_samples": 0}
    return values(start, dataset={"hurt": {}}, **{**small, **more})


BAD = {"truncated", "bomb", "empty", "hurt[3]", "hurt[4]"}


def test_bad_samples_are_named_and_the_run_goes_on(start: Path, tmp_path: Path) -> None:
    spec, _ = hurt()
    run(hurt_values(start, stage__max_bad_fraction=0.1), registry(spec), tmp_path / "a")
    lines = [json.loads(line) for line in (tmp_path / "a" / "bad_samples.jsonl").read_text().splitlines()]
    found = {entry["id"]: entry for entry in lines}
    assert found.keys() == BAD
    assert len(lines) == len(BAD)
    assert "truncated" in found["truncated"]["reason"]
    assert "too large" in found["bomb"]["reason"]
    assert found["empty"]["reason"] == "empty answer"
    assert found["hurt[3]"]["reason"] == "2 image parts, but 1 image"
    assert found["hurt[4]"]["reason"].startswith("UnicodeDecodeError")
    assert {entry["shard"] for entry in lines} == {"000000.tar"}
    assert sorted(entry["index"] for entry in lines) == [0, 1, 2, 3, 4]
    assert _rows(tmp_path / "a")[-1]["bad_samples"] == 5


def test_above_the_quota_the_run_stops_with_a_table(start: Path, tmp_path: Path) -> None:
    spec, _ = hurt()
    with pytest.raises(DataError) as caught:
        run(hurt_values(start, stage__max_bad_fraction=0.05), registry(spec), tmp_path / "a")
    assert "unusable of 60 training samples, and 3 are allowed" in caught.value.message
    assert "in 000000.tar" in caught.value.message
    assert "max_bad_fraction" in caught.value.hint
    assert AlignConfig(steps=1).max_bad_fraction == 0.001
    with pytest.raises(DataError, match="1 unusable of 60 training samples, and 0 are allowed"):
        run(hurt_values(start), registry(hurt()[0]), tmp_path / "b")


def test_bad_samples_are_replayed_not_read(start: Path, tmp_path: Path) -> None:
    given = hurt_values(
        start, stage__max_bad_fraction=0.1, stage__checkpoint_every=4, stage__keep_checkpoints=9, stage__features="none"
    )
    run(given, registry(hurt()[0]), tmp_path / "whole")
    run({**given, "stage": {**given["stage"], "steps": 12}}, registry(hurt()[0]), tmp_path / "parts")
    whole = read_metrics(tmp_path / "whole")
    met = {json.loads(line)["step"] for line in (tmp_path / "whole" / "bad_samples.jsonl").read_text().splitlines()}
    ledger = tmp_path / "parts" / "bad_samples.jsonl"
    known = {json.loads(line)["index"] for line in ledger.read_text().splitlines()}
    assert {2, 3} <= known
    for step in (12, 8):  # back to step 4, of which the ledger knows later samples, too
        shutil.rmtree(tmp_path / "parts" / "checkpoints" / f"step_{step}")
    with ledger.open("a") as file:
        file.write('{"source": "hurt", "id": "cut by a cra')
    spec, made = hurt()
    run(given, registry(spec), tmp_path / "parts", resume=True)
    assert not {2, 3, 4} & known & set(made[0].reads)
    assert met
    for row, other in zip(_rows(tmp_path / "parts"), _rows(tmp_path / "whole"), strict=True):
        assert {**row, "lr": 0} == {**other, "lr": 0} or row["step"] <= 4  # shorter runs have another schedule
        assert row["data_hash"] == whole[row["step"] - 1]["data_hash"]
    lines = [json.loads(line)["id"] for line in ledger.read_text().splitlines()]
    assert sorted(lines) == sorted(BAD)


def test_known_bad_pictures_are_not_opened() -> None:
    samples = [Conversation((user(Image(data=jpeg(n)), "?"), assistant("red")), id=str(n)) for n in range(3)]
    plan = Stream({"c": (SampleList(samples), 1.0)}, TOKENIZER, 4, seed=0, limit=80).first(3)
    bad = BadSample("c", "1", "was broken", 1, "", True)
    batch, kept, found = Collator(TinyEncoder(EncoderOptions()), None, known_bad=by_index([bad]))(plan.samples)
    assert found == [bad]
    assert sorted(drawn.rendered.id for drawn in kept) == ["0", "2"]
    assert batch is not None
    assert batch.pixels is not None
    assert len(batch.pixels) == 2
