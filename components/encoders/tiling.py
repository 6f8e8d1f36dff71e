"""A picture as several views: the whole of it, and g x g crops of a g times larger version.

Small print that is lost at the size of a tower is kept in the crops. The views stand below each other in one tensor
``[3, V · S, S]``, the whole picture first, then the crops in reading order, so that nothing between preprocessing and
encoder has to know of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from components import images

if TYPE_CHECKING:
    import PIL.Image


def views(tiles: int) -> int:
    """V: how many pictures the tower sees of one."""
    return 1 + tiles**2


def cut(image: PIL.Image.Image | Tensor, tiles: int, transform: Mapping[str, Any]) -> Tensor:
    """The views of a picture, ``[3, V · S, S]``; ``transform`` is what makes the square of one view."""
    (size, _), values = transform["size"], dict(transform)
    whole = images.to_pixels(image, **values)
    values["size"] = [tiles * size, tiles * size]
    if "edge" in values:
        values["edge"] = tiles * values["edge"]
    large = images.to_pixels(image, **values)
    crops = large.unflatten(2, (tiles, size)).unflatten(1, (tiles, size))  # [3, row, S, column, S]
    return torch.cat((whole, crops.transpose(2, 3).flatten(1, 2).flatten(1, 2)), dim=1)


def apart(pixels: Tensor, count: int) -> Tensor:
    """``[I, 3, V · S, S]`` → ``[I · V, 3, S, S]``."""
    return pixels if count == 1 else pixels.unflatten(2, (count, -1)).transpose(1, 2).flatten(0, 1)


def together(features: Tensor, count: int) -> Tensor:
    """``[I · V, P, D]`` → ``[I, V · P, D]``."""
    return features if count == 1 else features.unflatten(0, (-1, count)).flatten(1, 2)
