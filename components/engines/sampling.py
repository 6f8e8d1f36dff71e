"""Choosing the next token: greedy, temperature, top-k, top-p, reproducible per prompt."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ghostvis_plugins import ConfigError
from ghostvis_plugins.types import Generation


def check(generation: Generation) -> None:
    """Raises ConfigError for settings that mean nothing."""
    problems = (
        (generation.max_new_tokens < 1, f"max_new_tokens = {generation.max_new_tokens}: at least 1"),
        (not generation.temperature >= 0, f"temperature = {generation.temperature}: 0 (greedy) or more"),
        (generation.top_k < 0, f"top_k = {generation.top_k}: 0 (off) or more"),
        (not 0 < generation.top_p <= 1, f"top_p = {generation.top_p}: above 0 and at most 1 (off)"),
    )
    for wrong, message in problems:
        if wrong:
            raise ConfigError(f"generation: {message}")


def uniforms(generation: Generation, number: int) -> Tensor:
    """The draws in [0, 1) of prompt ``number``, one per new token ``[max_new_tokens]``.

    They depend on the seed and the prompt's place in the request alone, so an answer does not change with the
    batch it is computed in.
    """
    digest = hashlib.sha256(f"{generation.seed}:{number}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(generation.max_new_tokens, generator=generator, dtype=torch.float64)


def choose(logits: Tensor, generation: Generation, draws: Tensor) -> Tensor:
    """Logits ``[R, V]`` and one draw per row ``[R]`` → token ids ``[R]``, by inverting the cumulative distribution."""
    if generation.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities, order = torch.softmax(logits.double() / generation.temperature, dim=-1).sort(-1, descending=True)
    if generation.top_k:
        probabilities[:, generation.top_k :] = 0
    cumulative = probabilities.cumsum(-1)
    if generation.top_p < 1:
        # A token stays while those before it hold less than top_p of what top_k left: the first always does.
        before = cumulative - probabilities
        probabilities[before >= generation.top_p * cumulative[:, -1:]] = 0
        cumulative = probabilities.cumsum(-1)
    target = draws.to(cumulative)[:, None] * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, target, right=True)
    last = (probabilities > 0).sum(-1, keepdim=True) - 1
    return order.gather(-1, torch.minimum(place, last)).squeeze(-1)
