"""The Perceiver resampler: a fixed number of learned latents read each image by cross-attention.

After Jaegle et al. 2021 and Flamingo (Alayrac et al. 2022). Two things matter for questions about *where* and
*how many*: every context position carries a learned embedding (features of a convolutional encoder say little
about their place), and both context and latents are normalised, so the encoder's scale does not decide how
sharp the attention is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostvis_plugins import ConfigError

from .config import Perceiver as Config


class Attention(nn.Module):
    """Multi-head attention of ``x`` ``[I, N, D]`` to ``context`` ``[I, P, C]``, both already normalised."""

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(context_dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Cross-attention, self-attention where asked for, MLP: each on normalised inputs, added to the latents."""

    def __init__(self, dim: int, context_dim: int, heads: int, ffn_mult: int, self_attention: bool) -> None:
        super().__init__()
        self.cross_norm = nn.LayerNorm(dim)
        self.cross = Attention(dim, context_dim, heads)
        self.self_norm = nn.LayerNorm(dim) if self_attention else None
        self.self_attention = Attention(dim, dim, heads) if self_attention else None
        self.mlp_norm = nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, ffn_mult * dim), nn.Linear(ffn_mult * dim, dim)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        latents = latents + self.cross(self.cross_norm(latents), context)
        if self.self_attention is not None and self.self_norm is not None:
            normed = self.self_norm(latents)
            latents = latents + self.self_attention(normed, normed)
        return latents + self.down(F.gelu(self.up(self.mlp_norm(latents))))


class Perceiver(nn.Module):
    """Features ``[I, P, Dv]`` → ``[I, latents, dim]`` with mean 0 and variance 1 per vector at the start."""

    compiles = ("forward",)

    def __init__(self, config: Config, in_dim: int, in_tokens: int) -> None:
        super().__init__()
        dim = config.dim or in_dim
        if dim % config.heads:
            raise ConfigError(f"resampler.heads {config.heads} does not divide resampler.dim {dim}")
        self.tokens, self.out_dim = config.latents, dim
        self.latents = nn.Parameter(torch.empty(config.latents, dim))
        self.positions = nn.Parameter(torch.empty(in_tokens, in_dim))
        self.input_norm, self.context_norm = nn.LayerNorm(in_dim), nn.LayerNorm(in_dim)
        self.layers = nn.ModuleList(
            Layer(dim, in_dim, config.heads, config.ffn_mult, config.self_attention) for _ in range(config.depth)
        )
        self.output_norm = nn.LayerNorm(dim)

    def init_weights(self) -> None:
        """Linear layers 1/√fan_in, latents 1 (they must differ), positions 0.5 beside features of 1 (std)."""
        nn.init.normal_(self.latents)
        nn.init.normal_(self.positions, std=0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def forward(self, features: Tensor) -> Tensor:
        context = self.context_norm(self.input_norm(features) + self.positions)
        latents = self.latents.expand(features.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, context)
        return self.output_norm(latents)


def build(config: Config, *, in_dim: int, in_tokens: int) -> Perceiver:
    """The ``perceiver`` component."""
    return Perceiver(config, in_dim, in_tokens)
