"""Packing: every sample once, no bin too full, nothing cut, every rank busy; and streams that do not depend on it."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from miniature import EncoderOptions, Options, TinyEncoder, build_colours, build_texts, square

from components.batch import Batch
from components.rendering import Rendered
from components.tokenizers import Tokenizer
from ghostvis_plugins.errors import ConfigError, DataError
from ghostvis_plugins.types import Conversation, Document, Image, SampleList, assistant, user
from stages.data import POOL, Stream, StreamState, _Read
from stages.ledger import BadSample, Ledger
from stages.loader import Collator
from stages.packing import Cost, pack, share
from stages.shares import realised

TOKENIZER = Tokenizer.train(["What colour is it? red green blue the fox sees a leaf"] * 9, 320)
lengths = st.lists(st.integers(1, 50), max_size=60)


@given(lengths, st.integers(50, 200))
@settings(deadline=None)
def test_bins_hold_every_sample_once(lengths: list[int], capacity: int) -> None:
    bins = pack(lengths, capacity)
    assert sorted(number for members in bins for number in members) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in members) <= capacity for members in bins)
    # Best fit leaves at most one bin less than half full: two such bins would have been one.
    assert sum(sum(lengths[i] for i in members) * 2 <= capacity for members in bins) <= 1
    assert pack(lengths, capacity) == bins


def test_a_sample_longer_than_a_bin_is_refused() -> None:
    with pytest.raises(ValueError, match="51 tokens"):
        pack([3, 51], 50)


@given(lengths, st.integers(1, 8), st.integers(50, 300), st.integers(50, 200), st.floats(20, 1e4), st.floats(0, 90))
@settings(deadline=None)
def test_every_rank_gets_its_share(
    lengths: list[int], ranks: int, micro: int, row: int, span: float, image: float
) -> None:
    """Each sample is on one rank once, no bin is too full, and no rank does more than one bin above its part."""
    rows = pack(lengths, row)
    costs = [Cost(span, image)(n, n % 3) for n in lengths]
    hands = share(rows, lengths, costs, micro, ranks)
    assert sorted(i for hand in hands for members in hand for i in members) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in members) <= micro for hand in hands for members in hand)
    bins = [sum(costs[i] for i in members) for hand in hands for members in hand]
    loads = [sum(costs[i] for members in hand for i in members) for hand in hands]
    assert max(loads) <= sum(costs) / ranks + max(bins, default=0) + 1e-6  # longest processing time first
    assert share(rows, lengths, costs, micro, ranks) == hands


def test_rows_are_kept_where_they_can_be_dealt() -> None:
    rows = [[0, 3], [1], [2, 4], [5]]
    assert share(rows, [5] * 6, [5.0] * 6, 10, 1) == [[[0, 3], [2, 4], [1], [5]]]
    assert share(rows, [5] * 6, [5.0] * 6, 10, 2) == [[[0, 3], [1]], [[2, 4], [5]]]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_one_row_is_levelled_onto_all_ranks(ranks: int) -> None:
    sizes = [40, 10, 10, 30, 20, 10, 10, 10, 20] * 4
    hands = share([list(range(36))], sizes, sizes, 10_000, ranks)
    loads = [sum(sizes[i] for members in hand for i in members) for hand in hands]
    assert max(loads) <= 1.1 * sum(sizes) / ranks


def test_pictures_weigh_on_the_balance() -> None:
    """Four rows of equal length, one of them full of pictures: it is alone on its rank."""
    rows, lengths = [[0], [1], [2], [3]], [100] * 4
    costs = [Cost(image=30)(100, images) for images in (10, 0, 0, 0)]
    assert share(rows, lengths, costs, 100, 2) == [[[0]], [[1], [2], [3]]]
    plain = [Cost()(100, images) for images in (10, 0, 0, 0)]
    assert share(rows, lengths, plain, 100, 2) == [[[0], [2]], [[1], [3]]]


def test_attention_is_quadratic_in_the_document() -> None:
    cost = Cost(span=1000)
    assert cost(1000, 0) == 2000
    assert 10 * cost(100, 0) == 1100
    assert Cost()(1000, 3) == 1000


def test_the_cost_of_a_model() -> None:
    """A plain transformer's span is 12 widths; its encoder counts by parameters and patches, or not at all."""
    dim, layers = 64, 3
    backbone = SimpleNamespace(n_layers=layers, dim=dim, parameters=lambda: [torch.empty(12 * dim * dim * layers)])
    encoder = SimpleNamespace(tokens=50, parameters=lambda: [torch.empty(12 * dim * dim)])
    model = SimpleNamespace(backbone=backbone, encoder=encoder, encoder_frozen=True)
    assert Cost.of(model, encodes=False) == Cost(span=12 * dim)
    assert Cost.of(model, encodes=True) == Cost(span=12 * dim, image=pytest.approx(50 / 3 / 3))


