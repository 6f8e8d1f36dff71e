"""Options of the built-in resamplers. Torch-free."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


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
    """Mean over the cells of a square grid, of every tile on its own."""

    model_config = ConfigDict(extra="forbid")

    tokens: int = Field(16, ge=1, description="cells left of each image or tile: a square number")
    tiles: int = Field(0, ge=0, description="encoder.tiles, where it cuts any: cells do not cross a tile's edge")


class Identity(BaseModel):
    """Every feature of the encoder goes on as it is."""

    model_config = ConfigDict(extra="forbid")


class PixelShuffle(BaseModel):
    """Neighbouring features side by side in one wider vector, as in Idefics3 and SmolVLM."""

    model_config = ConfigDict(extra="forbid")

    factor: int = Field(2, ge=1, description="side of a cell: its square of features become one vector")
    tiles: int = Field(0, ge=0, description="encoder.tiles, where it cuts any: cells do not cross a tile's edge")


class Idefics2(BaseModel):
    """Idefics2's connector: projection to the width of the language model, then a perceiver; projector identity."""

    model_config = ConfigDict(extra="forbid")

    latents: int = Field(64, ge=1, description="vectors left of each image")
    depth: int = Field(3, ge=1, description="layers of attention and MLP")
    heads: int = Field(16, ge=1, description="query heads")
    kv_heads: int = Field(4, ge=1, description="key/value heads; must divide heads")
    head_dim: int = Field(96, ge=1, description="width of one attention head")
    projection_hidden: int | None = Field(
        None, ge=1, description="inner width of the projection; 4 times the language model's when not given"
    )
    norm_eps: float = Field(1e-6, gt=0, description="epsilon of the norms; Idefics2-8B has 1e-5")

    @model_validator(mode="after")
    def _divides(self) -> Idefics2:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads {self.kv_heads} does not divide heads {self.heads}")
        return self
