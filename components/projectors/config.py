"""Options of the built-in projectors. Torch-free."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

IN_DIM = "width the projector expects; checked against what it gets when given"


class MLP(BaseModel):
    """Two linear layers with a GELU between."""

    model_config = ConfigDict(extra="forbid")

    hidden: int | None = Field(None, ge=1, description="inner width; that of the language model when not given")
    in_dim: int | None = Field(None, ge=1, description=IN_DIM)


class Linear(BaseModel):
    """One linear layer."""

    model_config = ConfigDict(extra="forbid")

    in_dim: int | None = Field(None, ge=1, description=IN_DIM)


class Identity(BaseModel):
    """No projection: both widths must be equal."""

    model_config = ConfigDict(extra="forbid")
