"""Alignment: resampler and projector learn to turn pictures into vectors that the language model understands.

Encoder and language model stay as they are, unless ``stage.train`` says otherwise. From a language model the
vision path is built anew; from a vision-language model it is trained further.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .config import AlignConfig
from .context import RunContext
from .train import train


def build(config: AlignConfig) -> Callable[[RunContext], Path]:
    """The ``align`` stage."""
    return lambda context: train(context, config, vision=True)
