"""Pretraining: the language model learns to read and write, from text alone.

From a tokenizer directory it builds a new backbone; from a model directory it goes on with that model's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .config import PretrainConfig
from .context import RunContext
from .train import train


def build(config: PretrainConfig) -> Callable[[RunContext], Path]:
    """The ``pretrain`` stage."""
    return lambda context: train(context, config, vision=False)