# Lengths as in vision_sft_minimal with 64 vectors a picture: weight by answer tokens, then median and spread (the
# sigma of a lognormal) of the question's tokens and of the answer's.
MINIMAL = {
    "llava_instruct": (50, (80, 0.5), (180, 0.8)),
    "vqav2": (20, (8, 0.3), (2, 0.4)),
    "textvqa": (12, (9, 0.3), (4, 0.6)),
    "chartqa": (10, (14, 0.4), (3, 0.5)),
    "smoltalk": (8, (150, 1.0), (500, 0.8)),
}


class Lengths:
    """A data set of documents whose tokenizer gives as many tokens as their text says, of which the last are learnt."""

    def __init__(self, name: str, seed: int) -> None:
        _, self.question, self.answer = MINIMAL[name]
        self.images, self.seed = int(name != "smoltalk"), f"{name}/{seed}"

    def __len__(self) -> int:
        return 20_000

    def sizes(self, index: int) -> tuple[int, int]:
        """Tokens read and tokens learnt."""
        generator = random.Random(f"{self.seed}/{index}")
        question, answer = (
            round(max(1, generator.lognormvariate(math.log(median), sigma)))
            for median, sigma in (self.question, self.answer)
        )
        return 64 * self.images + 14 + question, answer + 1


