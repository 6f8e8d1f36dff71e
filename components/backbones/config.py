"""Options of the built-in backbones. Torch-free."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ghostvis_plugins.types import WeightsSource

from .checkpoints import CHECKPOINTS, PACKAGED


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


class RopeScaling(BaseModel):
    """Llama 3's stretched rotary frequencies: long waves turn ``factor`` times slower, short ones as before."""

    model_config = ConfigDict(extra="forbid")

    factor: float = Field(gt=0, allow_inf_nan=False)
    low_freq_factor: float = Field(gt=0, allow_inf_nan=False)
    high_freq_factor: float = Field(gt=0, allow_inf_nan=False)
    original_max_positions: int = Field(ge=1)

    @model_validator(mode="after")
    def _a_range(self) -> RopeScaling:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(f"high_freq_factor {self.high_freq_factor} <= low_freq_factor {self.low_freq_factor}")
        return self


class Architecture(BaseModel):
    """The shape of a pretrained decoder, and the choices in which the families differ.

    The upper limits lie far above every published model: a damaged file must not make us build a billion layers.
    """

    model_config = ConfigDict(extra="forbid")

    model_type: Literal["llama", "qwen2", "qwen3"]
    dim: int = Field(ge=1, le=2**17)
    layers: int = Field(ge=1, le=1024)
    heads: int = Field(ge=1, le=4096)
    kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2, le=4096, multiple_of=2)
    ffn: int = Field(ge=1, le=2**20)
    vocab_size: int = Field(ge=1, le=2**24, description="rows of the published embedding")
    max_positions: int = Field(ge=1, le=2**40)
    rope_theta: float = Field(gt=0, allow_inf_nan=False)
    rope_scaling: RopeScaling | None = None
    norm_eps: float = Field(1e-6, gt=0, allow_inf_nan=False)
    qkv_bias: bool = Field(False, description="biases on the query, key and value projections")
    qk_norm: bool = Field(False, description="a learned norm on queries and keys")
    tie: bool = Field(False, description="the embedding is the output head")

    @model_validator(mode="after")
    def _whole_groups(self) -> Architecture:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads {self.kv_heads} does not divide the {self.heads} heads")
        return self


_TINY: dict[str, Any] = {
    "model_type": "qwen2",
    "dim": 32,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "ffn": 64,
    "vocab_size": 64,
    "max_positions": 128,
    "rope_theta": 1e6,
    "qkv_bias": True,
    "tie": True,
}


class Decoder(BaseModel):
    """A pretrained language model of the Llama kind: Qwen2.5, Qwen3, SmolLM2, Llama 3.2, or a folder of one."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"weights": "random", "architecture": _TINY}]}
    )

    checkpoints: ClassVar[dict[str, WeightsSource]] = {
        name: WeightsSource(license=entry.license, hub=entry.hub, package=PACKAGED.get(name, (None,))[0])
        for name, entry in CHECKPOINTS.items()
    }

    checkpoint: str = Field(
        "qwen2.5-0.5b-instruct",
        description=f"published model: {', '.join(CHECKPOINTS)}",
    )
    weights: str = Field(
        "hub",
        min_length=1,
        description='"hub", "package" (smollm2-135m-instruct), "random", a folder in Hugging Face\'s layout, a .gguf '
        "file, or a hub repository; a folder, file or repository says itself what model it is",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="type the weights are kept in; training needs float32"
    )
    max_positions: int | None = Field(
        None, ge=1, description="longest document in tokens; what the model was made for when not given"
    )
    architecture: Architecture | None = Field(
        None, description="its shape, when neither checkpoint nor weights tell; a model directory records it"
    )

    @field_validator("checkpoint")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in CHECKPOINTS:
            raise ValueError(f"unknown; known are {', '.join(CHECKPOINTS)}")
        return name
