"""Options of the built-in trackers. Torch-free."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Jsonl(BaseModel):
    """``metrics.jsonl`` in the run directory, one JSON object per line. No options."""

    model_config = ConfigDict(extra="forbid")
