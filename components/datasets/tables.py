"""Rows by index out of the files that publishers ship: parquet, Arrow, JSON and JSON lines, read lazily.

A :class:`Table` is one or more files, one behind the other. Opening it reads footers and indexes and checks the schema;
a row is read when it is asked for, and only those of its columns that are wanted. What is kept of parquet files, which
can only be read a row group at a time, is bounded in bytes for the whole process (:data:`CACHE_BYTES`); Arrow files are
mapped; of JSON only the places of the rows are kept, in the cache folder, because finding them takes a pass over the
file. Rows may be read in several threads.

Parquet is made for scanning: a row in a random order costs the row group around it. Training from such a table in
shuffled order is right, and slow where pictures are embedded.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import mmap
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.cache import cache_dir, publish
from ghostvis_plugins.errors import DataError, did_you_mean
from ghostvis_plugins.types import Image

Row: TypeAlias = dict[str, Any]
Columns: TypeAlias = Mapping[str, pa.DataType]

STRING, INT, FLOAT, BOOL, BINARY = pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.binary()
PICTURE = pa.struct([("bytes", BINARY), ("path", STRING)])
"""A picture embedded in a table, as the Hugging Face libraries store it. Becomes an Image, or None where it is null."""
NOT_READ = Image(data=b"")
"""What stands for a picture where only text is wanted."""

CACHE_BYTES = 512 * 2**20
OPEN_FILES = 32  # parquet files; their footers stay in memory while they are open
INDEX_VERSION = 1  # of the places of JSON rows
FIRST_ROWS = 10  # of a JSON file, which has no schema: looked at when it is opened
CHUNK = 8 * 2**20  # bytes of JSON that are scanned at a time
KEY = "_key"
"""The column with the key of a row, where the rows of a JSON file are the values of an object."""


def list_of(item: pa.DataType) -> pa.DataType:
    return pa.list_(item)


def struct_of(**fields: pa.DataType) -> pa.DataType:
    return pa.struct(list(fields.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The columns that a table must have, and those that it may have. Others are not read.

    Widths do not matter: int32 is as good as int64, large_string as string; a struct may have more fields.
    """

    required: Columns
    optional: Columns = field(default_factory=dict)

    @property
    def all(self) -> dict[str, pa.DataType]:
        return {**self.required, **self.optional}


class Part(Protocol):
    """One file of a table."""

    rows: int

    def row(self, index: int, columns: Sequence[str] | None, pictures: bool) -> Row: ...

    def column(self, name: str) -> Sequence[Any]: ...


class Table:
    """The rows of ``files`` in the order given.

    ``at`` names the member of a JSON file that holds the rows, ``keys`` the columns of it that :meth:`column` will be
    asked for. Raises DataError for a file that cannot be read, a column that is missing or of another type, and where
    there are no rows at all.
    """

    def __init__(self, files: Sequence[Path], schema: Schema, *, at: str = "", keys: Sequence[str] = ()) -> None:
        self.files = tuple(files)
        self._parts = [_open(path, schema, at, tuple(keys)) for path in files]
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


def _names(files: Sequence[Path]) -> str:
    return str(files[0]) + (f" and {len(files) - 1} more" if len(files) > 1 else "") if files else "no file"


def _open(path: Path, schema: Schema, at: str, keys: tuple[str, ...]) -> Part:
    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            return ParquetPart(path, schema)
        if name.endswith(".arrow"):
            return ArrowPart(path, schema)
        if re.search(r"\.(json|jsonl|ndjson)(\.gz|\.zst)?$", name):
            return JsonPart(path, schema, at, keys)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    raise DataError(f"{path}: not a kind of file that holds rows", hint="Known: .parquet, .arrow, .json, .jsonl.")


# Parquet


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
                self._kept[key] = group
                self.bytes += group.nbytes
                self._reading.pop(key, None)
                while self.bytes > self.limit and len(self._kept) > 1:
                    self.bytes -= self._kept.popitem(last=False)[1].nbytes
            return group


class _OpenFiles:
    """The parquet files opened last, each with the lock under which it is read: a reader is not made for threads."""

    def __init__(self, limit: int) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self._kept: OrderedDict[Path, tuple[pq.ParquetFile, threading.Lock]] = OrderedDict()

    def get(self, path: Path) -> tuple[pq.ParquetFile, threading.Lock]:
        with self._lock:
            if path not in self._kept:
                self._kept[path] = _parquet(path), threading.Lock()
            self._kept.move_to_end(path)
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)  # closed when the last thread is done with it
            return self._kept[path]


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise DataError(
            f"{path}: not a whole parquet file: {_first_line(error)}",
            hint="It may be cut short, or a pointer of Git LFS in place of the file; fetch it again.",
        ) from error


