"""Pixel shuffle, from space to depth: neighbouring features side by side in one vector.

As in Idefics3 and SmolVLM (after Shi et al. 2016, the other way round): a factor of r leaves 1/r² of the vectors, each
r² times as wide, and nothing is lost. The order of the parts is theirs, row by row inside a cell.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from ghostvis_plugins import ConfigError

from .config import PixelShuffle as Config


class PixelShuffle(nn.Module):
    """Features of V square grids in reading order ``[I, V · P, Dv]`` → ``[I, V · P / r², r² · Dv]``."""

    def __init__(self, config: Config, in_dim: int, in_tokens: int) -> None:
        super().__init__()
        self.factor, self.views = config.factor, 1 + config.tiles**2 if config.tiles else 1
        self.side = math.isqrt(in_tokens // self.views)
        if self.views * self.side**2 != in_tokens:
            raise ConfigError(
                f"resampler pixel_shuffle needs a square grid, but encoder.tokens = {in_tokens} is none"
                + (f" with resampler.tiles = {config.tiles}" if config.tiles else ""),
                hint="resampler.tiles must be what encoder.tiles is",
            )
        if self.side % self.factor:
            divisors = [str(r) for r in range(2, self.side + 1) if self.side % r == 0]
            raise ConfigError(
                f"resampler.factor = {self.factor} does not divide the grid of {self.side} x {self.side} features",
                hint=f"it can be {' or '.join(divisors)}" if divisors else "",
            )
        self.tokens, self.out_dim = in_tokens // self.factor**2, in_dim * self.factor**2

    def init_weights(self) -> None:
        """Nothing to fill."""

    def forward(self, features: Tensor) -> Tensor:
        cells = self.side // self.factor
        grid = features.unflatten(1, (self.views * cells, self.factor, cells, self.factor))
        return grid.transpose(2, 3).flatten(3, 5).flatten(1, 2)


def build(config: Config, *, in_dim: int, in_tokens: int) -> PixelShuffle:
    """The ``pixel_shuffle`` component. Raises ConfigError when the features form no grid that the factor divides."""
    return PixelShuffle(config, in_dim, in_tokens)
