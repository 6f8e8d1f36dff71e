"""The composed model: it sees its pictures, keeps documents apart, and leaves what is frozen alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from components.batch import Batch
from components.compose import build_model
from components.images import decode
from components.rendering import render
from components.tokenizers import Tokenizer
from components.vlm import VLM
from ghostvis_plugins import DataError
from ghostvis_plugins.manager import Registry
from ghostvis_plugins.types import Conversation, Image, Sample, assistant, user

Packer = Callable[[Sequence[Sample]], Batch]


@pytest.fixture
def samples(make_picture: Callable[[int], Image]) -> list[Conversation]:
    """One picture; several, interleaved over two turns; none."""
    a, b, c, d = (make_picture(n) for n in range(4))
    return [
        Conversation((user(a, "what is it?"), assistant("a red circle")), id="one"),
        Conversation(
            (user("is", b, "like", c, "?"), assistant("no"), user("and", d, "?"), assistant("yes")), id="several"
        ),
        Conversation((user("what is blue?"), assistant("the square")), id="text"),
    ]


@pytest.fixture
def pack(tiny_model: VLM, tiny_tokenizer: Tokenizer) -> Packer:
    def pack(samples: Sequence[Sample]) -> Batch:
        batch = Batch.pack([render(sample, tiny_tokenizer, tiny_model.tokens_per_image) for sample in samples])
        if batch.images:
            batch.pixels = torch.stack([tiny_model.encoder.preprocess(decode(image)) for image in batch.images])
        return batch

    return pack


@torch.no_grad()
def logprobs(model: VLM, batch: Batch) -> Tensor:
    return model.backbone.logits(model.hidden(batch)).log_softmax(-1)


def test_permuted_images_change_the_logits(tiny_model: VLM, pack: Packer, samples: list[Conversation]) -> None:
    batch = pack(samples)
    before = logprobs(tiny_model, batch)
    for owner, documents in (([1, 2, 3, 0], [0, 1]), ([0, 1, 3, 2], [1])):
        after = logprobs(tiny_model, replace(batch, pixels=batch.pixels[owner]))
        for document in range(3):
            rows = batch.target_rows[batch.document_ids[batch.target_rows] == document]
            moved = (after[rows] - before[rows]).abs().max()
            assert moved > 1e-2 if document in documents else moved == 0


def test_packed_equals_alone(tiny_model: VLM, pack: Packer, samples: list[Conversation]) -> None:
    together = pack(samples)
    alone = torch.cat([logprobs(tiny_model, pack([sample])) for sample in samples])
    torch.testing.assert_close(logprobs(tiny_model, together), alone, rtol=0, atol=1e-5)
    total, count = tiny_model.loss(together)
    losses = [tiny_model.loss(pack([sample])) for sample in samples]
    torch.testing.assert_close(total, torch.stack([loss for loss, _ in losses]).sum(), rtol=1e-5, atol=0)
    assert count == sum(n for _, n in losses) == int(together.loss_mask.sum())


def test_gradients_of_a_pack_are_the_sum_of_those_alone(
    tiny_model: VLM, pack: Packer, samples: list[Conversation]
) -> None:
    tiny_model.encoder.requires_grad_(False)
    tiny_model.loss(pack(samples))[0].backward()
    together = {name: p.grad.clone() for name, p in tiny_model.named_parameters() if p.grad is not None}
    tiny_model.zero_grad()
    for sample in samples:
        tiny_model.loss(pack([sample]))[0].backward()
    for name, parameter in tiny_model.named_parameters():
        if name in together:
            scale = parameter.grad.abs().max().item()
            torch.testing.assert_close(together[name], parameter.grad, rtol=0, atol=1e-5 * scale)


def test_loss_is_the_likelihood_of_the_targets(tiny_model: VLM, pack: Packer, samples: list[Conversation]) -> None:
    batch = pack(samples)
    every = logprobs(tiny_model, batch)
    wanted = [t for t in range(1, len(batch)) if batch.loss_mask[t]]
    expected = -sum(every[t - 1, batch.ids[t]] for t in wanted)
    torch.testing.assert_close(tiny_model.loss(batch)[0].detach(), expected, rtol=1e-5, atol=1e-5)


def test_a_document_with_pictures_never_sees_another(
    tiny_model: VLM, pack: Packer, samples: list[Conversation]
) -> None:
    batch = pack(samples)
    before = logprobs(tiny_model, batch)
    pixels = batch.pixels.clone()
    pixels[0] = -pixels[0]
    after = logprobs(tiny_model, replace(batch, pixels=pixels))
    others = batch.document_ids != 0
    assert torch.equal(after[others], before[others])


def test_cached_features_equal_pixels(tiny_model: VLM, pack: Packer, samples: list[Conversation]) -> None:
    batch = pack(samples)
    features = tiny_model.encode(batch.pixels)
    torch.testing.assert_close(
        logprobs(tiny_model, replace(batch, pixels=None, features=features)), logprobs(tiny_model, batch)
    )


def test_vectors_start_at_the_scale_the_backbone_works_at(
    tiny_model: VLM, pack: Packer, samples: list[Conversation]
) -> None:
    vectors = tiny_model.vision_vectors(pack(samples).pixels)
    rms = vectors.square().mean().sqrt()
    assert 0.6 < rms < 1.6


@pytest.mark.parametrize("change", [-1, +1])
def test_a_wrong_number_of_vectors_names_the_sample(
    tiny_model: VLM, pack: Packer, samples: list[Conversation], change: int
) -> None:
    batch = pack(samples)
    vectors = tiny_model.vision_vectors(batch.pixels)
    with pytest.raises(DataError, match="sample 'several': 12 image placeholders, but 8 image vectors"):
        tiny_model.embed(batch, vectors[:-1])
    wrong = torch.zeros(4, vectors.shape[1] + change, vectors.shape[2])
    with pytest.raises(DataError, match=f"sample 'one': 4 image placeholders, but {4 + change} image vectors"):
        tiny_model.embed(batch, wrong)


def test_more_vectors_than_pictures_are_refused(tiny_model: VLM, pack: Packer, samples: list[Conversation]) -> None:
    batch = pack(samples)
    vectors = tiny_model.vision_vectors(batch.pixels)
    with pytest.raises(DataError, match="5 pictures"):
        tiny_model.embed(batch, torch.cat([vectors, vectors[:1]]))


def test_pictures_without_pixels_are_refused(tiny_model: VLM, pack: Packer, samples: list[Conversation]) -> None:
    with pytest.raises(DataError, match="sample 'one': neither pixels nor features"):
        tiny_model.loss(replace(pack(samples), pixels=None))


def test_text_alone_in_both_kinds_of_model(
    tiny_model: VLM,
    tiny_values: dict[str, Any],
    builtin_registry: Registry,
    tiny_tokenizer: Tokenizer,
    pack: Packer,
    samples: list[Conversation],
) -> None:
    blind = build_model({**tiny_values, "encoder": None}, builtin_registry, tiny_tokenizer.vocab_size)
    assert blind.tokens_per_image == 0
    blind.backbone.load_state_dict(tiny_model.backbone.state_dict())
    text = pack(samples[2:])
    assert torch.equal(logprobs(blind, text), logprobs(tiny_model, text))
    with pytest.raises(DataError, match="without a vision path"):
        blind.loss(pack(samples))


def test_a_frozen_encoder_is_left_alone(tiny_model: VLM, pack: Packer, samples: list[Conversation]) -> None:
    tiny_model.train()
    tiny_model.encoder.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in tiny_model.encoder.state_dict().items()}
    optimizer = torch.optim.SGD(tiny_model.parameters(), lr=0.1)
    for _ in range(2):
        tiny_model.loss(pack(samples))[0].backward()
        optimizer.step()
    assert all(p.grad is None for p in tiny_model.encoder.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_model.encoder.state_dict().items())
    assert any("running_mean" in name for name in before)
    assert not any(module.training for module in tiny_model.encoder.modules())
    assert tiny_model.backbone.training


def test_a_trained_encoder_gets_gradients_and_keeps_its_statistics(
    tiny_model: VLM, pack: Packer, samples: list[Conversation]
) -> None:
    tiny_model.train()
    before = {name: tensor.clone() for name, tensor in tiny_model.encoder.named_buffers()}
    tiny_model.loss(pack(samples))[0].backward()
    assert all(p.grad is not None and p.grad.any() for p in tiny_model.encoder.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_model.encoder.named_buffers())


@torch.no_grad()
def test_lower_precision_is_close(tiny_model: VLM, pack: Packer, samples: list[Conversation]) -> None:
    batch = pack(samples)
    expected = logprobs(tiny_model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = logprobs(tiny_model, batch)
        cache = tiny_model.backbone.new_cache(batch.documents, 200)
        cached = tiny_model.hidden(batch, cache)
        first = batch.ids[: batch.documents]
        boundaries = torch.arange(batch.documents + 1, dtype=torch.int32)
        tiny_model.backbone(
            tiny_model.backbone.embed(first), positions=cache.lengths, cu_seqlens=boundaries, cache=cache
        )
    torch.testing.assert_close(autocast, expected, rtol=0, atol=0.3)
    torch.testing.assert_close(tiny_model.backbone.logits(cached).log_softmax(-1), expected, rtol=0, atol=0.3)
    half = tiny_model.to(torch.bfloat16)
    torch.testing.assert_close(
        logprobs(half, replace(batch, pixels=batch.pixels.bfloat16())), expected, rtol=0, atol=0.5
    )


@torch.no_grad()
def test_what_is_read_may_differ_from_the_targets(tiny_model: VLM, pack: Packer, samples: list[Conversation]) -> None:
    batch = pack(samples)
    read = batch.ids.clone()
    read[-4] = (read[-4] + 1) % 200
    changed = replace(batch, inputs=read)
    assert (logprobs(tiny_model, changed) - logprobs(tiny_model, batch))[-4:].abs().max() > 1e-3
    every = logprobs(tiny_model, changed)
    expected = -sum(every[t - 1, batch.ids[t]] for t in range(1, len(batch)) if batch.loss_mask[t])
    torch.testing.assert_close(tiny_model.loss(changed)[0], expected, rtol=1e-5, atol=1e-5)
