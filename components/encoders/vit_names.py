"""Weights of a vision transformer into timm's module, from the names of timm or of transformers.

Both layouts hold the same tensors, but for three differences: transformers keeps query, key and value apart, timm one
above the other; positions may be those of another grid; and towers with registers have a position for the class token
there, which timm adds to the token. Text towers, pooling heads and blocks that are not built are passed over by rule;
anything else too much, too little or of another shape is an error that names it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from components.pretrained.tensors import TensorSource, fill
from ghostvis_plugins.errors import DataError

BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias|gamma)")


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to name the tensors of a tower.

    ``mark`` is a tensor that tells the layout; ``sources`` gives the names, without the prefix, of what a tensor of
    timm is stacked from, or none. ``block`` finds the number of a block in a name; ``passed`` are names of what is no
    part of the tower.
    """

    mark: str
    sources: Callable[[str, Iterable[str]], tuple[str, ...]]
    block: re.Pattern[str]
    final_norm: str
    passed: re.Pattern[str]


def _of_timm(name: str, known: Iterable[str]) -> tuple[str, ...]:
    return (name,)


_STEM = {
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "pos_embed": "embeddings.position_embedding.weight",
    "cls_token": "embeddings.class_embedding",
    "norm_pre.weight": "pre_layrnorm.weight",  # so spelt there
    "norm_pre.bias": "pre_layrnorm.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def _of_clip(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """SiglipVisionModel and CLIPVisionModel."""
    found = BLOCK.fullmatch(name)
    if not found:
        return _if_known(_STEM.get(name))
    number, module, last = found.groups()
    start = f"encoder.layers.{number}"
    if module == "attn.qkv":
        return tuple(f"{start}.self_attn.{kind}_proj.{last}" for kind in "qkv")
    return _if_known(_BLOCK.get(module), start, last)


_DINOV2_STEM = {
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "pos_embed": "embeddings.position_embeddings",
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_DINOV2_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "ls1": "layer_scale1",
    "ls2": "layer_scale2",
}


def _of_dinov2(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """Dinov2Model; its attention is named one way in published files and another in the newest library."""
    found = BLOCK.fullmatch(name)
    if not found:
        return _if_known(_DINOV2_STEM.get(name))
    number, module, last = found.groups()
    start, last = f"encoder.layer.{number}", last.replace("gamma", "lambda1")
    new = any(other.endswith("encoder.layer.0.attention.q_proj.weight") for other in known)
    if module == "attn.qkv":
        kinds = ("q_proj", "k_proj", "v_proj") if new else ("attention.query", "attention.key", "attention.value")
        return tuple(f"{start}.attention.{kind}.{last}" for kind in kinds)
    if module == "attn.proj":
        return (f"{start}.attention.{'o_proj' if new else 'output.dense'}.{last}",)
    return _if_known(_DINOV2_BLOCK.get(module), start, last)


def _if_known(name: str | None, start: str = "", last: str = "") -> tuple[str, ...]:
    """The whole name in a tuple; an empty one for what towers of this layout do not have."""
    return () if name is None else (".".join(part for part in (start, name, last) if part),)


LAYOUTS = (
    Layout(
        "blocks.0.norm1.weight",
        _of_timm,
        re.compile(r"blocks\.(\d+)\."),
        "norm.",
        re.compile(r"(attn_pool|head|fc_norm)\.|mask_token$"),
    ),
    Layout(
        "encoder.layers.0.layer_norm1.weight",
        _of_clip,
        re.compile(r"encoder\.layers\.(\d+)\."),
        "post_layernorm.",
        re.compile(r"head\.|(.*\.)?position_ids$"),
    ),
    Layout(
        "encoder.layer.0.norm1.weight",
        _of_dinov2,
        re.compile(r"encoder\.layer\.(\d+)\."),
        "layernorm.",
        re.compile(r"embeddings\.mask_token$"),
    ),
)
BESIDE = re.compile(r"text(_model)?\.|(visual|text)_projection\.|logit_(scale|bias)$|classifier\.|decoder\.")
"""What full models hold beside the tower: the text tower and what compares the two, or a head for a task."""


def load_tower(tower: Any, source: TensorSource, *, what: str, depth: int, grid: int, antialias: bool) -> None:
    """Fill timm's ``tower``; positions are resized to ``grid`` x ``grid`` where the source has others.

    ``depth`` is the number of blocks of the published tower, of which ``tower`` may hold fewer. Raises DataError.
    """
    shapes = source.shapes
    layout, start = _layout(source, what)
    parts: dict[str, Tensor] = {}  # the source's name → the memory it is read into
    for name, parameter in tower.state_dict().items():
        sources = [start + part for part in layout.sources(name, shapes)]
        if not sources:
            raise DataError(f"{source.path} does not hold the weights of {what}, but those of another kind of tower")
        for part, memory in zip(sources, parameter.chunk(len(sources)), strict=True):
            parts[part] = _shaped(memory, shapes.get(part))
    positions = start + layout.sources("pos_embed", shapes)[0]
    if positions in shapes:
        parts[positions] = torch.empty(_positions_shape(shapes[positions], tower.embed_dim, source.path, positions))

    built = len(tower.blocks)

    def passed(name: str) -> bool:
        if not name.startswith(start):
            return bool(BESIDE.match(name))
        inner = name.removeprefix(start)
        if found := layout.block.match(inner):
            return built <= int(found[1]) < depth
        return bool(layout.passed.match(inner) or BESIDE.match(inner) or inner.startswith(layout.final_norm))

    fill(parts, source, what=what, ignore=passed)
    if positions in parts:
        _place(tower, parts[positions].flatten(0, -2), grid, antialias, source.path, positions)


def _layout(source: TensorSource, what: str) -> tuple[Layout, str]:
    """The layout of a source, and what all its names start with."""
    for layout in LAYOUTS:
        found = [name for name in source.shapes if name.endswith(layout.mark) and "text_model." not in name]
        if found:
            return layout, min(found, key=len).removesuffix(layout.mark)
    raise DataError(
        f"{source.path} does not hold the weights of {what}: no vision transformer as timm or transformers name it",
        hint="its tensors are " + ", ".join(sorted(source.shapes)[:3]) + ", …",
    )


def _shaped(memory: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    """``memory`` seen in the source's shape where that differs by dimensions of one, as a class token's does."""
    same = shape is not None and [n for n in shape if n != 1] == [n for n in memory.shape if n != 1]
    return memory.view(shape) if same and shape is not None else memory


def _positions_shape(shape: tuple[int, ...], width: int, path: Path, name: str) -> tuple[int, ...]:
    if len(shape) not in (2, 3) or 0 in shape or shape[-1] != width or shape[:-2] not in ((), (1,)):
        raise DataError(f"{path}: {name} is {list(shape)}, needed are positions of width {width}")
    return shape


def _place(tower: Any, found: Tensor, grid: int, antialias: bool, path: Path, name: str) -> None:
    """Put positions ``[P, D]`` into the tower, resized to its grid; that of a class token comes first."""
    prefix = 1 if tower.has_class_token and math.isqrt(len(found) - 1) ** 2 == len(found) - 1 else 0
    side = math.isqrt(len(found) - prefix)
    if side**2 != len(found) - prefix or side == 0:
        raise DataError(f"{path}: {name} holds {len(found)} positions, which are those of no square grid")
    first, patches = found[:prefix], found[prefix:]
    if side != grid:
        square = patches.T.view(1, -1, side, side)
        resized = F.interpolate(square, (grid, grid), mode="bicubic", align_corners=False, antialias=antialias)
        patches = resized.flatten(2)[0].T
    if tower.no_embed_class and prefix:  # timm's towers with registers
        tower.cls_token += first
        first = first[:0]
    positions = torch.cat((first, patches))
    if positions.shape != tower.pos_embed.shape[1:]:
        raise DataError(f"{path}: {name} lacks the position of the class token")
    tower.pos_embed[0].copy_(positions)


def check_config(path: Path, expected: Mapping[str, Any]) -> None:
    """Raises DataError when a ``config.json`` beside the weights says otherwise than ``expected``.

    For what no shape would tell: the activation, the number of heads.
    """
    config = (path if path.is_dir() else path.parent) / "config.json"
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{config} cannot be read as JSON: {error}") from error
    vision = content.get("vision_config") if isinstance(content, dict) else None
    vision = content if vision is None else vision
    if not isinstance(vision, dict):
        raise DataError(f"{config} is not a model's configuration")
    for key, value in expected.items():
        if (found := vision.get(key, value)) != value:
            raise DataError(f"{config}: {key} is {found!r}, this encoder's towers have {value!r}")
