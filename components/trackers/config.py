"""Options of the built-in trackers. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Jsonl(BaseModel):
    """``metrics.jsonl`` in the run directory, one JSON object per line. No options."""

    model_config = ConfigDict(extra="forbid")


class TensorBoard(BaseModel):
    """Event files in the run directory's ``tensorboard``. No options."""

    model_config = ConfigDict(extra="forbid")


class Wandb(BaseModel):
    """A run of Weights & Biases, its files in the run directory's ``wandb``."""

    model_config = ConfigDict(extra="forbid")

    project: str = Field("ghostvis", description="The project it belongs to.")
    entity: str | None = Field(None, description="User or team; default: that of the account.")
    mode: Literal["offline", "online"] = Field(
        "offline", description="online sends every step; offline sends nothing: `wandb sync` does, when asked to."
    )


class Trackio(BaseModel):
    """A run of trackio, in its own folder on this machine; ``trackio show`` draws it."""

    model_config = ConfigDict(extra="forbid")

    project: str = Field("ghostvis", description="The project it belongs to.")
