"""Options of the built-in encoders. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class EfficientNetLite(BaseModel):
    """EfficientNet-Lite, a small convolutional network trained on ImageNet-1k."""

    model_config = ConfigDict(extra="forbid")

    variant: Literal["lite0"] = Field("lite0", description="size of the network")
    image_size: int = Field(224, ge=32, multiple_of=32, description="pixels per side; pictures are padded to a square")
    feature_layer: Annotated[int, Field(ge=1, le=7)] | Literal["head", "multi"] = Field(
        "multi",
        description=(
            "which features: after block group 1-7 (5: stride 16, 112 channels; 7: stride 32, 320 channels), after the "
            "head convolution (1280), or multi: group 5 beside the upsampled group 7 (stride 16, 432 channels)"
        ),
    )
    weights: str = Field(
        "package", min_length=1, description='"package" (ImageNet), "random", or the path of a .pth file'
    )
