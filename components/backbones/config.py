"""Options of the built-in backbones. Torch-free."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class GPT(BaseModel):
    """A small causal language model trained from scratch; ``depth`` is the one dial."""

    model_config = ConfigDict(extra="forbid")

    depth: int = Field(4, ge=1, description="number of layers; the width is aspect × depth")
    aspect: int = Field(64, ge=1, description="width per layer")
    head_dim: int = Field(64, ge=2, multiple_of=2, description="width of one attention head; must divide the width")
    kv_heads: int | None = Field(None, ge=1, description="key/value heads; as many as query heads when not given")
    ffn_mult: int = Field(4, ge=1, description="inner width of the MLP, in widths")
    max_positions: int = Field(2048, ge=1, description="longest document in tokens")
    rope_base: float = Field(100_000.0, gt=0, description="base of the rotary frequencies")
    softcap: float = Field(15.0, gt=0, description="logits stay within ± this value")
    tie: bool = Field(False, description="use the token embedding as output head")
