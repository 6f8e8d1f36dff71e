"""Tar files in the form of WebDataset: a row is what has one name up to the first dot."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.cache import publish
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Image

from .places import bytes_at, cache_entry
from .schema import INT, NOT_READ, STRING, Row, Schema, wanted

PICTURE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
INDEX = "members.arrow"


class TarPart:
    """A tar file of WebDataset's form: members whose names are equal up to the first dot are a row.

    Its columns are ``__key__``, ``image`` (the member that is a picture) and the other endings: ``txt`` as text,
    ``json`` parsed. All are optional; a schema names those that are wanted.
    """

    def __init__(self, path: Path, schema: Schema) -> None:
        self._path, self._names = path, tuple(schema.all)
        target = cache_entry(path, "tar")
        if not (target / INDEX).is_file():
            publish(target, self._write, is_valid=lambda folder: (folder / INDEX).is_file())
        self._index = pa.ipc.open_file(pa.memory_map(str(target / INDEX))).read_all()
        self.rows = self._index.num_rows

    def row(self, index: int, columns: Sequence[str] | None, pictures: bool) -> Row:
        key = self._index["key"][index].as_py()
        names, starts, sizes = (self._index[name][index].as_py() for name in ("names", "starts", "sizes"))
        result: Row = dict.fromkeys(wanted(self._names, columns))
        for name, start, size in zip(names, starts, sizes, strict=True):
            column = "image" if name in PICTURE_ENDINGS else name
            if column in result:
                result[column] = (
                    NOT_READ if column == "image" and not pictures else _member(name, self._path, start, size)
                )
        if "__key__" in result:
            result["__key__"] = key
        return result

    def column(self, name: str) -> Sequence[Any]:
        if name != "__key__":
            raise DataError(f"{self._path}: only the column __key__ of a tar file is known without reading it all")
        return self._index["key"].to_pylist()  # type: ignore[no-any-return]

    def counts(self, name: str) -> Sequence[int]:
        raise DataError(f"{self._path}: a tar file has no column of lists")

    def _write(self, folder: Path) -> None:
        keys: list[str] = []
        names: list[list[str]] = []
        starts: list[list[int]] = []
        sizes: list[list[int]] = []
        for key, name, start, size in self._scan():
            if not keys or keys[-1] != key:
                keys.append(key)
                for rows in (names, starts, sizes):
                    rows.append([])
            names[-1].append(name)
            starts[-1].append(start)
            sizes[-1].append(size)
        kinds = (STRING, pa.list_(STRING), pa.list_(INT), pa.list_(INT))
        columns = [pa.array(values, kind) for values, kind in zip((keys, names, starts, sizes), kinds, strict=True)]
        table = pa.Table.from_arrays(columns, names=["key", "names", "starts", "sizes"])
        with pa.OSFile(str(folder / INDEX), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    def _scan(self) -> Iterator[tuple[str, str, int, int]]:
        """(key, ending, first byte, size) of every file in the tar. Raises DataError for one that is cut."""
        try:
            with tarfile.open(self._path, "r:") as opened:
                for member in opened:
                    folder, slash, base = member.name.rpartition("/")
                    key, dot, ending = base.partition(".")
                    if member.isfile() and dot and key:
                        yield folder + slash + key, ending.lower(), member.offset_data, member.size
                end = opened.offset
            if bytes_at(self._path, end, 512).strip(b"\0"):
                raise tarfile.ReadError("there is something else behind the last file")
        except (tarfile.TarError, DataError, EOFError) as error:
            reason = error.message if isinstance(error, DataError) else str(error)
            raise DataError(
                f"{self._path}: not a whole tar file: {reason}", hint="It may be cut short; fetch it again."
            ) from error


def _member(ending: str, path: Path, start: int, size: int) -> Any:
    data = bytes_at(path, start, size)
    if ending in PICTURE_ENDINGS:
        return Image(data=data)
    try:
        return json.loads(data) if ending == "json" else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"the member .{ending} is text that is not UTF-8: {error.reason} at {error.start}") from error
    except ValueError as error:
        raise DataError(f"the member .{ending} is not JSON: {error}") from error
