"""Conversations and documents of the user, one JSON object a line (:mod:`components.datasets.messages`).

Lines are found through an index of byte offsets, made once for a file of that size and time and kept in the cache, so
a file of any size opens at once and takes no memory for its texts. A line is read and judged when its sample is asked
for: a bad one is a DataError with file and line, which training books in its ledger. A file that is missing, empty,
compressed or not made of lines is an error when the data set is opened.

Split: files of a folder that are called after one (``train.jsonl``, ``validation.jsonl``, …), else by a hash of the
line, so the same line is in the same split wherever it stands, and twice the same line is on one side.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from components.cache import cache_dir, publish
from components.datasets.config_local import Jsonl
from components.datasets.local import existing, locate, named_split, of_split
from components.datasets.messages import Locate, sample_of
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Image, Length, Sample, Split, length_of

LONGEST = 256 * 2**20  # bytes of a line
INDEX_VERSION = 1
_INDEX = "lines.npy"
_LINE = np.dtype([("start", "<u8"), ("size", "<u4"), ("number", "<u4"), ("hash", "<u8")])
_HASH_BITS = 56  # as components.datasets.splits.fraction
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstandard", b"PK\x03\x04": "zip", b"BZh": "bzip2"}
_NOWHERE = Image(data=b"-")  # stands for a picture where only their number counts


class JsonLines:
    """The rows of one file that are in a split. ``name`` is how the file is called in ids and messages."""

    def __init__(self, path: Path, name: str, lines: np.ndarray, picture: Locate) -> None:
        self._path, self._name, self._lines, self._picture = path, name, lines, picture

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Sample:
        return self._sample(index, self._picture)

    def length(self, index: int) -> Length:
        """Read off the line; of one that cannot be read, its bytes: its sample then says what is wrong."""
        try:
            return length_of(self._sample(index, lambda _: _NOWHERE))
        except DataError:
            return Length(int(self._lines[index]["size"]))

    def _sample(self, index: int, picture: Locate) -> Sample:
        number = int(self._lines[index]["number"])
        try:
            return sample_of(self._row(index), id=f"jsonl/{self._name}:{number}", picture=picture)
        except DataError as error:
            raise DataError(f"{self._path}:{number}: {error.message}", hint=error.hint) from error

    def _row(self, index: int) -> object:
        line = self._lines[index]
        try:
            with self._path.open("rb") as file:
                file.seek(int(line["start"]))
                data = file.read(int(line["size"]))
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}") from error
        if len(data) < line["size"]:
            raise DataError("the file has become shorter since it was opened")
        try:
            return json.loads(data.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise DataError(f"is not UTF-8: byte {data[error.start]:#04x} at {error.start}") from error
        except json.JSONDecodeError as error:
            raise DataError(f"is not JSON: {error.msg} at character {error.pos}") from error
        except (ValueError, RecursionError) as error:  # a number of too many digits, nesting too deep
            raise DataError(f"is not JSON that can be read: {error}") from error


class Joined:
    """Several data sets one after the other."""

    def __init__(self, parts: list[JsonLines]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._parts else 0

    def _at(self, index: int) -> tuple[JsonLines, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not below {len(self)}")
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[part], index - (int(self._ends[part - 1]) if part else 0)

    def __getitem__(self, index: int) -> Sample:
        part, inner = self._at(index)
        return part[inner]

    def length(self, index: int) -> Length:
        part, inner = self._at(index)
        return part.length(inner)


def build(config: Jsonl, *, split: Split) -> Joined:
    """The rows of one split. Raises UnavailableError where there is no such file, DataError for an empty one."""
    names: dict[Path, str] = {}
    found: dict[Path, Split | None] = {}
    for text in config.path:
        path = existing(text, "dataset.jsonl.path")
        files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{path}: no .jsonl file in this folder")
        for file in files:
            name = file.relative_to(path if path.is_dir() else path.parent).as_posix()
            names[file] = name if name not in names.values() else f"{text}/{name}"
            found[file] = named_split(file.name) if path.is_dir() else None
    wanted, shares = of_split(found, split, validation=config.validation, test=config.test)
    parts = []
    for file in wanted:
        lines = index_of(file)
        if shares is not None:
            lines = lines[_places(lines["hash"], split, shares)]
        root = existing(config.root, "dataset.jsonl.root") if config.root else file.parent
        parts.append(JsonLines(file, names[file], lines, locate(root)))
    return Joined(parts)


def _places(hashes: np.ndarray, split: Split, shares: tuple[float, float]) -> np.ndarray:
    """Which lines are of ``split``: :func:`components.datasets.splits.split_of` of their hashes."""
    place = hashes / float(1 << _HASH_BITS)
    test, held_out = shares[1], sum(shares)
    if split == "train":
        return place >= held_out
    return place < test if split == "test" else (place >= test) & (place < held_out)


def index_of(path: Path) -> np.ndarray:
    """Start, size, number (from 1) and hash of each line that is not blank. Raises DataError."""
    try:
        about = path.stat()
        key = hashlib.sha256(f"{INDEX_VERSION}\0{path}\0{about.st_size}\0{about.st_mtime_ns}".encode()).hexdigest()
        folder = cache_dir() / "jsonl" / key[:32]
        lines = _cached(folder)
        if lines is None:
            lines = np.fromiter(_scan(path), dtype=_LINE)
            made = lines
            publish(folder, lambda new: np.save(new / _INDEX, made), is_valid=lambda old: _cached(old) is not None)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not len(lines):
        raise DataError(f"{path}: is empty")
    return lines


def _cached(folder: Path) -> np.ndarray | None:
    try:
        lines = np.load(folder / _INDEX, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None  # absent or damaged: made again
    return lines if lines.dtype == _LINE else None


def _scan(path: Path) -> Iterator[tuple[int, int, int, int]]:
    with path.open("rb") as file:
        head = file.read(4)
        packed = next((name for magic, name in _COMPRESSED.items() if head.startswith(magic)), None)
        if packed:
            raise DataError(f"{path}: is compressed ({packed})", hint="Unpack it: lines are read in any order.")
        file.seek(0)
        start = number = 0
        while line := file.readline(LONGEST + 1):
            number += 1
            if len(line) > LONGEST:
                raise DataError(f"{path}:{number}: a line of more than {LONGEST >> 20} MB; this is not JSON lines")
            text = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip()
            if text:
                digest = hashlib.sha256(text).digest()[: _HASH_BITS // 8]
                yield start, len(line), number, int.from_bytes(digest, "big")
            start += len(line)