_groups, _files = _RowGroups(CACHE_BYTES), _OpenFiles(OPEN_FILES)


class ParquetPart:
    """A parquet file. The bytes of pictures are columns of their own, so text is read without them."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self._path = path
        self._stamp = path.stat().st_mtime_ns  # a file that is written again is another one
        opened = _parquet(path)
        self._types = _checked(path, opened.schema_arrow, schema)
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
        names = _wanted(self._names, columns)
        table = self._group(group, names, pictures)
        return _row(self._path, table, index - start, self._types, pictures) | _nones(self._missing, columns)

    def column(self, name: str) -> Sequence[Any]:
        values: list[Any] = []
        for group in range(len(self._ends)):
            values += _values(self._path, self._read(group, self._leaves[name]).column(name))
        return values

    def _group(self, group: int, names: Sequence[str], pictures: bool) -> pa.Table:
        """Pictures and the rest are kept apart: the text around 100 pictures is small, and asked for more often."""
        embedded = [name for name in names if _holds_pictures(self._types[name])]
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
        opened, lock = _files.get(self._path)
        try:
            with lock:
                return opened.read_row_group(group, columns=list(leaves), use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self._path}: row group {group} cannot be read: {_first_line(error)}") from error


# Arrow


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
            raise DataError(f"{path}: not a whole Arrow file: {_first_line(error)}") from error
        self._types = _checked(path, self._table.schema, schema)
        self._missing = tuple(name for name in schema.optional if name not in self._types)
        self._table = self._table.select(list(self._types))
        self.rows = self._table.num_rows

    def row(self, index: int, columns: Sequence[str] | None, pictures: bool) -> Row:
        table = self._table.select(_wanted(self._table.column_names, columns))
        return _row(self._path, table, index, self._types, pictures) | _nones(self._missing, columns)

    def column(self, name: str) -> Sequence[Any]:
        return _values(self._path, self._table.column(name))


def _row(path: Path, table: pa.Table, index: int, types: Columns, pictures: bool) -> Row:
    result: Row = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        scalar = column[index]
        if _holds_pictures(types[name]):
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


def _holds_pictures(kind: pa.DataType) -> bool:
    if _is_list(kind):
        return _holds_pictures(kind.value_type)
    return pa.types.is_struct(kind) and {"bytes", "path"} <= {part.name for part in kind}


# JSON


class JsonPart:
    """A JSON file whose rows are the elements of an array or the members of an object, or a file of JSON lines.

    A row of an object's members has its key in the column :data:`KEY`. Compressed files are unpacked into the cache.
    """

    def __init__(self, path: Path, schema: Schema, at: str, keys: tuple[str, ...]) -> None:
        self._path, self._schema = path, schema
        self._plain = _unpacked(path) if path.suffix in (".gz", ".zst") else path
        lines = re.search(r"\.(jsonl|ndjson)(\.|$)", path.name.lower()) is not None
        index = _json_index(path, self._plain, lines, at, keys)
        self._starts, self._stops, self._keys = index
        self.rows = len(self._starts)
        if self.rows:
            with self._plain.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._check_first()

    def _check_first(self) -> None:
        """Ten rows in a row that break the schema are of another set; a row that does among others is a bad sample."""
        errors = []
        for index in range(min(FIRST_ROWS, self.rows)):
            try:
                self.row(index, None, True)
                return
            except DataError as error:
                errors.append(error)
        raise DataError(f"{self._path}: {errors[0].message} (in the first row)", hint=errors[0].hint) from errors[0]

    def row(self, index: int, columns: Sequence[str] | None, pictures: bool) -> Row:
        text = self._map[self._starts[index] : self._stops[index]]
        try:
            found = _parse_row(text)
        except UnicodeDecodeError as error:
            raise DataError(f"text that is not UTF-8: {error.reason} at byte {error.start} of the row") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON: {error}") from error
        if not isinstance(found, dict):
            raise DataError(f"a JSON object was expected, and this is {_json_type(found)}")
        result: Row = {}
        for name, kind in self._schema.all.items():
            if columns is not None and name not in columns:
                continue
            value = found.get(name)
            if value is None and name in self._schema.required:
                missing = f"column '{name}' ({kind}) is missing" if name not in found else f"column '{name}' is null"
                raise DataError(missing + ("" if name in found else did_you_mean(name, found)))
            if value is not None and not _json_fits(value, kind):
                raise DataError(f"column '{name}' is {_json_type(value)}, and {kind} was expected")
            result[name] = value
        return result

    def column(self, name: str) -> Sequence[Any]:
        return self._keys[name]


def _parse_row(text: bytes) -> Any:
    if text[:1] != b'"':
        return json.loads(text)
    key, value = next(iter(json.loads(b"{" + text + b"}").items()))
    return {**value, KEY: key} if isinstance(value, dict) else value


def _json_index(
    path: Path, plain: Path, lines: bool, at: str, keys: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, dict[str, list[Any]]]:
    """Where each row starts and stops, and the columns ``keys``, from the cache where the file is the same."""
    status = path.stat()
    about = (str(path.resolve()), status.st_size, status.st_mtime_ns, lines, at, keys, INDEX_VERSION)
    target = cache_dir() / "tables" / hashlib.sha256(repr(about).encode()).hexdigest()[:32]

    def write(folder: Path) -> None:
        places, columns = _scan(path, plain, lines, at, keys)
        np.save(folder / "places.npy", np.array(places, dtype=np.int64).reshape(-1, 2))
        (folder / "keys.json").write_text(json.dumps(columns), encoding="utf-8")

    def read() -> tuple[np.ndarray, np.ndarray, dict[str, list[Any]]] | None:
        try:
            places = np.load(target / "places.npy")
            columns = json.loads((target / "keys.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return places[:, 0], places[:, 1], columns

    found = read()
    if found is None:
        publish(target, write, is_valid=lambda _: read() is not None)
        found = read()
    if found is None:
        raise DataError(f"{target}: what was just written there cannot be read", hint="Try again.")
    return found


def _scan(
    path: Path, plain: Path, lines: bool, at: str, keys: Sequence[str]
) -> tuple[list[tuple[int, int]], dict[str, list[Any]]]:
    places: list[tuple[int, int]] = []
    columns: dict[str, list[Any]] = {key: [] for key in keys}
    with plain.open("rb") as file:
        rows = _line_places(file) if lines else _Scanner(path, file).rows(at)
        for start, stop, value in rows:
            places.append((start, stop))
            for key in keys:
                # bytes were read as Latin-1, so that places are those of bytes; a key is text
                held = value() if callable(value) else value
                held = held.get(key) if isinstance(held, dict) else None
                columns[key].append(_text(held))
    return places, columns


def _text(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return value.encode("latin-1").decode("utf-8")
        except UnicodeError:
            return value  # written with \\u escapes, or a bad sample that its own reading will report
    return value if isinstance(value, int | float | bool) else None


def _line_places(file: IO[bytes]) -> Iterator[tuple[int, int, Callable[[], Any]]]:
    place = 0
    for line in file:
        if line.strip():
            yield place, place + len(line), lambda line=line: _lenient(line)  # type: ignore[misc]
        place += len(line)


def _lenient(line: bytes) -> Any:
    try:
        return json.loads(line.decode("latin-1"))
    except ValueError:
        return None  # the row's own reading says what is wrong


class _Scanner:
    """Finds rows in a JSON file of any size, holding a piece of it at a time."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file = path, file
        self._buffer, self._base, self._at, self._ended = "", 0, 0, False
        self._decoder = json.JSONDecoder()

    def rows(self, at: str) -> Iterator[tuple[int, int, Any]]:
        """(first byte, byte behind the last, value) of every element of the array or object at the member ``at``."""
        if not at:
            yield from self._container()
            return
        names = []
        for name in self._members():
            names.append(name)
            if name == at:
                yield from self._container()
                return
            self._skip()
        raise DataError(f"{self._path}: no member '{at}' in it{did_you_mean(at, names)}", hint=f"It has {names}.")

    def _container(self) -> Iterator[tuple[int, int, Any]]:
        opening = self._peek()
        if opening == "{":
            for name in self._members(rows=True):
                start = self._member_start
                value, stop = self._value()
                yield start, stop, {**value, KEY: name} if isinstance(value, dict) else value
            return
        self._take("[")
        while self._peek() != "]":
            start = self._base + self._at
            value, stop = self._value()
            yield start, stop, value
            if self._peek() == ",":
                self._take(",")
            elif self._peek() != "]":
                self._fail("',' or ']' expected")
        self._take("]")

    def _members(self, rows: bool = False) -> Iterator[str]:
        """The names of an object's members; the caller takes each value before the next."""
        self._take("{")
        while self._peek() != "}":
            self._member_start = self._base + self._at
            name, _ = self._value()
            if not isinstance(name, str):
                self._fail("a name in quotes expected")
            self._take(":")
            self._peek()
            yield name
            if self._peek() == ",":
                self._take(",")
            elif self._peek() != "}":
                self._fail("',' or '}' expected")
        self._take("}")

    def _skip(self) -> None:
        if self._peek() in "[{":
            for _ in self._container():
                pass
        else:
            self._value()

    def _value(self) -> tuple[Any, int]:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except ValueError as error:
                if not self._more():
                    self._fail(str(error), error)
                continue
            except RecursionError as error:
                self._fail("nested too deeply", error)
            if end == len(self._buffer) and not isinstance(value, dict | list | str) and self._more():
                continue  # a number may go on in the next piece
            self._at = end
            return value, self._base + end

    def _peek(self) -> str:
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in " \t\r\n\xef\xbb\xbf":
                self._at += 1
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                self._fail("the file ends in the middle")

    def _take(self, char: str) -> None:
        if self._peek() != char:
            self._fail(f"'{char}' expected")
        self._at += 1

    def _more(self) -> bool:
        """Let go of what was scanned and read on; the longer a value that is still open, the more."""
        data = self._file.read(max(CHUNK, len(self._buffer) - self._at))
        self._base += self._at
        self._buffer, self._at = self._buffer[self._at :] + data.decode("latin-1"), 0
        return bool(data)

    def _fail(self, reason: str, cause: BaseException | None = None) -> Any:
        raise DataError(
            f"{self._path}: not a whole JSON file: {reason} (near byte {self._base + self._at})",
            hint="The download may be incomplete; fetch it again.",
        ) from cause


