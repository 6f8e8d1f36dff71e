"""Idefics2's connector: a gated MLP to the width of the language model, then a perceiver of that width.

Laurençon et al. 2024. Names, shapes and results of the modules are those of transformers' ``Idefics2Connector``, so
weights go either way as they are. In each layer the latents read the image and themselves at once: keys and values
come from both, shared by several query heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Idefics2 as Config

INIT_STD = 0.02
FFN_MULT = 4


class MLP(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, in_dim: int, hidden: int, out_dim: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(in_dim, hidden, bias=False)
        self.up_proj = nn.Linear(in_dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Attention(nn.Module):
    """Grouped-query attention of latents ``[I, N, D]`` to the context ``[I, P, D]`` and the latents themselves."""

    def __init__(self, dim: int, config: Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(dim, width, bias=False)
        self.k_proj = nn.Linear(dim, kv_width, bias=False)
        self.v_proj = nn.Linear(dim, kv_width, bias=False)
        self.o_proj = nn.Linear(width, dim, bias=False)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        both = torch.cat((context, latents), dim=1)
        pairs = ((self.q_proj, latents), (self.k_proj, both), (self.v_proj, both))
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for proj, x in pairs)
        attended = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention, then MLP, each on normalised inputs and added to the latents."""

    def __init__(self, dim: int, config: Config) -> None:
        super().__init__()
        self.input_latents_norm = nn.RMSNorm(dim, config.norm_eps)
        self.input_context_norm = nn.RMSNorm(dim, config.norm_eps)
        self.self_attn = Attention(dim, config)
        self.post_attention_layernorm = nn.RMSNorm(dim, config.norm_eps)
        self.mlp = MLP(dim, FFN_MULT * dim, dim)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        latents = latents + self.self_attn(self.input_latents_norm(latents), self.input_context_norm(context))
        return latents + self.mlp(self.post_attention_layernorm(latents))


class Perceiver(nn.Module):
    """Context ``[I, P, D]`` → ``[I, latents, D]``."""

    def __init__(self, dim: int, config: Config) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(config.latents, dim))
        self.layers = nn.ModuleList(Layer(dim, config) for _ in range(config.depth))
        self.norm = nn.RMSNorm(dim, config.norm_eps)

    def forward(self, context: Tensor) -> Tensor:
        latents = self.latents.expand(context.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, context)
        return self.norm(latents)


class Idefics2(nn.Module):
    """Features ``[I, P, Dv]`` → ``[I, latents, D]`` of root mean square 1: projected already."""

    def __init__(self, config: Config, in_dim: int, model_dim: int) -> None:
        super().__init__()
        self.tokens, self.out_dim = config.latents, model_dim
        self.modality_projection = MLP(in_dim, config.projection_hidden or FFN_MULT * model_dim, model_dim)
        self.perceiver_resampler = Perceiver(model_dim, config)

    def init_weights(self) -> None:
        """Normal of 0.02 as published, but latents of 1: equal ones, as the library starts with, would stay equal."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INIT_STD)
            elif isinstance(module, nn.RMSNorm):
                module.reset_parameters()
        nn.init.normal_(self.perceiver_resampler.latents)

    def forward(self, features: Tensor) -> Tensor:
        return self.perceiver_resampler(self.modality_projection(features))


def build(config: Config, *, in_dim: int, in_tokens: int, model_dim: int) -> Idefics2:
    """The ``idefics2`` component; to be used with the projector ``identity``."""
    return Idefics2(config, in_dim, model_dim)
