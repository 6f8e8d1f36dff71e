"""Rows by index: the same out of every kind of file, in bounded memory, and only what was asked for."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from components.datasets.tables import (
    INT,
    KEY,
    NOT_READ,
    PICTURE,
    STRING,
    Schema,
    Table,
    columnar,
    json_rows,
    list_of,
    struct_of,
)
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Image

TEXT = Schema(required={"a": STRING}, optional={"n": INT, "l": list_of(STRING)})


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOSTVIS_CACHE", str(tmp_path_factory.mktemp("cache")))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
rows = st.lists(
    st.fixed_dictionaries(
        {"a": texts, "n": st.none() | st.integers(-(2**40), 2**40), "l": st.lists(texts, max_size=3)}
    ),
    min_size=1,
    max_size=12,
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def all_rows(table: Table) -> list[dict[str, Any]]:
    return [table.row(index) for index in range(len(table))]


@example(rows=[{"a": "\u00c2\u0080", "n": None, "l": []}], group=2)  # as bytes, the UTF-8 of another text
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows, group=st.integers(1, 5))
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, rows: list[dict[str, Any]], group: int) -> None:
    columns = pa.schema(
        [("a", pa.large_string()), ("n", pa.int32() if group == 1 else pa.int64()), ("l", pa.list_(pa.string()))]
    )
    if group == 1:
        rows = [{**row, "n": None} for row in rows]
    table = pa.Table.from_pylist(rows, schema=columns)
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=group)
    for name, new in (("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)):
        with pa.OSFile(str(tmp_path / f"{name}.arrow"), "wb") as sink, new(sink, columns) as writer:
            writer.write_table(table, max_chunksize=group)
    (tmp_path / "t.json").write_text(json.dumps(rows, ensure_ascii=group % 2 == 0), encoding="utf-8")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for file in ("t.parquet", "stream.arrow", "file.arrow", "t.json", "t.jsonl"):
        found = Table([tmp_path / file, tmp_path / "t.parquet"], TEXT, keys=("a",), counted="l")
        assert all_rows(found) == rows + rows, file
        assert list(found.column("a")) == [row["a"] for row in rows] * 2, file
        assert list(found.counts("l")) == [len(row["l"]) for row in rows] * 2, file
        assert found.row(0, ["n"]) == {"n": rows[0]["n"]}


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    members=st.lists(st.dictionaries(texts, anything, max_size=4), min_size=1, max_size=8),
    before=st.dictionaries(texts, anything, max_size=3),
    after=st.dictionaries(texts, anything, max_size=3),
    chunk=st.integers(1, 40),
    indent=st.none() | st.integers(0, 2),
    escaped=st.booleans(),
    as_object=st.booleans(),
)
def test_the_places_of_json_rows_are_right(
    tmp_path: Path, members, before, after, chunk: int, indent, escaped: bool, as_object: bool
) -> None:
    held = {f"é{n}": member for n, member in enumerate(members)} if as_object else members
    document = (
        {k: v for k, v in before.items() if k != "rows"}
        | {"rows": held}
        | {k: v for k, v in after.items() if k != "rows"}
    )
    path = tmp_path / "d.json"
    path.write_text(json.dumps(document, ensure_ascii=escaped, indent=indent), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, path.open("rb") as file:
        patch.setattr(json_rows, "CHUNK", chunk)
        places = [(start, stop) for start, stop, _ in json_rows._Scanner(path, file).rows("rows")]
    data = path.read_bytes()
    found = [json_rows._parse_row(data[start:stop]) for start, stop in places]
    expected = [{**member, KEY: f"é{n}"} for n, member in enumerate(members)] if as_object else members
    assert found == expected


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members=st.lists(st.dictionaries(texts, anything, max_size=3), min_size=1, max_size=6), data=st.data())
def test_a_json_file_that_is_cut_anywhere_is_refused(tmp_path: Path, members, data) -> None:
    text = json.dumps([{"a": "x", **member} for member in members])
    path = tmp_path / "cut.json"
    path.write_text(text[: data.draw(st.integers(0, len(text) - 1))])
    with pytest.raises(DataError, match="not a whole JSON file"):
        Table([path], Schema(required={"a": STRING}))


def pictures(path: Path, count: int, size: int, group: int) -> Path:
    table = pa.table({
        "text": [f"text {n}" for n in range(count)],
        "image": pa.array([{"bytes": bytes([n % 251]) * size, "path": f"{n}.jpg"} for n in range(count)], PICTURE),
    })  # fmt: skip
    pq.write_table(table, path, row_group_size=group, compression="none", use_dictionary=False)
    return path


SEEN = Schema(required={"text": STRING, "image": PICTURE})


def test_row_groups_stay_within_their_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = columnar._RowGroups(limit=1_000_000)
    monkeypatch.setattr(columnar, "_groups", groups)
    table = Table([pictures(tmp_path / f"{n}.parquet", 200, 10_000, 20) for n in range(2)], SEEN)
    for index in [*range(len(table)), 3, 399, 0]:
        assert table.row(index)["image"].data[0] == index % 200 % 251
        assert groups.bytes <= 1_000_000
        assert groups.bytes == sum(group.nbytes for group in groups._kept.values())
    small = columnar._RowGroups(limit=10)
    monkeypatch.setattr(columnar, "_groups", small)
    table.row(0)
    assert len(small._kept) == 1  # the last one stays, however large: its neighbours are asked for next


def test_only_what_is_wanted_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar, "_groups", columnar._RowGroups(1 << 30))
    asked: list[list[str]] = []
    real = pq.ParquetFile.read_row_group

    def spy(self: pq.ParquetFile, number: int, columns: list[str], **more: Any) -> pa.Table:
        asked.append(columns)
        return real(self, number, columns=columns, **more)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    table = Table([pictures(tmp_path / "p.parquet", 40, 100, 10)], SEEN)
    assert asked == []  # opening reads the footer
    assert table.row(3, pictures=False) == {"text": "text 3", "image": NOT_READ}
    assert table.row(4, ["text"]) == {"text": "text 4"}
    assert all("image.bytes" not in columns for columns in asked)
    assert table.row(5)["image"] == Image(data=bytes([5]) * 100)
    before = len(asked)
    table.row(6)
    table.row(7, pictures=False)
    assert len(asked) == before  # from the cache


def test_threads_that_want_one_group_read_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar, "_groups", columnar._RowGroups(1 << 30))
    reads: list[int] = []
    real = pq.ParquetFile.read_row_group

    def slow(self: pq.ParquetFile, number: int, **more: Any) -> pa.Table:
        reads.append(number)
        threading.Event().wait(0.02)
        return real(self, number, **more)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", slow)
    table = Table([pictures(tmp_path / "p.parquet", 40, 100, 10)], SEEN)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: table.row(n, ["text"])["text"], list(range(40)) * 4))
    assert found == [f"text {n}" for n in range(40)] * 4
    assert sorted(reads) == [0, 1, 2, 3]


def test_more_files_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar, "_files", columnar._OpenFiles(2))
    monkeypatch.setattr(columnar, "_groups", columnar._RowGroups(0))
    table = Table([pictures(tmp_path / f"{n}.parquet", 3, 10, 2) for n in range(5)], SEEN)
    order = [*range(15), *range(14, -1, -1)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda n: table.row(n)["text"], order)) == [f"text {n % 3}" for n in order]


def test_a_file_that_goes_away_is_a_bad_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar, "_files", columnar._OpenFiles(2))
    path = pictures(tmp_path / "p.parquet", 4, 10, 2)
    lines = tmp_path / "l.jsonl"
    lines.write_text('{"a": "x"}\n' * 3)
    tables = Table([path], SEEN), Table([lines], TEXT)
    path.unlink()
    lines.unlink()
    for table in tables:
        with pytest.raises(DataError, match="No such file"):
            table.row(3 % len(table))


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (pa.dictionary(pa.int32(), pa.string()), STRING),
        (pa.string_view(), STRING),
        (pa.uint8(), INT),
        (pa.large_list(pa.large_string()), list_of(STRING)),
        (pa.struct([("x", pa.int8()), ("a", pa.large_string())]), struct_of(a=STRING)),
        (pa.list_(pa.struct([("path", pa.string()), ("bytes", pa.large_binary())])), list_of(PICTURE)),
    ],
)
def test_widths_do_not_matter(tmp_path: Path, kind: pa.DataType, wanted: pa.DataType) -> None:
    schema = pa.schema([("a", kind)])
    with pa.OSFile(str(tmp_path / "w.arrow"), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(
            pa.Table.from_arrays(
                [pa.nulls(1, kind)],
                schema=schema,
            )
        )
    assert Table([tmp_path / "w.arrow"], Schema(required={"a": wanted})).row(0) == {"a": None}


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (pa.int64(), STRING),
        (pa.string(), list_of(STRING)),
        (pa.float32(), INT),
        (pa.binary(), STRING),
        (pa.string(), PICTURE),
        (pa.struct([("b", pa.string())]), struct_of(a=STRING)),
        (pa.null(), STRING),
    ],
)
def test_other_types_are_refused(tmp_path: Path, kind: pa.DataType, wanted: pa.DataType) -> None:
    table = pa.Table.from_arrays([pa.nulls(1, kind)], names=["a"])
    with pa.OSFile(str(tmp_path / "w.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"w\.arrow: column 'a' is .*, and .* was expected"):
        Table([tmp_path / "w.arrow"], Schema(required={"a": wanted}))
    if pa.types.is_null(kind):  # as an optional column it has simply no values
        assert Table([tmp_path / "w.arrow"], Schema(required={}, optional={"a": wanted})).row(0) == {"a": None}


def test_json_rows_are_checked_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    lines = ['{"a": "x", "n": 1}', '{"a": 3}', "nonsense", '{"b": "x"}', "[1]", '{"a": null}', '{"a": "y", "n": "1"}']
    path.write_text("\n".join(lines) + "\n\n")
    table = Table([path], TEXT)
    assert len(table) == 7
    assert table.row(0) == {"a": "x", "n": 1, "l": None}
    reasons = ["'a' is a number", "not JSON", "'a' (string) is missing", "an array", "'a' is null", "'n' is a string"]
    for index, reason in enumerate(reasons, start=1):
        with pytest.raises(DataError) as caught:
            table.row(index)
        assert reason in caught.value.message
    path.write_text('{"b": "x"}\n' * 12)
    with pytest.raises(DataError, match=r"d\.jsonl: column 'a' \(string\) is missing"):
        Table([path], TEXT)  # ten rows in a row: not this kind of file


def test_a_file_that_changed_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    for number, rows in enumerate(([{"a": "first"}], [{"a": "and"}, {"a": "second"}])):
        path.write_text(json.dumps(rows))
        os.utime(path, ns=(number, number))
        assert all_rows(Table([path], Schema(required={"a": STRING}))) == rows
    parquet = tmp_path / "d.parquet"
    for number, word in enumerate(("first", "other")):
        pq.write_table(pa.table({"a": [word]}), parquet)
        os.utime(parquet, ns=(number, number))
        assert Table([parquet], Schema(required={"a": STRING})).row(0) == {"a": word}
