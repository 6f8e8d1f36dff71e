"""GGUF files of llama.cpp: fields and tensors, dequantised one at a time.

Read with the ``gguf`` library. Shapes in a GGUF are stored fastest dimension first; here they are torch's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghostvis_plugins.errors import DataError

# What a reader of damaged bytes can stumble over: lengths, types, text, offsets, sizes, nesting.
DAMAGE = (
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    OSError,
    OverflowError,
    MemoryError,
    AssertionError,
    RecursionError,
)


class GGUFFile:
    """One file: its fields and, by llama.cpp's names, its tensors (a ``TensorSource``)."""

    def __init__(self, path: str | Path) -> None:
        """Read the header. Raises DataError for a damaged file."""
        self.path = Path(path)
        try:
            reader = _reader(self.path)
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


def open_gguf(path: Path) -> GGUFFile:
    """The file, parsed once for all who ask in a row: reading a vocabulary of 50,000 takes seconds."""
    try:
        about = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    return _parsed(path, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=1)
def _parsed(path: Path, size: int, changed: int) -> GGUFFile:
    return GGUFFile(path)


def _reader(path: Path) -> Any:
    """The library's reader, which by itself takes bytes behind the end of the file for empty values."""
    from gguf import GGUFReader

    class Reader(GGUFReader):
        def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
            if isinstance(self.data, np.memmap):  # the same memory as a plain array: its slices cost a third
                self.data: Any = self.data.view(np.ndarray)
            if int(offset) + int(count) * np.dtype(dtype).itemsize > len(self.data):
                raise ValueError("it ends early")
            return super()._get(offset, dtype, count, override_order)

    return Reader(path)
