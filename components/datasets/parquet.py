"""Tables of one's own (parquet, Arrow, JSON lines), whose columns are named by options.

A row is a document (``text``), a whole conversation (``messages``) or an ``answer`` with a question, from a column or
the same for all, and perhaps a picture: embedded as the Hugging Face libraries store it, as encoded bytes, or as the
path of a file. Columns that are not there or of another type are an error when the set is opened, which lists what is
there; a row that cannot be used is a DataError of its sample.

Splits: files of a folder that are called after one (``train-00000-of-00002.parquet``), else by a hash of the row's
number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.datasets.config_text import Parquet
from components.datasets.local import chosen, existing, locate, named_split, of_split
from components.datasets.messages import sample_of, text_of
from components.datasets.published import Layout, PublishedDataset, Source, words
from components.datasets.tables import BINARY, NOT_READ, PICTURE, STRING, Row, Schema, Table, list_of, struct_of
from ghostvis_plugins.errors import ConfigError, DataError
from ghostvis_plugins.types import Conversation, Document, Image, Sample, SampleList, Split, assistant, user

SUFFIXES = (".parquet", ".arrow", ".jsonl")
_OPENAI = list_of(struct_of(role=STRING, content=STRING))
_SHAREGPT = list_of(struct_of(**{"from": STRING, "value": STRING}))


def build(config: Parquet, *, split: Split) -> PublishedDataset | SampleList:
    """The rows of one split. Raises UnavailableError without the file, DataError where it is not what it should be,
    ConfigError for a column that is not there."""
    path = existing(config.path, "dataset.parquet.path")
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: no {', '.join(SUFFIXES)} file in this folder")
    named = {file: named_split(file.name) if path.is_dir() else None for file in files}
    wanted, shares = of_split(named, split, validation=config.validation, test=config.test)
    if not wanted:
        return SampleList(())
    columns = _columns(wanted[0])
    schema = Schema(required=_shape(config, columns, wanted[0]))
    table = Table(wanted, schema)
    root = existing(config.root, "dataset.parquet.root") if config.root else wanted[0].parent
    source = Source(name="parquet", options=config, folder=root, split=split, extra=locate(root))
    rows: Sequence[int] = range(len(table))
    if shares is not None:
        rows = chosen((f"parquet/{row}" for row in rows), split, shares)
    return PublishedDataset(table, Layout(files={}, schema=schema, convert=_sample), source, rows)


def _columns(path: Path) -> dict[str, pa.DataType]:
    """Names and types of the columns; of JSON lines, those of the first row."""
    try:
        if path.suffix == ".parquet":
            schema = pq.read_schema(path)
        elif path.suffix == ".arrow":
            with pa.memory_map(str(path)) as file:
                try:
                    schema = pa.ipc.open_stream(file).schema
                except pa.ArrowInvalid:
                    schema = pa.ipc.open_file(file).schema
        else:
            with path.open("rb") as lines:
                schema = pa.Table.from_pylist([json.loads(next(line for line in lines if line.strip()))]).schema
    except StopIteration:
        raise DataError(f"{path}: is empty") from None
    except (pa.ArrowException, OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not a table: {str(error).splitlines()[0]}") from error
    return {field.name: field.type for field in schema}


def _shape(config: Parquet, columns: Mapping[str, pa.DataType], path: Path) -> dict[str, pa.DataType]:
    """The columns that are read, with their types. Raises ConfigError for one that is not there."""
    shape: dict[str, pa.DataType] = {}
    for option in ("text", "messages", "answer", "question", "image"):
        name = getattr(config, option)
        if name is None:
            continue
        if name not in columns:
            raise ConfigError(f"dataset.parquet.{option} = {name}: {path} has the columns {', '.join(columns)}")
        kind = columns[name]
        if option == "messages":
            turn = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
            said = {field.name for field in turn} if pa.types.is_struct(turn) else set()
            shape[name] = _SHAREGPT if "value" in said else _OPENAI
        elif option == "image" and not pa.types.is_struct(kind):
            shape[name] = STRING if "string" in str(kind) else BINARY
        else:
            shape[name] = PICTURE if option == "image" else STRING
    return shape


def _sample(row: Row, source: Source) -> Sample:
    config: Parquet = source.options
    if config.text:
        words(row[config.text], "text")  # an empty one is a bad sample; of others, the space around them counts
        return Document(row[config.text])
    picture = _picture(row[config.image], source) if config.image else None
    if config.messages:
        turns = row[config.messages]
        shape = "conversations" if turns and "value" in turns[0] else "messages"
        given: dict[str, Any] = {shape: turns}
        if picture is not None:
            given["images"] = ["-"]
        return sample_of(given, id="", picture=lambda _: picture or NOT_READ)
    answer = words(row[config.answer], "answer")  # type: ignore[index]
    asked = words(row[config.question], "question") if config.question else str(config.request)
    shown = () if picture is None else (picture,)
    return Conversation((user(*shown, asked), assistant(answer)))


def _picture(value: Any, source: Source) -> Image:
    """A picture that is embedded, given as bytes, or named."""
    if isinstance(value, Image):
        return value
    if not value:
        raise DataError("the row has no picture in it")
    if not source.reads:
        return NOT_READ
    if isinstance(value, bytes):
        return Image(data=value)
    found: Image = source.extra(text_of(value, "image"))
    return found
