"""Parquet and Arrow files: columns of known types, of which only the wanted ones are read."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Image

from .schema import NOT_READ, Columns, Row, Schema, checked, first_line, holds_pictures, nones, wanted

CACHE_BYTES = 256 * 2**20  # of row groups, in the whole process
OPEN_FILES = 32  # parquet files; their footers stay in memory while they are open


class _RowGroups:
    """The row groups read last, of all tables together, at most ``limit`` bytes of them (but always the last one)."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._kept: OrderedDict[tuple[Any, ...], pa.Table] = OrderedDict()
        self._lock = threading.Lock()
        self._reading: dict[tuple[Any, ...], threading.Lock] = {}

    def get(self, key: tuple[Any, ...], read: Callable[[], pa.Table]) -> pa.Table:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            own = self._reading.setdefault(key, threading.Lock())
        with own:  # threads that want the same group wait for the one that reads it
            with self._lock:
                if key in self._kept:
                    return self._kept[key]
            group = read()
            with self._lock:
                self._reading.pop(key, None)
                if key not in self._kept:
                    self.bytes += group.nbytes
                self._kept[key] = group
                while self.bytes > self.limit and len(self._kept) > 1:
                    self.bytes -= self._kept.popitem(last=False)[1].nbytes
            return group


class _OpenFiles:
    """The parquet files opened last, each with the lock under which it is read: a reader is not made for threads."""

    def __init__(self, limit: int) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self._kept: OrderedDict[tuple[Path, int], tuple[pq.ParquetFile, threading.Lock]] = OrderedDict()

    def get(self, path: Path, stamp: int) -> tuple[pq.ParquetFile, threading.Lock]:
        with self._lock:
            key = (path, stamp)
            if key not in self._kept:
                self._kept[key] = _parquet(path), threading.Lock()
            self._kept.move_to_end(key)
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)  # closed when the last thread is done with it
            return self._kept[key]


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise DataError(
            f"{path}: not a whole parquet file: {first_line(error)}",
            hint="It may be cut short, or a pointer of Git LFS in place of the file; fetch it again.",
        ) from error


_groups, _files = _RowGroups(CACHE_BYTES), _OpenFiles(OPEN_FILES)


class ParquetPart:
    """A parquet file. The bytes of pictures are columns of their own, so text is read without them."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self._path = path
        self._stamp = path.stat().st_mtime_ns  # a file that is written again is another one
        opened = _parquet(path)
        self._types = checked(path, opened.schema_arrow, schema)
        self._names = tuple(self._types)
        self._missing = tuple(name for name in schema.optional if name not in self._types)
        metadata = opened.metadata
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self._ends = [int(end) for end in np.cumsum(sizes)] if sizes else []
        self.rows = metadata.num_rows
        leaves = [opened.schema.column(number).path for number in range(len(opened.schema))]
        self._leaves = {name: [leaf for leaf in leaves if leaf.split(".")[0] == name] for name in self._names}
        opened.close()

    def row(self, index: int, columns: Sequence[str] | None, pictures: bool) -> Row:
        group = bisect.bisect_right(self._ends, index)
        start = self._ends[group - 1] if group else 0
        names = wanted(self._names, columns)
        table = self._group(group, names, pictures)
        return _row(self._path, table, index - start, self._types, pictures) | nones(self._missing, columns)

    def column(self, name: str) -> Sequence[Any]:
        values: list[Any] = []
        for group in range(len(self._ends)):
            values += _values(self._path, self._read(group, self._leaves[name]).column(name))
        return values

    def counts(self, name: str) -> Sequence[int]:
        counts: list[int] = []
        for group in range(len(self._ends)):
            counts += _counts(self._read(group, self._leaves[name]).column(name))
        return counts

    def _group(self, group: int, names: Sequence[str], pictures: bool) -> pa.Table:
        """Pictures and the rest are kept apart: the text around 100 pictures is small, and asked for more often."""
        embedded = [name for name in names if holds_pictures(self._types[name])]
        plain = [leaf for name in names if name not in embedded for leaf in self._leaves[name]]
        blind = [leaf for name in embedded for leaf in self._leaves[name] if not leaf.endswith(".bytes")]
        seen = [leaf for name in embedded for leaf in self._leaves[name]]
        if not embedded:
            return self._cached(group, plain)
        if not pictures:
            return self._cached(group, plain + blind)
        table = self._cached(group, seen)
        if not plain:
            return table
        rest = self._cached(group, plain)
        return pa.Table.from_arrays([*rest.columns, *table.columns], names=[*rest.column_names, *table.column_names])

    def _cached(self, group: int, leaves: Sequence[str]) -> pa.Table:
        key = (self._path, self._stamp, group, tuple(leaves))
        return _groups.get(key, lambda: self._read(group, leaves))

    def _read(self, group: int, leaves: Sequence[str]) -> pa.Table:
        try:
            opened, lock = _files.get(self._path, self._stamp)
            with lock:
                return opened.read_row_group(group, columns=list(leaves), use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self._path}: row group {group} cannot be read: {first_line(error)}") from error


class ArrowPart:
    """A file of ``datasets.save_to_disk`` or of its cache (a stream), or an Arrow file. Mapped, not loaded."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self._path = path
        try:
            source = pa.memory_map(str(path))
            try:
                self._table = pa.ipc.open_stream(source).read_all()
            except pa.ArrowInvalid:
                self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: not a whole Arrow file: {first_line(error)}") from error
        self._types = checked(path, self._table.schema, schema)
        self._missing = tuple(name for name in schema.optional if name not in self._types)
        self._table = self._table.select(list(self._types))
        self.rows = self._table.num_rows

    def row(self, index: int, columns: Sequence[str] | None, pictures: bool) -> Row:
        table = self._table.select(wanted(self._table.column_names, columns))
        return _row(self._path, table, index, self._types, pictures) | nones(self._missing, columns)

    def column(self, name: str) -> Sequence[Any]:
        return _values(self._path, self._table.column(name))

    def counts(self, name: str) -> Sequence[int]:
        return _counts(self._table.column(name))


def _row(path: Path, table: pa.Table, index: int, types: Columns, pictures: bool) -> Row:
    result: Row = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        scalar = column[index]
        if holds_pictures(types[name]):
            result[name] = _pictures(scalar, pictures)
            continue
        try:
            result[name] = scalar.as_py()
        except UnicodeDecodeError as error:
            raise DataError(f"column '{name}': text that is not UTF-8: {error.reason} at byte {error.start}") from error
    return result


def _values(path: Path, column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], type=column.type.value_type)
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: a column that identifies rows holds text that is not UTF-8") from error


def _counts(column: pa.ChunkedArray) -> list[int]:
    return [count or 0 for count in pc.list_value_length(column).to_pylist()]


def _pictures(scalar: pa.Scalar, read: bool) -> Any:
    """A picture or a list of them as Image, None where there is none."""
    if not scalar.is_valid:
        return None
    if not isinstance(scalar, pa.StructScalar):
        return [_pictures(item, read) for item in scalar.values]
    if not read:
        return NOT_READ
    data = scalar["bytes"].as_py()
    return Image(data=data) if data else None
