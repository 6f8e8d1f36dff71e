"""Resamplers without parameters: the grid average, and no resampling at all."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from ghostvis_plugins import ConfigError

from .config import AvgPool as AvgPoolConfig
from .config import Identity as IdentityConfig


class AvgPool(nn.Module):
    """Features of a square grid ``[I, P, Dv]`` → the means of its N cells ``[I, N, Dv]``."""

    def __init__(self, tokens: int, in_dim: int, in_tokens: int) -> None:
        super().__init__()
        self.tokens, self.out_dim = tokens, in_dim
        self.side, self.in_side = math.isqrt(tokens), math.isqrt(in_tokens)
        if self.side**2 != tokens:
            raise ConfigError(f"resampler.tokens = {tokens} is not a square number")
        if self.in_side**2 != in_tokens:
            raise ConfigError(f"resampler avgpool needs a square grid, but encoder.tokens = {in_tokens} is none")
        if tokens > in_tokens:
            raise ConfigError(f"resampler.tokens {tokens} > encoder.tokens {in_tokens}: averaging cannot add any")

    def init_weights(self) -> None:
        """Nothing to fill."""

    def forward(self, features: Tensor) -> Tensor:
        if self.tokens == self.in_side**2:
            return features
        grid = features.transpose(1, 2).unflatten(2, (self.in_side, self.in_side))
        return F.adaptive_avg_pool2d(grid, self.side).flatten(2).transpose(1, 2)


class Identity(nn.Module):
    """All P features go on: ``[I, P, Dv]`` → the same."""

    def __init__(self, in_dim: int, in_tokens: int) -> None:
        super().__init__()
        self.tokens, self.out_dim = in_tokens, in_dim

    def init_weights(self) -> None:
        """Nothing to fill."""

    def forward(self, features: Tensor) -> Tensor:
        return features


def build_avgpool(config: AvgPoolConfig, *, in_dim: int, in_tokens: int) -> AvgPool:
    """The ``avgpool`` component."""
    return AvgPool(config.tokens, in_dim, in_tokens)


def build_identity(config: IdentityConfig, *, in_dim: int, in_tokens: int) -> Identity:
    """The ``identity`` component."""
    return Identity(in_dim, in_tokens)
