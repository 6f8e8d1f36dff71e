"""Options of the built-in engines. Torch-free."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Native(BaseModel):
    """The project's own engine."""

    model_config = ConfigDict(extra="forbid")

    rows: int | None = Field(
        None, ge=1, description="prompts that are answered at the same time; 256 on a GPU and 64 elsewhere if not given"
    )
    encode_batch: int = Field(32, ge=1, description="pictures that are encoded at the same time")
    image_cache: int = Field(2048, ge=1, description="pictures whose vectors are kept")
