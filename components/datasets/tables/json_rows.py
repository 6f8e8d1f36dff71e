"""JSON and JSON lines: rows as text, whose places are found in one pass over the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from components.cache import publish
from ghostvis_plugins.errors import DataError, did_you_mean

from .places import bytes_at, cache_entry, unpacked
from .schema import KEY, Row, Schema, is_list, similar

FIRST_ROWS = 10  # looked at when a file is opened: it has no schema
CHUNK = 8 * 2**20  # bytes that are scanned at a time
NUMBER_GOES_ON = ("", *"0123456789.eE+-")


class JsonPart:
    """A JSON file whose rows are the elements of an array or the members of an object, or a file of JSON lines.

    A row of an object's members has its key in the column :data:`KEY`. Compressed files are unpacked into the cache.
    """

    def __init__(self, path: Path, schema: Schema, at: str, keys: tuple[str, ...], counted: str) -> None:
        self._path, self._schema = path, schema
        self._plain = unpacked(path) if path.suffix in (".gz", ".zst") else path
        lines = re.search(r"\.(jsonl|ndjson)(\.|$)", path.name.lower()) is not None
        self._starts, self._stops, self._keys = _json_index(path, self._plain, lines, at, keys, counted)
        self.rows = len(self._starts)
        if self.rows:
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
        start, stop = int(self._starts[index]), int(self._stops[index])
        try:
            found = _parse_row(bytes_at(self._plain, start, stop - start))
        except UnicodeDecodeError as error:
            raise DataError(f"text that is not UTF-8: {error.reason} at byte {error.start} of the row") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON: {error}") from error
        return checked_row(found, self._schema, columns)

    def column(self, name: str) -> Sequence[Any]:
        return self._keys[name]

    def counts(self, name: str) -> Sequence[int]:
        return self._keys[f"#{name}"]


def checked_row(found: Any, schema: Schema, columns: Sequence[str] | None) -> Row:
    """The wanted columns of a JSON object. Raises DataError where it breaks the schema."""
    if not isinstance(found, dict):
        raise DataError(f"a JSON object was expected, and this is {_json_type(found)}")
    result: Row = {}
    for name, kind in schema.all.items():
        if columns is not None and name not in columns:
            continue
        value = found.get(name)
        if value is None and name in schema.required:
            missing = f"column '{name}' ({kind}) is missing" if name not in found else f"column '{name}' is null"
            raise DataError(missing + ("" if name in found else f".{similar(name, found, schema)}"))
        if value is not None and not _fits_json(value, kind):
            raise DataError(f"column '{name}' is {_json_type(value)}, and {kind} was expected")
        result[name] = value
    return result


class MemoryPart:
    """Rows that were read already."""

    def __init__(self, rows: Sequence[Row], schema: Schema) -> None:
        self._rows, self._schema, self.rows = rows, schema, len(rows)

    def row(self, index: int, columns: Sequence[str] | None, pictures: bool) -> Row:
        return checked_row(self._rows[index], self._schema, columns)

    def column(self, name: str) -> Sequence[Any]:
        return [row.get(name) for row in self._rows]

    def counts(self, name: str) -> Sequence[int]:
        return [len(row.get(name) or ()) for row in self._rows]


def _parse_row(text: bytes) -> Any:
    if text[:1] != b'"':
        return json.loads(text)
    key, value = next(iter(json.loads(b"{" + text + b"}").items()))
    return {**value, KEY: key} if isinstance(value, dict) else value


def _json_index(
    path: Path, plain: Path, lines: bool, at: str, keys: tuple[str, ...], counted: str
) -> tuple[np.ndarray, np.ndarray, dict[str, list[Any]]]:
    """Where each row starts and stops, and the columns ``keys``, from the cache where the file is the same."""
    target = cache_entry(path, "json", lines, at, keys, counted)

    def write(folder: Path) -> None:
        places, columns = _scan(path, plain, lines, at, keys, counted)
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
    path: Path, plain: Path, lines: bool, at: str, keys: Sequence[str], counted: str
) -> tuple[list[tuple[int, int]], dict[str, list[Any]]]:
    places: list[tuple[int, int]] = []
    columns: dict[str, list[Any]] = {key: [] for key in (*keys, *([f"#{counted}"] if counted else []))}
    with plain.open("rb") as file:
        rows = _line_places(file, parse=bool(columns)) if lines else _Scanner(path, file).rows(at)
        for start, stop, value in rows:
            places.append((start, stop))
            if not columns:
                continue
            held = value if isinstance(value, dict) else {}
            if not lines and any(isinstance(held.get(key), str) and not held[key].isascii() for key in keys):
                held = _lenient(bytes_at(plain, start, stop - start))  # scanned as Latin-1, and a key is text
            for key in keys:
                scalar = held.get(key)
                columns[key].append(scalar if isinstance(scalar, str | int | float) else None)
            if counted:
                items = held.get(counted)
                columns[f"#{counted}"].append(len(items) if isinstance(items, list) else 0)
    return places, columns


def _line_places(file: IO[bytes], parse: bool) -> Iterator[tuple[int, int, Any]]:
    place = 0
    for line in file:
        if line.strip():
            yield place, place + len(line), _lenient(line) if parse else None
        place += len(line)


def _lenient(text: bytes) -> Row:
    """A row, or one without columns where it cannot be had: its own reading says what is wrong with it."""
    try:
        row = _parse_row(text)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


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
        if self._peek() == "{":
            for name in self._members():
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

    def _members(self) -> Iterator[str]:
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
            goes_on = self._buffer[end : end + 1] in NUMBER_GOES_ON and not isinstance(value, dict | list | str)
            if goes_on and self._more():
                continue  # a number that is cut at the end of this piece
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


def _fits_json(value: Any, kind: pa.DataType) -> bool:
    if is_list(kind):
        return isinstance(value, list) and all(item is None or _fits_json(item, kind.value_type) for item in value)
    if pa.types.is_struct(kind):
        return isinstance(value, dict) and all(
            value.get(part.name) is None or _fits_json(value[part.name], part.type) for part in kind
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
