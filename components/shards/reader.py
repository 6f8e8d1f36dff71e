"""Samples of indexed shards at random: one ``pread`` each, checked against the index's checksum.

Any number of threads may read at the same time. File handles are opened when they are needed, at most
``OPEN_FILES`` stay open, and none crosses into another process.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np

from components.shards.index import UNCHECKED, Index, check_sizes
from components.shards.record import decode, split_name, unpack
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Length, Sample

OPEN_FILES = 64

Decode: TypeAlias = Callable[[str, Mapping[str, bytes]], Sample]
"""Makes a sample of a key and its files by suffix. Raises DataError."""


class _Handle:
    """An open file, closed when nobody reads from it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class _Handles:
    """The files that were read last."""

    def __init__(self, most: int = OPEN_FILES) -> None:
        self.most = most
        self._lock, self._open = threading.Lock(), OrderedDict[Path, _Handle]()

    def get(self, path: Path) -> _Handle:
        with self._lock:
            handle = self._open.pop(path, None) or _Handle(path)
            self._open[path] = handle
            if len(self._open) > self.most:
                self._open.popitem(last=False)  # stays open for the thread that reads from it just now
        return handle

    def __reduce__(self) -> tuple[type[_Handles], tuple[int]]:
        return _Handles, (self.most,)  # another process opens its own


class ShardDataset:
    """The samples of an index, or of some of its rows. Final interface of a data set: length, samples, costs.

    Raises DataError on opening for a shard of another size than the index says, and on reading for a sample whose
    bytes changed.
    """

    def __init__(
        self, index: Index, *, chosen: np.ndarray | None = None, make: Decode | None = None, name: str = ""
    ) -> None:
        """``chosen`` are numbers of rows, all by default; ``make`` decodes records that are not our own."""
        check_sizes(index)
        self.index, self.name = index, name or index.file.parent.name
        self.chosen = chosen
        self._make = make or _own
        self._handles = _Handles()

    def __len__(self) -> int:
        return len(self.index.rows) if self.chosen is None else len(self.chosen)

    def __getitem__(self, index: int) -> Sample:
        number = self._number(index)
        files = self._files(number)
        key = split_name(next(iter(files)))[0]
        try:
            return self._make(key, {split_name(name)[1]: data for name, data in files.items()})
        except DataError as error:
            raise self._damaged(number, error.message, key) from error

    def length(self, index: int) -> Length:
        row = self.index.rows[self._number(index)]
        return Length(int(row["text_bytes"]), int(row["pictures"]))

    def shard_of(self, index: int) -> str:
        """The tar that a sample lies in."""
        return str(self.index.path(int(self.index.rows[self._number(index)]["shard"])))

    def row(self, index: int) -> np.void:
        """What the index says about a sample (:data:`components.shards.index.ROW`)."""
        return self.index.rows[self._number(index)]  # type: ignore[no-any-return]

    def raw(self, number: int) -> bytes:
        """The bytes of row ``number`` in its tar. Raises DataError when they are not what was written."""
        row = self.index.rows[number]
        data = self._read(number, row)
        if not row["flags"] & UNCHECKED and zlib.crc32(data) != row["crc"]:
            raise self._damaged(number, "its bytes changed after it was written (crc32)", _key(data))
        return data

    def _files(self, number: int) -> dict[str, bytes]:
        """Its members by name."""
        data = self.raw(number)
        try:
            files = unpack(data)
        except DataError as error:
            raise self._damaged(number, error.message, _key(data)) from error
        if not files:
            raise self._damaged(number, "there is no tar member where the index says", "")
        return files

    def _read(self, number: int, row: np.void) -> bytes:
        shard, offset, size = int(row["shard"]), int(row["offset"]), int(row["size"])
        if shard >= len(self.index.shards):
            raise DataError(f"{self.index.file}: the index is damaged: row {number:,} names no shard")
        try:
            handle = self._handles.get(self.index.path(shard))
            data = os.pread(handle.number, size, offset)
            while 0 < len(data) < size and (more := os.pread(handle.number, size - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise self._damaged(number, f"it cannot be read: {error.strerror or error}", "") from error
        if len(data) < size:
            raise self._damaged(number, f"the shard ends within it, at {offset + len(data):,}", _key(data))
        return data

    def _damaged(self, number: int, reason: str, key: str) -> DataError:
        row = self.index.rows[number]
        shard = self.index.path(int(row["shard"]))
        sample = f"sample '{key}'" if key else "the sample"
        return DataError(
            f"shard {shard}: {sample} (row {number:,}, byte {int(row['offset']):,}): {reason}",
            hint=f"`ghostvis data verify {self.index.file.parent}` lists all damage.",
        )

    def _number(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples here; there is no number {index}")
        return index if self.chosen is None else int(self.chosen[index])


def _own(key: str, files: Mapping[str, bytes]) -> Sample:
    return decode(files)


def _key(data: bytes) -> str:
    """The key in the first tar header of damaged bytes, as far as it can be read."""
    name = data[:100].split(b"\0", 1)[0]
    return split_name(name.decode())[0] if name.isascii() and name.decode().isprintable() else ""