def _unpacked(path: Path) -> Path:
    status = path.stat()
    about = (str(path.resolve()), status.st_size, status.st_mtime_ns)
    target = cache_dir() / "tables" / f"unpacked-{hashlib.sha256(repr(about).encode()).hexdigest()[:32]}"
    result = target / path.stem

    def write(folder: Path) -> None:
        try:
            with pa.input_stream(str(path), compression="detect") as packed, (folder / path.stem).open("wb") as file:
                shutil.copyfileobj(packed, file, CHUNK)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: cannot be unpacked: {_first_line(error)}", hint="Fetch it again.") from error

    if not result.is_file():
        publish(target, write, is_valid=lambda folder: (folder / path.stem).is_file())
    return result


def _json_fits(value: Any, kind: pa.DataType) -> bool:
    if _is_list(kind):
        return isinstance(value, list) and all(item is None or _json_fits(item, kind.value_type) for item in value)
    if pa.types.is_struct(kind):
        return isinstance(value, dict) and all(
            value.get(part.name) is None or _json_fits(value[part.name], part.type) for part in kind
        )
    if pa.types.is_boolean(kind):
        return isinstance(value, bool)
    if pa.types.is_integer(kind):
        return isinstance(value, int) and not isinstance(value, bool)
    if pa.types.is_floating(kind):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, str)


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


