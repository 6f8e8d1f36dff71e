"""Mid-training: a model that has read learns from a mixture of texts, conversations and problems, before it is tuned.

All of the language model trains, and the resampler and projector of a model that sees; an encoder stays as it is unless
``stage.train`` says otherwise. The parts are those of the model that the run starts from: none is built anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .config import MidConfig
from .context import RunContext
from .start import components_at
from .train import train

VISION = ("encoder", "resampler", "projector")


def build(config: MidConfig) -> Callable[[RunContext], Path]:
    """The ``mid`` stage."""
    return lambda context: run(context, config)


def run(context: RunContext, config: MidConfig) -> Path:
    """Train the model that ``from`` names, with its vision path where it has one."""
    sees = "encoder" in components_at(Path(context.values["from"] or ""))
    if not sees:
        table = {path: rate for path, rate in config.train.items() if path.split(".")[0] not in VISION}
        config = config.model_copy(update={"train": table})
    return train(context, config, vision=sees)
