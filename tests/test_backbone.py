"""Attention over packed documents and the gpt backbone: every shortcut equals the plain computation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from components.attention import PackedLayout, packed_attention
from components.backbones.config import GPT as Config
from components.backbones.functional import relu_squared, rms_norm, rotate, rotation
from components.backbones.gpt import GPT
from ghostvis_plugins import ConfigError, DataError

VOCAB = 50


def boundaries(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def positions(lengths: list[int]) -> Tensor:
    return torch.cat([torch.arange(n) for n in lengths])


def make(**options: Any) -> GPT:
    """A tiny gpt in which nothing is zero."""
    torch.manual_seed(0)
    model = GPT(Config(**{"depth": 2, "aspect": 16, "head_dim": 8, "max_positions": 64, **options}), VOCAB)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def run(model: GPT, ids: Tensor, lengths: list[int], **more: Any) -> Tensor:
    return model(model.embed(ids), positions=positions(lengths), cu_seqlens=boundaries(lengths), **more)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.sampled_from([1, 2, 4]))
def test_packed_attention_is_a_loop_over_documents(lengths: list[int], kv_heads: int) -> None:
    total = sum(lengths)
    q, k, v = (torch.randn(total, h, 8, dtype=torch.double, requires_grad=True) for h in (4, kv_heads, kv_heads))
    out = packed_attention(q, k, v, PackedLayout(boundaries(lengths)))
    naive = torch.empty(total, 4, 8, dtype=torch.double)
    for start, n in zip(boundaries(lengths).tolist(), lengths, strict=False):
        part = slice(start, start + n)
        for head in range(4):
            key, value = (x[part, head * kv_heads // 4] for x in (k, v))
            scores = (q[part, head] @ key.T / math.sqrt(8)).masked_fill(~torch.ones(n, n).tril().bool(), -math.inf)
            naive[part, head] = scores.softmax(-1) @ value
    torch.testing.assert_close(out, naive)
    weights = torch.randn_like(out)
    ours = torch.autograd.grad((out * weights).sum(), (q, k, v))
    theirs = torch.autograd.grad((naive * weights).sum(), (q, k, v))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("function", [rms_norm, relu_squared])
def test_hand_written_gradients(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(5, 8, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(function, x)


def test_norm_and_activation_are_those_of_torch() -> None:
    x = torch.randn(7, 16)
    torch.testing.assert_close(rms_norm(x), F.rms_norm(x, (16,), eps=1e-6))
    torch.testing.assert_close(relu_squared(x), F.relu(x).square())


def test_rotation_makes_products_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 16)
    products = [
        (rotate(q, rotation(torch.tensor([a]), 16, 1e4)) * rotate(k, rotation(torch.tensor([a + 5]), 16, 1e4))).sum()
        for a in (0, 3, 100)
    ]
    torch.testing.assert_close(products[0], products[1])
    torch.testing.assert_close(products[0], products[2])


@pytest.mark.parametrize("options", [{}, {"kv_heads": 1}, {"tie": True}])
def test_packed_hidden_states_are_those_of_each_document_alone(options: dict[str, Any]) -> None:
    model, lengths = make(**options), [3, 1, 17, 40, 33, 2]
    ids = torch.randint(VOCAB, (sum(lengths),))
    alone = torch.cat([run(model, part, [len(part)]) for part in ids.split(lengths)])
    torch.testing.assert_close(run(model, ids, lengths), alone, rtol=1e-5, atol=1e-5)


def test_a_document_never_attends_to_another_nor_to_its_future() -> None:
    model, lengths = make(), [5, 7, 6]
    ids = torch.randint(VOCAB, (18,))
    before = run(model, ids, lengths)
    for changed in range(18):
        other = ids.clone()
        other[changed] = (other[changed] + 1) % VOCAB
        after = run(model, other, lengths)
        document = [0] * 5 + [1] * 7 + [2] * 6
        sees = torch.tensor([document[t] == document[changed] and t >= changed for t in range(18)])
        torch.testing.assert_close(after[~sees], before[~sees], rtol=0, atol=1e-6)
        assert (after[sees] - before[sees]).abs().amax(-1).min() > 1e-4


def test_chosen_rows_equal_those_of_the_whole_and_so_do_their_gradients() -> None:
    model, lengths, rows = make().double(), [5, 7, 6], torch.tensor([0, 4, 11, 17])
    ids = torch.randint(VOCAB, (18,))
    gradients = []
    for hidden in (run(model, ids, lengths)[rows], run(model, ids, lengths, rows=rows)):
        model.zero_grad()
        hidden.square().mul(torch.arange(hidden.numel()).view_as(hidden)).sum().backward()
        gradients.append([hidden] + [p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)  # angles stay float32


@settings(deadline=None, max_examples=15)
@given(st.lists(st.lists(st.integers(1, 9), min_size=3, max_size=3), min_size=1, max_size=4), st.sampled_from([1, 4]))
def test_cached_pieces_equal_the_full_pass(pieces: list[list[int]], kv_heads: int) -> None:
    """Rows of different lengths, fed in three pieces of different lengths each."""
    model = make(kv_heads=kv_heads)
    lengths = [sum(p) for p in pieces]
    documents = list(torch.randint(VOCAB, (sum(lengths),)).split(lengths))
    cache = model.new_cache(len(documents), max(lengths))
    rows: list[list[Tensor]] = [[] for _ in documents]
    with torch.no_grad():
        for step in range(3):
            parts = [d.split(p)[step] for d, p in zip(documents, pieces, strict=True)]
            sizes = [len(p) for p in parts]
            where = torch.cat([n + torch.arange(s) for n, s in zip(cache.lengths.tolist(), sizes, strict=True)])
            x = model.embed(torch.cat(parts))
            hidden = model(x, positions=where, cu_seqlens=boundaries(sizes), cache=cache)
            for row, part in zip(rows, hidden.split(sizes), strict=True):
                row.append(part)
        assert cache.lengths.tolist() == lengths
        for document, row in zip(documents, rows, strict=True):
            full = run(model, document, [len(document)])
            ours, theirs = (model.logits(h).log_softmax(-1) for h in (torch.cat(row), full))
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def test_selected_cache_rows_continue_as_before() -> None:
    model, lengths = make(), [4, 9, 2]
    ids = torch.randint(VOCAB, (sum(lengths),))
    cache = model.new_cache(3, 10)
    run(model, ids, lengths, cache=cache)
    chosen = cache.select(torch.tensor([2, 1, 1]), 12)
    new = torch.tensor([7, 7, 8])
    hidden = model(model.embed(new), positions=chosen.lengths.clone(), cu_seqlens=boundaries([1, 1, 1]), cache=chosen)
    for n, row in enumerate([2, 1, 1]):
        document = torch.cat([ids.split(lengths)[row], new[n : n + 1]])
        torch.testing.assert_close(hidden[n], run(model, document, [len(document)])[-1], rtol=1e-5, atol=1e-5)
    assert cache.lengths.tolist() == lengths, "the old cache stays as it is"


def test_first_loss_is_that_of_guessing_and_width_follows_depth() -> None:
    torch.manual_seed(0)
    model = GPT(Config(depth=3), VOCAB)
    model.init_weights()
    assert model.dim == 192
    logits = model.logits(run(model, torch.arange(20), [20]))
    assert logits.dtype == torch.float32
    loss = F.cross_entropy(logits, torch.arange(20))
    assert abs(loss.item() - math.log(VOCAB)) < 0.05


def test_logits_stay_within_the_softcap() -> None:
    model = make(softcap=3.0)
    assert model.logits(1e3 * torch.randn(4, model.dim)).abs().max() <= 3


def test_shapes_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = GPT(Config(depth=30, aspect=128), 100_000)
        where = torch.arange(10)
    hidden = model(model.embed(where), positions=where, cu_seqlens=torch.tensor([0, 10], dtype=torch.int32))
    assert hidden.shape == (10, 3840)
    assert hidden.device.type == "meta"


@pytest.mark.parametrize("options", [{"head_dim": 12}, {"kv_heads": 3}])
def test_widths_that_do_not_divide(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="does not divide"):
        make(**options)


def test_a_document_beyond_the_context_is_refused() -> None:
    with pytest.raises(DataError, match=r"65 tokens exceeds backbone\.max_positions = 64"):
        run(make(), torch.zeros(65, dtype=torch.long), [65])


@torch.no_grad()
def test_a_cache_that_is_too_small_is_refused() -> None:
    model = make()
    with pytest.raises(ValueError, match="5 tokens in a cache row of 4"):
        run(model, torch.zeros(5, dtype=torch.long), [5], cache=model.new_cache(1, 4))
