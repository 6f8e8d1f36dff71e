"""Activation checkpointing (Chen et al. 2016): layers whose activations are computed again and not kept."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn


def through(layer: nn.Module, *arguments: Any, again: bool) -> Any:
    """``layer(*arguments)``; with ``again`` only the arguments are kept, and the backward pass computes it anew."""
    if again and torch.is_grad_enabled():
        return torch.utils.checkpoint.checkpoint(layer, *arguments, use_reentrant=False)
    return layer(*arguments)
