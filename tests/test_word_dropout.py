"""Word dropout changes what is read, never what is learnt, and depends on nothing but seed and position."""

from __future__ import annotations

import random

import torch

from components.batch import Batch
from components.rendering import render
from components.tokenizers import Tokenizer
from ghostvis_plugins.types import Conversation, SampleList, assistant, user
from stages.data import Stream

TOKENIZER = Tokenizer.train(["what is this? a yellow boat on the water"] * 20, 300)
SAMPLES = [
    Conversation((user(f"what is number {n}?"), assistant("a yellow boat on the water " * 3)), id=f"s{n}")
    for n in range(8)
]


def stream(word_dropout: float) -> Stream:
    datasets = {"boats": (SampleList(SAMPLES), 1.0)}
    return Stream(datasets, TOKENIZER, 0, seed=3, limit=1000, word_dropout=word_dropout)


def test_targets_stay_and_about_the_share_of_inputs_changes() -> None:
    rendered = render(SAMPLES[0], TOKENIZER, 0)
    generator = random.Random(0)
    changed = total = 0
    for _ in range(50):
        dropped = rendered.drop_words(0.3, TOKENIZER, generator)
        assert dropped.ids == rendered.ids
        assert dropped.inputs is not None
        for place, (was, now) in enumerate(zip(rendered.ids, dropped.inputs, strict=True)):
            last = place + 1 < len(rendered.ids) and rendered.ids[place + 1] in TOKENIZER.control_ids
            if not rendered.loss_mask[place] or was in TOKENIZER.control_ids or last:
                assert now == was
            else:
                total += 1
                changed += now != was
                assert now not in TOKENIZER.control_ids
    assert 0.25 < changed / total < 0.35


def test_an_answer_of_one_token_is_always_read_as_it_is() -> None:
    one = render(Conversation((user("ok?"), assistant("a"), user("and?"), assistant("b"))), TOKENIZER, 0)
    assert one.drop_words(0.99, TOKENIZER, random.Random(0)).inputs == one.ids


def test_the_same_sample_is_read_the_same_whatever_the_step_size() -> None:
    small, large = stream(0.3), stream(0.3)
    one_by_one = {drawn.position: drawn.rendered for _ in range(6) for drawn in small.next_step(1, 1).samples}
    together = {drawn.position: drawn.rendered for drawn in large.next_step(10_000, 10_000).samples}
    assert len(one_by_one) == 6
    assert all(rendered.inputs == together[position].inputs for position, rendered in one_by_one.items())
    assert any(rendered.inputs != rendered.ids for rendered in together.values())


def test_a_batch_reads_the_inputs_and_is_scored_on_the_ids() -> None:
    plan = stream(0.3).next_step(200, 200)
    batch = Batch.pack([drawn.rendered for drawn in plan.samples])
    assert batch.inputs is not None
    assert not torch.equal(batch.inputs, batch.ids)
    plain = Batch.pack([render(SAMPLES[0], TOKENIZER, 0)])
    assert plain.inputs is None
