"""Rows by index out of the files that publishers ship: parquet, Arrow, JSON, JSON lines and tar, read lazily.

A :class:`Table` is one or more files, one behind the other. Opening it reads footers and indexes and checks the
schema; a row is read when it is asked for, and only those of its columns that are wanted. What is kept of parquet
files, which can only be read a row group at a time, is bounded in bytes for the whole process (``CACHE_BYTES`` in
:mod:`.columnar`); Arrow files are mapped; of JSON and tar only the places of the rows are kept, in the cache folder,
because finding them takes a pass over the file. Rows may be read in several threads.

Parquet is made for scanning: a row in a random order costs the row group around it. Training from such a table in
shuffled order is right, and slow where pictures are embedded.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ghostvis_plugins.errors import DataError

from .columnar import ArrowPart, ParquetPart
from .json_rows import JsonPart, MemoryPart
from .schema import (
    BINARY,
    BOOL,
    FLOAT,
    INT,
    KEY,
    NOT_READ,
    PICTURE,
    STRING,
    Columns,
    Part,
    Row,
    Schema,
    list_of,
    struct_of,
)
from .tar_rows import TarPart

__all__ = [
    "BINARY",
    "BOOL",
    "FLOAT",
    "INT",
    "KEY",
    "NOT_READ",
    "PICTURE",
    "STRING",
    "Columns",
    "Row",
    "Schema",
    "Table",
    "list_of",
    "struct_of",
]


class Table:
    """The rows of ``files`` in the order given.

    ``at`` names the member of a JSON file that holds the rows, ``keys`` the columns that :meth:`column` will be asked
    for, ``counted`` the one that :meth:`counts` will. Raises DataError for a file that cannot be read, a column that
    is missing or of another type, and where there are no rows at all.
    """

    def __init__(
        self, files: Sequence[Path], schema: Schema, *, at: str = "", keys: Sequence[str] = (), counted: str = ""
    ) -> None:
        self._set([_open(path, schema, at, tuple(keys), counted) for path in files], files)

    @classmethod
    def of_rows(cls, place: Path, rows: Sequence[Row], schema: Schema) -> Table:
        """A table of rows in memory; ``place`` names it in messages."""
        table = cls.__new__(cls)
        table._set([MemoryPart(rows, schema)], [place])
        return table

    def _set(self, parts: Sequence[Part], files: Sequence[Path]) -> None:
        self.files, self._parts = tuple(files), parts
        ends = np.cumsum([part.rows for part in self._parts]) if self._parts else [0]
        self._ends: list[int] = [int(end) for end in ends]
        if not len(self):
            raise DataError(f"{_names(files)}: no rows in it", hint="The download may be incomplete; fetch it again.")

    def __len__(self) -> int:
        return self._ends[-1]

    def row(self, index: int, columns: Sequence[str] | None = None, *, pictures: bool = True) -> Row:
        """One row: every known column, or ``columns``. Optional columns that the file lacks are None.

        Without ``pictures`` embedded pictures are not read: :data:`NOT_READ` takes their place. Raises DataError for
        text that is not UTF-8 and for a damaged file.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{_names(self.files)}: {len(self)} rows; there is no number {index}")
        place = bisect.bisect_right(self._ends, index)
        start = self._ends[place - 1] if place else 0
        return self._parts[place].row(index - start, columns, pictures)

    def column(self, name: str) -> Iterator[Any]:
        """Every value of one column of scalars, in the order of the rows."""
        for part in self._parts:
            yield from part.column(name)

    def counts(self, name: str) -> Iterator[int]:
        """How many items each row has in a column of lists."""
        for part in self._parts:
            yield from part.counts(name)


def _names(files: Sequence[Path]) -> str:
    return str(files[0]) + (f" and {len(files) - 1} more" if len(files) > 1 else "") if files else "no file"


def _open(path: Path, schema: Schema, at: str, keys: tuple[str, ...], counted: str) -> Part:
    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            return ParquetPart(path, schema)
        if name.endswith(".arrow"):
            return ArrowPart(path, schema)
        if re.search(r"\.(json|jsonl|ndjson)(\.gz|\.zst)?$", name):
            return JsonPart(path, schema, at, keys, counted)
        if name.endswith(".tar"):
            return TarPart(path, schema)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    raise DataError(f"{path}: not a kind of file that holds rows", hint="Known: .parquet, .arrow, .json, .jsonl, .tar.")
