"""Resamplers without parameters: the grid average, and no resampling at all."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from ghostvis_plugins import ConfigError

from .config import AvgPool as AvgPoolConfig
from .config import Identity as IdentityConfig


class AvgPool(nn.Module):
    """Features of V square grids ``[I, V · P, Dv]`` → the means of N cells of each ``[I, V · N, Dv]``."""

    def __init__(self, config: AvgPoolConfig, in_dim: int, in_tokens: int) -> None:
        super().__init__()
        tokens, self.views = config.tokens, 1 + config.tiles**2 if config.tiles else 1
        self.tokens, self.out_dim = self.views * tokens, in_dim
        self.side, self.in_side = math.isqrt(tokens), math.isqrt(in_tokens // self.views)
        if self.side**2 != tokens:
            raise ConfigError(f"resampler.tokens = {tokens} is not a square number")
        if self.views * self.in_side**2 != in_tokens:
            raise ConfigError(
                f"resampler avgpool needs a square grid, but encoder.tokens = {in_tokens} is none"
                + (f" with resampler.tiles = {config.tiles}" if config.tiles else ""),
                hint="resampler.tiles must be what encoder.tiles is",
            )
        if tokens > self.in_side**2:
            raise ConfigError(
                f"resampler.tokens {tokens} > encoder.tokens {self.in_side**2}"
                + (" of a tile" if config.tiles else "")
                + ": averaging cannot add any"
            )

    def init_weights(self) -> None:
        """Nothing to fill."""

    def forward(self, features: Tensor) -> Tensor:
        if self.side == self.in_side:
            return features
        grids = features.unflatten(1, (self.views, self.in_side, self.in_side)).flatten(0, 1).permute(0, 3, 1, 2)
        means = F.adaptive_avg_pool2d(grids, self.side).flatten(2).transpose(1, 2)
        return means.unflatten(0, (-1, self.views)).flatten(1, 2)


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
    return AvgPool(config, in_dim, in_tokens)


def build_identity(config: IdentityConfig, *, in_dim: int, in_tokens: int) -> Identity:
    """The ``identity`` component."""
    return Identity(in_dim, in_tokens)
