"""Tensors of safetensors files, read straight into the memory of a module.

A folder holds ``model.safetensors``, or an index and the shards it names. Headers are checked by the safetensors
library before anything is read, and the index against them; afterwards each tensor is read from its place in the
file into the parameter it belongs to, so that a model of n bytes needs little more than n bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ghostvis_plugins.errors import DataError, MissingError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorSource(Protocol):
    """Named tensors that can be read one at a time."""

    path: Path

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor there is."""

    def read(self, name: str, out: Tensor) -> None:
        """Fill ``out``, of the same shape, converting its type. Raises DataError."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies: its file, its first byte there, type and shape."""

    file: Path
    start: int
    dtype: str
    shape: tuple[int, ...]


class TensorFolder:
    """The tensors of a folder or file (:class:`TensorSource`)."""

    def __init__(self, path: Path, places: Mapping[str, _Place]) -> None:
        self.path, self._places = path, places

    @classmethod
    def open(cls, path: str | Path) -> TensorFolder:
        """Read the headers; no tensor yet.

        Raises MissingError when there are no weights, DataError for a header or an index that is not true, and for
        pickles, which are refused.
        """
        path = Path(path)
        try:
            if path.is_file():
                refuse_pickles(path)
                return cls(path, _places(path))
            if (path / INDEX).is_file():
                return cls(path, _indexed(path))
            if (path / SINGLE).is_file():
                return cls(path, _places(path / SINGLE))
            refuse_pickles(path)
        except OSError as error:  # of looking for files: no permission, a name that is too long
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
        raise MissingError(f"no weights at {path}: it holds neither {SINGLE} nor {INDEX}")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: place.shape for name, place in self._places.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype | None]:
        """Type of every tensor; None for one that torch has no plain type for."""
        return {name: DTYPES.get(place.dtype) for name, place in self._places.items()}

    def get(self, name: str) -> Tensor:
        """A tensor of its own, in the file's type."""
        place = self._places[name]
        tensor = torch.empty(place.shape, dtype=self._dtype(place, name))
        self._read_into(place, tensor)
        return tensor

    def read(self, name: str, out: Tensor) -> None:
        place = self._places[name]
        dtype = self._dtype(place, name, floating=out.is_floating_point())
        if out.dtype == dtype and out.is_contiguous() and out.device.type == "cpu":
            self._read_into(place, out)
        else:
            out.copy_(self.get(name))

    @staticmethod
    def _dtype(place: _Place, name: str, floating: bool | None = None) -> torch.dtype:
        dtype = DTYPES.get(place.dtype)
        if dtype is None or (floating is not None and dtype.is_floating_point != floating):
            raise DataError(
                f"{place.file}: {name} is of type {place.dtype}, which does not become the weights of this model",
                hint="quantised checkpoints are read from GGUF files; take the original weights here",
            )
        return dtype

    @staticmethod
    def _read_into(place: _Place, out: Tensor) -> None:
        if not out.numel():
            return
        view = out.detach().view(-1).view(torch.uint8).numpy().data
        try:
            with place.file.open("rb", buffering=0) as file:
                file.seek(place.start)
                done = 0
                while done < len(view):
                    count = file.readinto(view[done:])
                    if not count:
                        raise DataError(f"{place.file} ends early: it was changed while it was read")
                    done += count
        except OSError as error:
            raise DataError(f"{place.file} cannot be read: {error.strerror or error}") from error


def fill(
    targets: nn.Module | Mapping[str, Tensor],
    source: TensorSource,
    names: Callable[[str], str | None] = lambda name: name,
    *,
    what: str,
    ignore: Callable[[str], bool] = lambda name: False,
) -> None:
    """Read every target from the tensor that ``names`` gives for it, in place and converted to its type.

    A target whose name is None is left alone. Tensors of the source that nothing asks for must be covered by
    ``ignore``. Raises DataError, before anything is written, naming what is missing, unexpected or of another shape;
    ``what`` says in it what the weights were to fill.
    """
    wanted = _tensors(targets)
    check_fit(wanted, source, names, what=what, ignore=ignore)
    with torch.no_grad():
        for target, tensor in wanted.items():
            if (name := names(target)) is not None:
                source.read(name, tensor)


def check_fit(
    targets: nn.Module | Mapping[str, Tensor],
    source: TensorSource,
    names: Callable[[str], str | None] = lambda name: name,
    *,
    what: str,
    ignore: Callable[[str], bool] = lambda name: False,
) -> None:
    """The check of :func:`fill` alone; ``targets`` may be on the meta device."""
    wanted = _tensors(targets)
    pairs = {target: name for target in wanted if (name := names(target)) is not None}
    shapes = source.shapes
    asked = set(pairs.values())
    missing = sorted(asked - shapes.keys())
    unexpected = sorted(name for name in shapes.keys() - asked if not ignore(name))
    wrong = [
        f"{name} is {list(shapes[name])}, needed is {list(wanted[target].shape)}"
        for target, name in pairs.items()
        if name in shapes and tuple(shapes[name]) != tuple(wanted[target].shape)
    ]
    found = [("missing", missing), ("unexpected", unexpected), ("of another shape", wrong)]
    parts = [
        f"{len(tensors)} {kind} ({', '.join(tensors[:3])}{', …' if tensors[3:] else ''})"
        for kind, tensors in found
        if tensors
    ]
    if parts:
        raise DataError(f"{source.path} does not hold the weights of {what}: tensors {'; '.join(parts)}")


def _tensors(targets: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(targets.state_dict(keep_vars=True) if isinstance(targets, nn.Module) else targets)


def _places(file: Path) -> dict[str, _Place]:
    """Every tensor of one file. The library refuses headers that do not describe the file's bytes exactly."""
    try:
        with safe_open(file, framework="pt"):
            pass
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length))
    except FileNotFoundError as error:
        raise MissingError(f"{file} does not exist") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{file} is truncated or not a safetensors file: {error}") from error
    return {
        name: _Place(file, 8 + length + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _indexed(folder: Path) -> dict[str, _Place]:
    """The tensors of a sharded folder, each in the shard that the index names."""
    index = folder / INDEX
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        named = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{index} is not an index of safetensors shards: {error!r}") from error
    found: dict[str, _Place] = {}
    for file in sorted(set(named.values())):
        if Path(file).name != file or "\\" in file:
            raise DataError(f"{index} names '{file}', which is outside of the folder")
        if not (folder / file).is_file():
            raise MissingError(f"{folder}: shard {file} is missing; {INDEX} names it")
        for name, place in _places(folder / file).items():
            if named.get(name) != file:
                raise DataError(f"{folder / file} holds {name}, which {INDEX} places in {named.get(name, 'no shard')}")
            found[name] = place
    absent = sorted(named.keys() - found.keys())
    if absent:
        raise DataError(f"{folder}: shard {named[absent[0]]} lacks {absent[0]}, which {INDEX} places there")
    return found


def refuse_pickles(path: Path) -> None:
    """Raises DataError for a pickle, and for a folder that holds one."""
    files = sorted(file for pattern in PICKLES for file in path.glob(pattern)) if path.is_dir() else [path]
    for file in files:
        if any(file.match(pattern) for pattern in PICKLES):
            raise DataError(
                f"{path}: weights in {file.name} are refused: a pickle can run any code when it is read",
                hint=f"ask for them as {SINGLE}",
            )
