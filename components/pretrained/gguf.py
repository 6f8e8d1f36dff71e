"""GGUF files of llama.cpp: fields and tensors, dequantised one at a time.

Read with the ``gguf`` library. Shapes in a GGUF are stored fastest dimension first; here they are torch's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghostvis_plugins.errors import DataError

# What a reader of damaged bytes can stumble over: lengths, types, text, offsets, sizes.
DAMAGE = (ValueError, IndexError, KeyError, TypeError, OSError, OverflowError, MemoryError, AssertionError)


class GGUFFile:
    """One file: its fields and, by llama.cpp's names, its tensors (a ``TensorSource``)."""

    def __init__(self, path: str | Path) -> None:
        """Read the header. Raises DataError for a damaged file."""
        from gguf import GGUFReader

        self.path = Path(path)
        try:
            reader = GGUFReader(self.path)
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        except DAMAGE as error:
            raise DataError(f"{path} is truncated or not a GGUF file: {error}") from error
        self._fields = reader.fields

    @property
    def architecture(self) -> str:
        return str(self.field("general.architecture"))

    def field(self, key: str, default: Any = None) -> Any:
        """The value of a field, with ``{}`` in ``key`` standing for the architecture."""
        if "{}" in key:
            key = key.format(self.architecture)
        if key not in self._fields:
            return default
        try:
            return self._fields[key].contents()
        except DAMAGE as error:
            raise DataError(f"{self.path}: field {key} cannot be read: {error}") from error

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in self._tensors.items()}

    def get(self, name: str) -> Tensor:
        """A tensor as float32. Raises DataError for a quantisation that the library cannot undo."""
        from gguf import dequantize

        tensor = self._tensors[name]
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise DataError(
                f"{self.path}: {name} is quantised as {tensor.tensor_type.name}, which is not supported",
                hint="take another quantisation of the model, such as Q8_0, or its safetensors files",
            ) from error
        except DAMAGE as error:
            raise DataError(f"{self.path}: {name} cannot be read: {error}") from error
        found = torch.from_numpy(values.astype("float32", copy=True))
        return found.reshape(self.shapes[name])

    def read(self, name: str, out: Tensor) -> None:
        out.copy_(self.get(name))


@lru_cache(maxsize=1)
def open_gguf(path: Path) -> GGUFFile:
    """The file, parsed once for all who ask in a row: reading a vocabulary of 50,000 takes seconds."""
    return GGUFFile(path)
