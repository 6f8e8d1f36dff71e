"""Options of the built-in resamplers. Torch-free."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Perceiver(BaseModel):
    """Learned latents that read the image by cross-attention."""

    model_config = ConfigDict(extra="forbid")

    latents: int = Field(64, ge=1, description="vectors left of each image")
    depth: int = Field(2, ge=1, description="layers of cross-attention and MLP")
    heads: int = Field(8, ge=1, description="attention heads; must divide dim")
    dim: int | None = Field(None, ge=1, description="width; that of the encoder when not given")
    ffn_mult: int = Field(4, ge=1, description="inner width of the MLP, in widths")
    self_attention: bool = Field(False, description="let the latents attend to each other in every layer")


class AvgPool(BaseModel):
    """Mean over the cells of a square grid."""

    model_config = ConfigDict(extra="forbid")

    tokens: int = Field(16, ge=1, description="cells left of each image: a square number")


class Identity(BaseModel):
    """Every feature of the encoder goes on as it is."""

    model_config = ConfigDict(extra="forbid")