# Schemas


def _checked(path: Path, found: pa.Schema, schema: Schema) -> dict[str, pa.DataType]:
    """The types of the columns that will be read, by name. Raises DataError for what is missing or of another type."""
    types = {part.name: part.type for part in found}
    for name, kind in schema.all.items():
        if name not in types:
            if name in schema.required:
                raise DataError(
                    f"{path}: column '{name}' ({kind}) is missing.{did_you_mean(name, types)}",
                    hint=f"It has {', '.join(f'{name} ({kind})' for name, kind in types.items())}.",
                )
            continue
        if not (_fits(types[name], kind) or (name in schema.optional and pa.types.is_null(types[name]))):
            raise DataError(f"{path}: column '{name}' is {types[name]}, and {kind} was expected")
    return {name: types[name] for name in schema.all if name in types}


def _fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_dictionary(found):
        return _fits(found.value_type, wanted)
    if _is_list(wanted):
        return _is_list(found) and _fits(found.value_type, wanted.value_type)
    if pa.types.is_struct(wanted):
        fields = {part.name: part.type for part in found} if pa.types.is_struct(found) else {}
        return all(part.name in fields and _fits(fields[part.name], part.type) for part in wanted)
    return any(test(found) and test(wanted) for test in _FAMILIES)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


_FAMILIES: tuple[Callable[[pa.DataType], bool], ...] = (
    _is_text,
    _is_binary,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_boolean,
)


def _wanted(names: Sequence[str], columns: Sequence[str] | None) -> list[str]:
    return [name for name in names if columns is None or name in columns]


def _nones(missing: Iterable[str], columns: Sequence[str] | None) -> Row:
    return {name: None for name in missing if columns is None or name in columns}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
