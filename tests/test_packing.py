"""Packing: every sample once, no bin too full, nothing cut, every rank busy; and streams that do not depend on it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miniature import EncoderOptions, Options, TinyEncoder, build_colours, build_texts, square

from components.batch import Batch
from components.rendering import Rendered
from components.tokenizers import Tokenizer
from ghostvis_plugins.errors import ConfigError, DataError
from ghostvis_plugins.types import Conversation, Document, Image, SampleList, assistant, user
from stages.data import Collator, Stream
from stages.ledger import BadSample, Ledger
from stages.packing import capacity_for, deal, pack

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


@given(lengths, st.integers(1, 8), st.integers(50, 300))
@settings(deadline=None)
def test_dealing_gives_each_bin_to_one_rank(lengths: list[int], ranks: int, micro: int) -> None:
    capacity = capacity_for(lengths, micro, ranks)
    assert capacity <= micro
    bins = pack(lengths, capacity)
    hands = deal(bins, lengths, ranks)
    assert sorted(b for hand in hands for b in hand) == list(range(len(bins)))
    loads = [sum(lengths[i] for b in hand for i in bins[b]) for hand in hands]
    assert max(loads) - min(loads) <= capacity  # longest processing time first: off by at most one bin


def test_every_rank_gets_work_when_there_is_enough() -> None:
    sizes = [10] * 64
    hands = deal(pack(sizes, capacity_for(sizes, 10_000, 4)), sizes, 4)
    assert all(hands)


def stream(**options: object) -> Stream:
    given = {"seed": 1, "limit": 100} | options
    datasets = {
        "colours": (build_colours(Options(), split="train"), 2.0),
        "texts": (build_texts(Options(), split="train"), 1.0),
    }
    return Stream(given.pop("datasets", datasets), TOKENIZER, 4, **given)  # type: ignore[arg-type]


def test_steps_continue_where_the_state_says() -> None:
    whole = stream()
    plans = [whole.next_step(150) for _ in range(9)]
    first = stream()
    for _ in range(4):
        first.next_step(150)
    resumed = stream(state=first.mixture.state, data_hash=first.data_hash)
    for expected in plans[4:]:
        plan = resumed.next_step(150)
        assert [d.rendered.id for d in plan.samples] == [d.rendered.id for d in expected.samples]
        assert plan.data_hash == expected.data_hash
    assert len({plan.data_hash for plan in plans}) == len(plans)


def test_a_step_reaches_its_tokens_and_no_more() -> None:
    plan = stream().next_step(150)
    assert plan.tokens >= 150 > plan.tokens - plan.lengths[-1]
    assert plan.tokens == sum(plan.lengths)
    assert plan.targets == sum(d.rendered.targets for d in plan.samples)
    assert plan.images == sum(len(d.rendered.images) for d in plan.samples)


def test_samples_kept_for_the_next_epoch_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def hashes() -> list[str]:
        s = stream()
        return [s.next_step(400).data_hash for _ in range(20)]

    kept = hashes()
    monkeypatch.setattr("stages.data.RENDERED_BYTES", 0)
    assert hashes() == kept


def test_long_documents_are_cropped_and_counted() -> None:
    data = {"d": (SampleList([Document("red fox " * 60, "d0")]), 1.0)}
    plan = stream(datasets=data, limit=30).next_step(60)
    assert plan.lengths == [30, 30]
    assert plan.cropped == 2


def test_long_conversations_stop_the_run_or_are_counted() -> None:
    talk = [
        Conversation((user("red " * 60), assistant("x")), id="c0"),
        Conversation((user("a"), assistant("b")), id="c1"),
    ]
    data = {"c": (SampleList(talk), 1.0)}
    with pytest.raises(ConfigError, match=r"'c0' has \d+ tokens, and 30 fit"):
        stream(datasets=data, limit=30).next_step(60)
    plan = stream(datasets=data, limit=30, too_long="skip").next_step(60)
    assert {d.rendered.id for d in plan.samples} == {"c1"}
    assert plan.skipped >= 1
    with pytest.raises(DataError, match="no sample of the data set 'c' can be used"):
        stream(datasets={"c": (SampleList(talk[:1]), 1.0)}, limit=30, too_long="skip").next_step(60)


def test_unusable_samples_are_named() -> None:
    good, mute = Conversation((user("a"), assistant("b")), id="good"), Conversation((user("a"),), id="mute")
    data = {"c": (SampleList([good, mute]), 1.0)}
    plan = stream(datasets=data).next_step(60)
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
    encoder = TinyEncoder(EncoderOptions())
    ((batch, kept),), bad = Collator(encoder, None)([sorted(plan.samples, key=lambda d: d.rendered.id)])
    assert [d.rendered.id for d in kept] == batch.sample_ids == ["a", "c"]
    assert [b.id for b in bad] == ["b"]
    assert isinstance(batch, Batch)
    assert batch.pixels is not None
    assert batch.pixels[0, 0].mean() > 0 > batch.pixels[1, 0].mean()  # red, then blue


def test_a_bin_of_bad_samples_leaves_no_batch() -> None:
    broken = Conversation((user(Image(data=b"junk"), "?"), assistant("x")), id="x")
    plan = stream(datasets={"c": (SampleList([broken]), 1.0)}).first(1)
    batches, bad = Collator(TinyEncoder(EncoderOptions()), None)([plan.samples])
    assert batches == []
    assert len(bad) == 1


def test_the_ledger_stops_above_its_share(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "bad.jsonl", fraction=0.02, samples=100)
    found = [BadSample("s", str(i), "broken\nwith details") for i in range(3)]
    ledger.add(found[:2], 1)
    ledger.add(found[:2], 2)  # the same ones again: still two
    again = Ledger(tmp_path / "bad.jsonl", fraction=0.02, samples=100)
    again.load()
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
