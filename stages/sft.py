"""Supervised fine-tuning: everything but the encoder learns to answer, from conversations with and without pictures.

Usually from an aligned model. Text conversations in the mixture keep the language alive. Where it should move less,
``stage.train = { projector = 1e-4, "backbone.layers.-4:" = 1e-5 }`` trains the projector and the last four layers only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .config import SFTConfig
from .context import RunContext
from .train import train


def build(config: SFTConfig) -> Callable[[RunContext], Path]:
    """The ``sft`` stage."""
    return lambda context: train(context, config, vision=True)
