"""Projectors: from the width of the image features to that of the language model.

The built-in ones normalise what comes in (encoders differ in scale by orders of magnitude) and start with
outputs of root mean square about 1 per component.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ghostvis_plugins import ConfigError

from .config import MLP as MLPConfig
from .config import Identity as IdentityConfig
from .config import Linear as LinearConfig


def _init(linear: nn.Linear, gain: float = 1.0) -> None:
    nn.init.normal_(linear.weight, std=gain * linear.in_features**-0.5)
    nn.init.zeros_(linear.bias)


class MLP(nn.Module):
    """``[I, N, Dr]`` → ``[I, N, D]`` by two linear layers with a GELU between."""

    compiles = ("forward",)

    def __init__(self, in_dim: int, hidden: int, out_dim: int) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.norm = nn.LayerNorm(in_dim)
        self.up, self.down = nn.Linear(in_dim, hidden), nn.Linear(hidden, out_dim)

    def init_weights(self) -> None:
        """Scaled so that the outputs start at root mean square 1: E[gelu(z)²] = 0.425 for a standard normal z."""
        self.norm.reset_parameters()
        _init(self.up)
        _init(self.down, gain=0.425**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(self.norm(features))))


class Linear(nn.Module):
    """``[I, N, Dr]`` → ``[I, N, D]`` by one linear layer."""

    compiles = ("forward",)

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.norm = nn.LayerNorm(in_dim)
        self.linear = nn.Linear(in_dim, out_dim)

    def init_weights(self) -> None:
        self.norm.reset_parameters()
        _init(self.linear)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.norm(features))


class Identity(nn.Module):
    """``[I, N, D]`` as it is."""

    def __init__(self, out_dim: int) -> None:
        super().__init__()
        self.out_dim = out_dim

    def init_weights(self) -> None:
        """Nothing to fill."""

    def forward(self, features: Tensor) -> Tensor:
        return features


def build_mlp(config: MLPConfig, *, in_dim: int, out_dim: int) -> MLP:
    """The ``mlp`` component."""
    return MLP(in_dim, config.hidden or out_dim, out_dim)


def build_linear(config: LinearConfig, *, in_dim: int, out_dim: int) -> Linear:
    """The ``linear`` component."""
    return Linear(in_dim, out_dim)


def build_identity(config: IdentityConfig, *, in_dim: int, out_dim: int) -> Identity:
    """The ``identity`` component. Raises ConfigError unless both widths are equal."""
    if in_dim != out_dim:
        raise ConfigError(
            f"projector identity: in_dim {in_dim} != backbone.dim {out_dim}",
            hint="choose --projector linear or mlp",
        )
    return Identity(out_dim)