def minimal_stream(seed: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> Stream:
    """A stream of such lengths; rendering is left out, because only the number of tokens counts."""

    def read(self: Stream, key: tuple[str, int]) -> Any:
        read, learnt = self.datasets[key[0]].sizes(key[1])
        mask = [False] * read + [True] * learnt
        return _Read(Rendered([0] * len(mask), mask, [], (), f"{key[0]}/{key[1]}"))

    monkeypatch.setattr(Stream, "_read", read)
    datasets = {name: (Lengths(name, seed), float(weight)) for name, (weight, *_) in MINIMAL.items()}
    return Stream(datasets, TOKENIZER, 64, seed=seed, limit=limit, too_long="skip")


@pytest.mark.parametrize(("row", "rows"), [(2048, 1), (2048, 4), (4096, 1), (4096, 2)])
def test_rows_are_full(row: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    s = minimal_stream(0, row, monkeypatch)
    plans = [s.next_step(row * rows, row) for _ in range(60 // rows)]
    assert sum(plan.tokens for plan in plans) >= 0.97 * row * 60
    for plan in plans:
        assert len(plan.rows) == rows
        assert sorted(n for members in plan.rows for n in members) == list(range(len(plan.samples)))
        assert all(sum(plan.lengths[n] for n in members) <= row for members in plan.rows)
        assert plan.fill == plan.tokens / (row * rows)


@pytest.mark.parametrize("seed", range(3))
def test_shares_are_what_the_weights_say(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to one of the longest answers and what waits in the pool, though an answer has three tokens or a thousand."""
    s = minimal_stream(seed, 4096, monkeypatch)
    longest = 0
    while sum(taken.samples for taken in s.state.taken.values()) < 10_000:
        longest = max(longest, *(drawn.rendered.targets for drawn in s.next_step(4096, 4096).samples))
    shares = realised(s, s.state)
    total = sum(own.targets for own in shares)
    assert [own.name for own in shares] == list(MINIMAL)
    for own in shares:
        assert own.weight == pytest.approx(MINIMAL[own.name][0] / 100)
        assert own.target_share == pytest.approx(own.weight, abs=max(0.01, longest / total))


def test_ranks_are_balanced_on_real_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dearest rank does at most 5 % more than the mean, at any number of ranks, as long as each has two rows."""
    s = minimal_stream(1, 4096, monkeypatch)
    cost = Cost(span=12 * 960, image=150)
    for ranks in (2, 3, 4, 8):
        plan = s.next_step(16 * 4096, 4096)
        pictures = [int("smoltalk" not in d.rendered.id) for d in plan.samples]
        costs = [cost(n, i) for n, i in zip(plan.lengths, pictures, strict=True)]
        hands = share(plan.rows, plan.lengths, costs, 4096, ranks)
        loads = [sum(costs[i] for members in hand for i in members) for hand in hands]
        assert max(loads) <= 1.05 * sum(loads) / ranks, ranks


def stream(**options: object) -> Stream:
    given = {"seed": 1, "limit": 100} | options
    datasets = {
        "colours": (build_colours(Options(), split="train"), 2.0),
        "texts": (build_texts(Options(), split="train"), 1.0),
    }
    return Stream(given.pop("datasets", datasets), TOKENIZER, 4, **given)  # type: ignore[arg-type]


def test_steps_continue_where_the_state_says() -> None:
    whole = stream()
    plans = [whole.next_step(150, 100) for _ in range(9)]
    saved = json.loads(json.dumps(plans[3].state.to_json()))
    resumed = stream(state=StreamState.from_json(saved))
    for expected in plans[4:]:
        plan = resumed.next_step(150, 100)
        assert [d.rendered.id for d in plan.samples] == [d.rendered.id for d in expected.samples]
        assert plan.rows == expected.rows
        assert plan.data_hash == expected.data_hash
        assert plan.state == expected.state
    assert len({plan.data_hash for plan in plans}) == len(plans)


def test_a_step_is_its_rows() -> None:
    plan = stream().next_step(150, 100)
    assert len(plan.rows) == 2
    assert all(60 < sum(plan.lengths[n] for n in row) <= 75 for row in plan.rows)
    assert plan.room == 150
    assert plan.tokens == sum(plan.lengths)
    assert plan.targets == sum(d.rendered.targets for d in plan.samples)
    assert plan.images == sum(len(d.rendered.images) for d in plan.samples)


def test_nothing_waits_for_long() -> None:
    """Whatever fits better, the sample that waited longest is next to start a row."""
    s = stream()
    rows = [s.next_step(60, 60) for _ in range(300)]
    drawn = [(d.source, d.position) for plan in rows for d in plan.samples]
    assert len(drawn) == len(set(drawn))
    for source in ("colours", "texts"):
        positions = [position for name, position in drawn if name == source]
        assert set(range(max(positions) - 2 * POOL)) <= set(positions)
        assert max(abs(place - position) for place, position in enumerate(positions)) <= POOL + 1


def test_a_sample_longer_than_a_row_stands_alone() -> None:
    plan = stream().next_step(8, 8)
    assert len(plan.samples) == 1
    assert plan.room == plan.tokens > 8


def test_samples_kept_for_the_next_epoch_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def hashes() -> list[str]:
        s = stream()
        return [s.next_step(400, 100).data_hash for _ in range(20)]

    fresh = hashes()
    monkeypatch.setattr("stages.data.COSTLY", -1.0)  # every sample is worth it
    assert hashes() == fresh


def test_long_documents_are_cropped_and_counted() -> None:
    data = {"d": (SampleList([Document("red fox " * 60, "d0")]), 1.0)}
    plan = stream(datasets=data, limit=30).next_step(60, 30)
    assert plan.lengths == [30, 30]
    assert plan.cropped == 2


def test_long_conversations_stop_the_run_or_are_counted() -> None:
    talk = [
        Conversation((user("red " * 60), assistant("x")), id="c0"),
        Conversation((user("a"), assistant("b")), id="c1"),
    ]
    data = {"c": (SampleList(talk), 1.0)}
    with pytest.raises(ConfigError, match=r"'c0' has \d+ tokens, and 30 fit"):
        stream(datasets=data, limit=30).next_step(60, 100)
    plan = stream(datasets=data, limit=30, too_long="skip").next_step(60, 100)
    assert {d.rendered.id for d in plan.samples} == {"c1"}
    assert plan.skipped >= 1
    with pytest.raises(DataError, match="no sample of the data set 'c' can be used"):
        stream(datasets={"c": (SampleList(talk[:1]), 1.0)}, limit=30, too_long="skip").next_step(60, 100)


def test_unusable_samples_are_named() -> None:
    good, mute = Conversation((user("a"), assistant("b")), id="good"), Conversation((user("a"),), id="mute")
    data = {"c": (SampleList([good, mute]), 1.0)}
    plan = stream(datasets=data).next_step(60, 100)
    assert {d.rendered.id for d in plan.samples} == {"good"}
    assert plan.bad[0].id == "mute"
    assert "nothing to learn" in plan.bad[0].reason


def test_an_empty_data_set_is_an_error() -> None:
    with pytest.raises(DataError, match="'c' has no samples"):
        stream(datasets={"c": (SampleList([]), 1.0)})


def test_validation_takes_each_sample_once() -> None:
    names = [d.rendered.id for d in stream().first(50).samples]
    assert len(names) == len(set(names)) == 50
    assert len(stream().first(1000).samples) == 80
    assert [d.rendered.id for d in stream().first(20).samples] == names[:20]


def test_unreadable_pictures_leave_the_batch_whole() -> None:
    """The sample with a broken picture falls out; the others keep their own pictures."""
    red, blue = square((220, 0, 0)), square((0, 0, 220))
    turns = [("a", red), ("b", Image(data=b"junk")), ("c", blue)]
    samples = [Conversation((user(picture, "?"), assistant(name)), id=name) for name, picture in turns]
    plan = stream(datasets={"c": (SampleList(samples), 1.0)}).first(3)
    batch, kept, bad = Collator(TinyEncoder(EncoderOptions()), None)(sorted(plan.samples, key=lambda d: d.rendered.id))
    assert batch is not None
    assert [d.rendered.id for d in kept] == batch.sample_ids == ["a", "c"]
    assert [(b.id, b.index, b.picture) for b in bad] == [("b", 1, True)]
    assert batch.pixels is not None
    assert batch.pixels[0, 0].mean() > 0 > batch.pixels[1, 0].mean()  # red, then blue


def test_a_bin_of_bad_samples_leaves_no_batch() -> None:
    broken = Conversation((user(Image(data=b"junk"), "?"), assistant("x")), id="x")
    plan = stream(datasets={"c": (SampleList([broken]), 1.0)}).first(1)
    batch, kept, bad = Collator(TinyEncoder(EncoderOptions()), None)(plan.samples)
    assert batch is None
    assert kept == []
    assert len(bad) == 1


def test_a_ledger_survives_whatever_a_reason_says(tmp_path: Path) -> None:
    reasons = ["a\u2028b", "c\u0085d", "caf\udce9.png", "e\nf"]
    bad = [BadSample("web", f"x{n}\udcff", reason, n) for n, reason in enumerate(reasons)]
    Ledger(tmp_path / "bad.jsonl", fraction=1, samples=100).add(bad, 3)
    again = Ledger(tmp_path / "bad.jsonl", fraction=1, samples=100)
    again.load(3)
    assert set(again.entries.values()) == set(bad)


def test_the_ledger_stops_above_its_share(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "bad.jsonl", fraction=0.02, samples=100)
    found = [BadSample("s", str(i), "broken\nwith details") for i in range(3)]
    ledger.add(found[:2], 1)
    ledger.add(found[:2], 2)  # the same ones again: still two
    again = Ledger(tmp_path / "bad.jsonl", fraction=0.02, samples=100)
    again.load(2)
    with pytest.raises(DataError, match=r"3 unusable of 100 training samples, and 2 are allowed\n +3  broken"):
        again.add(found[2:], 3)
    assert (tmp_path / "bad.jsonl").read_text().count("\n") == 3


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=12))
@settings(deadline=None)
def test_image_spans_are_never_cut(shapes: list[tuple[int, int, int]]) -> None:
    """Whatever the bins, each batch holds each of its samples' spans whole, on placeholders only."""
    samples = []
    for number, (before, images, size) in enumerate(shapes):
        ids, spans = [1] * before, []
        for _ in range(images):
            spans.append((len(ids), size))
            ids += [9] * size
        ids += [2, 3]
        mask = [False] * (len(ids) - 1) + [True]
        samples.append(Rendered(ids, mask, spans, tuple(Image(data=b"x") for _ in spans), str(number)))
    sizes = [len(r.ids) for r in samples]
    for members in pack(sizes, max(sizes) + 5):
        batch = Batch.pack([samples[i] for i in members])
        assert batch.image_spans.shape[0] == sum(len(samples[i].image_spans) for i in members)
        for start, size in batch.image_spans.tolist():
            assert (batch.ids[start : start + size] == 9).all()
            assert len(set(batch.document_ids[start : start + size].tolist())) == 1
        assert int((batch.ids == 9).sum()) == int(batch.image_spans[:, 1].sum())
