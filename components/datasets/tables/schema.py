"""What a table must have: columns and their types, and what a row may be asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import pyarrow as pa

from ghostvis_plugins.errors import DataError, did_you_mean
from ghostvis_plugins.types import Image

Row: TypeAlias = dict[str, Any]
Columns: TypeAlias = Mapping[str, pa.DataType]

STRING, INT, FLOAT, BOOL, BINARY = pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.binary()
PICTURE = pa.struct([("bytes", BINARY), ("path", STRING)])
"""A picture embedded in a table, as the Hugging Face libraries store it. Becomes an Image, or None where it is null."""
NOT_READ = Image(data=b"")
"""What stands for a picture where only text is wanted."""
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

    def counts(self, name: str) -> Sequence[int]: ...


def checked(path: Path, found: pa.Schema, schema: Schema) -> dict[str, pa.DataType]:
    """The types of the columns that will be read, by name. Raises DataError for what is missing or of another type."""
    types = {part.name: part.type for part in found}
    for name, kind in schema.all.items():
        if name not in types:
            if name in schema.required:
                raise DataError(
                    f"{path}: column '{name}' ({kind}) is missing.{similar(name, types, schema)}",
                    hint=f"It has {', '.join(f'{name} ({kind})' for name, kind in types.items())}.",
                )
            continue
        if not (fits(types[name], kind) or (name in schema.optional and pa.types.is_null(types[name]))):
            raise DataError(f"{path}: column '{name}' is {types[name]}, and {kind} was expected")
    return {name: types[name] for name in schema.all if name in types}


def similar(name: str, found: Iterable[str], schema: Schema) -> str:
    """A hint at a column of nearly that name that is not wanted itself."""
    return did_you_mean(name, set(found) - set(schema.all))


def fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_dictionary(found):
        return fits(found.value_type, wanted)
    if is_list(wanted):
        return is_list(found) and fits(found.value_type, wanted.value_type)
    if pa.types.is_struct(wanted):
        fields = {part.name: part.type for part in found} if pa.types.is_struct(found) else {}
        return all(part.name in fields and fits(fields[part.name], part.type) for part in wanted)
    return any(test(found) and test(wanted) for test in _FAMILIES)


def is_list(kind: pa.DataType) -> bool:
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


def wanted(names: Sequence[str], columns: Sequence[str] | None) -> list[str]:
    return [name for name in names if columns is None or name in columns]


def nones(missing: Iterable[str], columns: Sequence[str] | None) -> Row:
    return {name: None for name in missing if columns is None or name in columns}


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def holds_pictures(kind: pa.DataType) -> bool:
    if is_list(kind):
        return holds_pictures(kind.value_type)
    return pa.types.is_struct(kind) and {"bytes", "path"} <= {part.name for part in kind}
