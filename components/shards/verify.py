"""Find damage in prepared shards, and cut it out.

A shard that verifies has the size and the sha256 of the index, its records lie one behind another from its first byte
to the end of the archive, each has its checksum and reads back as a sample of its id. Repairing keeps the records that
do, byte for byte, in a new file beside the damaged one, publishes an index of what is left, and then removes the
damaged file: whenever it is interrupted, there is a whole index, and running it again goes on.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from components.shards import index as indexes
from components.shards.files import PARTIAL, UNFINISHED, UNFINISHED_HINT, published, shards_in
from components.shards.index import NAME, DamagedIndex, Index, Shard, id_hash, size_problem
from components.shards.record import decode, split_name, unpack
from components.shards.writer import END, RECORD, Packed, ShardWriter, join, prepare, write_shard
from components.tokenizers import Tokenizer
from ghostvis_plugins.errors import DataError, MissingError
from ghostvis_plugins.types import Sample

LEDGER = "bad_samples.jsonl"
"""The file beside an index with the samples that were left out: source, id, reason."""

Part = tuple[Shard, np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong. ``id`` is "" for a whole file, or where the name of a sample cannot be read."""

    file: str
    id: str
    reason: str


@dataclass(slots=True)
class Checked:
    """One folder of shards, looked at from begin to end."""

    folder: Path
    shards: int = 0
    samples: int = 0
    bytes: int = 0
    damage: list[Damage] = field(default_factory=list)


@dataclass(slots=True)
class Repaired:
    """What became of a folder: shards that were rewritten, and samples that are lost."""

    folder: Path
    rewritten: list[str] = field(default_factory=list)
    samples: int = 0
    lost: list[Damage] = field(default_factory=list)


def folders(root: Path) -> list[Path]:
    """Folders of prepared shards at ``root`` and below. Raises MissingError when there are none.

    One whose index is lost is found by its shards.
    """
    files = [file for pattern in (NAME, "*.tar") for file in root.rglob(pattern)]
    found = {file.parent for file in files if not any(part[0] == "." for part in file.relative_to(root).parts)}
    if not found:
        raise MissingError(
            f"no shards in {root}", hint="`ghostvis data prepare NAME --out DIR` writes shards with an index."
        )
    return sorted(found)


def verify(folder: Path) -> Checked:
    """Read every byte of a folder's index and shards."""
    checked = Checked(folder)
    try:
        index = _open(folder)
    except DataError as error:
        checked.damage.append(Damage(NAME, "", error.message))
        return checked
    checked.shards, checked.samples = len(index.shards), len(index.rows)
    for number, shard in enumerate(index.shards):
        checked.bytes += shard.bytes
        checked.damage += _shard_damage(index, number)
    known = {shard.name for shard in index.shards}
    for file in shards_in(folder):
        if file.name not in known:
            checked.damage.append(Damage(file.name, "", "is a shard that the index does not know"))
    return checked


def _open(folder: Path) -> Index:
    """The index of a folder, all of it checked. Raises DataError."""
    file = folder / NAME
    if not file.is_file() and (folder / UNFINISHED).is_dir():
        raise DataError(f"{folder}: is not finished. {UNFINISHED_HINT}")
    if not file.is_file():
        raise DamagedIndex(f"{file}: the index is missing")
    index = indexes.load(file)
    indexes.check_tables(index)
    return index


def _shard_damage(index: Index, number: int) -> list[Damage]:
    shard = index.shards[number]
    found = []
    problem = size_problem(index, number)
    if problem is not None:
        found.append(Damage(shard.name, "", problem))
    if not index.path(number).is_file():
        return found
    digest, end = hashlib.sha256(), 0
    with index.path(number).open("rb") as file:
        for row, data, damage in _records(file, index, number):
            if damage is not None:
                found.append(damage)
            if int(row["offset"]) != end:
                found.append(Damage(shard.name, "", f"its records do not lie one behind another at byte {end:,}"))
            end = int(row["offset"]) + int(row["size"])
            digest.update(data)
        rest = file.read(2 * RECORD)  # more than any end of an archive
        digest.update(rest)
    if not found and (len(rest) < len(END) or any(rest)):
        found.append(Damage(shard.name, "", "the end of the archive is damaged"))
    elif not found and digest.hexdigest() != shard.sha256:
        found.append(Damage(shard.name, "", "it has another sha256 than the index says"))
    return found


def _records(file: BinaryIO, index: Index, number: int) -> Iterator[tuple[np.void, bytes, Damage | None]]:
    """Rows of one shard in order with their bytes, and what is wrong with them."""
    rows = index.rows[index.rows["shard"] == number]
    for row in rows[np.argsort(rows["offset"], kind="stable")]:
        file.seek(int(row["offset"]))
        data = file.read(int(row["size"]))
        id, reason = _examine(data, row)
        yield row, data, Damage(index.shards[number].name, id, reason) if reason else None


def _examine(data: bytes, row: np.void) -> tuple[str, str]:
    """The id of a record, as far as it can be read, and what is wrong with it ("" for nothing)."""
    if len(data) < row["size"]:
        return _id(data), f"the shard ends within it: {len(data):,} of {int(row['size']):,} bytes"
    if zlib.crc32(data) != row["crc"]:
        return _id(data), "its bytes changed after it was written (crc32)"
    try:
        sample = read_record(data)
    except DataError as error:
        return _id(data), error.message
    return sample.id, "" if id_hash(sample.id) == row["id"] else "it has another id than the index says"


def read_record(data: bytes) -> Sample:
    """The sample of a record's bytes. Raises DataError."""
    return decode({split_name(name)[1]: content for name, content in unpack(data).items()})


def _id(data: bytes) -> str:
    """The id in damaged bytes: the one that their JSON says, else the key in a header that is whole."""
    if said := re.search(rb'{"ghostvis":\d+,"id":("(?:[^"\\]|\\.)*")', data):
        try:
            return str(json.loads(said[1]))
        except ValueError:
            pass
    try:
        return split_name(next(iter(unpack(data)), ""))[0]
    except DataError:
        return ""


def repair(folder: Path, tokenizer: Tokenizer | None = None) -> Repaired | None:
    """Rewrite damaged shards without their bad samples and publish an index of the rest; None for nothing to do.

    Intact shards are not touched. What is lost is appended to ``bad_samples.jsonl``. An index that is damaged itself
    is made anew from the shards, which loses the counts of tokens unless ``tokenizer`` makes them again. Raises
    DataError when nothing is left.
    """
    result = Repaired(folder)
    if (folder / UNFINISHED).is_dir() and not (folder / NAME).is_file():
        raise DataError(f"{folder}: is not finished, and nothing to repair", hint=UNFINISHED_HINT)
    for stray in folder.glob(f"{PARTIAL}*"):
        stray.unlink()
    try:
        index = _open(folder)
    except DamagedIndex as error:
        return _rebuild(folder, error, tokenizer, result)
    bad = [number for number in range(len(index.shards)) if _shard_damage(index, number)]
    if not bad and not _leftovers(folder, index):
        return None
    parts: list[Part] = []
    for number, shard in enumerate(index.shards):
        if number not in bad:
            parts.append(part_of(index, number))
            continue
        result.rewritten.append(shard.name)
        name = _next_name(shard.name)
        if (part := write_shard(folder / name, _kept(index, number, result))) is not None:
            parts.append(part)
    _publish(folder, parts, index.header, result)
    for number in bad:
        index.path(number).unlink(missing_ok=True)
    for file in _leftovers(folder, indexes.load(folder / NAME)):
        result.rewritten.append(file.name)
        file.unlink()
    return result


def _leftovers(folder: Path, index: Index) -> list[Path]:
    """Other files of an indexed shard, from a repair that was interrupted before or after it published its index."""
    known = {shard.name for shard in index.shards}
    stems = {_stem(name) for name in known}
    return [file for file in shards_in(folder) if file.name not in known and _stem(file.name) in stems]


def part_of(index: Index, number: int) -> Part:
    """One shard of an index with its own rows and pictures, as :func:`components.shards.writer.join` takes them."""
    rows = index.rows[index.rows["shard"] == number]
    places = [range(int(row["first_picture"]), int(row["first_picture"]) + int(row["pictures"])) for row in rows]
    rows = rows.copy()
    rows["first_picture"] = np.cumsum(rows["pictures"]) - rows["pictures"]
    return index.shards[number], rows, index.pictures[[place for some in places for place in some]]


def _kept(index: Index, number: int, result: Repaired) -> Iterator[Packed]:
    """The whole records of a damaged shard; the others go to ``result``."""
    shard = index.shards[number]
    if not index.path(number).is_file():
        reason = f"shard {shard.name} is missing"
        for row in index.rows[index.rows["shard"] == number]:
            result.lost.append(Damage(shard.name, f"{int(row['id']):016x}", reason))
        return
    with index.path(number).open("rb") as file:
        for row, data, damage in _records(file, index, number):
            if damage is not None:
                known = damage.id or f"{int(row['id']):016x}"  # the hash is all that is left of its id
                result.lost.append(Damage(damage.file, known, damage.reason))
                continue
            yield packed_of(index, row, data)


def packed_of(index: Index, row: np.void, data: bytes) -> Packed:
    """A record with its row and pictures, to be written elsewhere as it is."""
    first = int(row["first_picture"])
    pictures = index.pictures[first : first + int(row["pictures"])]
    return Packed(data, {name: int(row[name]) for name in row.dtype.names or ()}, [tuple(p) for p in pictures.tolist()])


_REPAIRED = re.compile(r"(?:-r(\d+))?\.tar$")


def _stem(name: str) -> str:
    return _REPAIRED.sub("", name)


def _next_name(name: str) -> str:
    """``a-000001.tar`` → ``a-000001-r1.tar`` → ``a-000001-r2.tar``."""
    found = _REPAIRED.search(name)
    return f"{_stem(name)}-r{int(found[1] or 0) + 1 if found else 1}.tar"


def _publish(folder: Path, parts: Sequence[Part], header: Mapping[str, object], result: Repaired) -> None:
    shards, rows, pictures = join(parts)
    if not len(rows):
        raise DataError(f"{folder}: no sample is whole", hint="Prepare the data anew.")
    result.samples = len(rows)
    note(folder, result.lost)
    indexes.write(folder / NAME, rows, pictures, shards, header)


def note(folder: Path, lost: Iterable[Damage], *, add: bool = True) -> None:
    """Write samples that were left out to the folder's ledger, or ``add`` them to those that are there."""
    file = folder / LEDGER
    old = dict.fromkeys(file.read_text(encoding="utf-8").split("\n")[:-1]) if add and file.is_file() else {}
    new = [json.dumps({"source": bad.file, "id": bad.id, "reason": bad.reason}) for bad in lost]
    with published(file) as handle:
        lines = [*old, *(line for line in new if line not in old)]
        handle.write("".join(f"{line}\n" for line in lines).encode())


def _rebuild(folder: Path, error: DataError, tokenizer: Tokenizer | None, result: Repaired) -> Repaired:
    """An index from the shards alone. Shards that cannot be walked to their end are rewritten as far as they go."""
    from components.shards.foreign import scan

    result.rewritten.append(NAME)
    parts: list[Part] = []
    damaged: list[tuple[Path, bool]] = []
    for tar in shards_in(folder):
        packed: list[Packed] = []
        broken = False
        with tar.open("rb") as file:
            try:
                for row in scan(tar):
                    file.seek(row["offset"])
                    data = file.read(row["size"])
                    try:
                        packed.append(_again(data, tokenizer))
                    except DataError as problem:
                        result.lost.append(Damage(tar.name, _id(data), problem.message))
                        broken = True
            except DataError as problem:
                result.lost.append(Damage(tar.name, "", problem.message))
                broken = True
        if broken:
            damaged.append((tar, bool(packed)))
            result.rewritten.append(tar.name)
            if (part := write_shard(folder / _next_name(tar.name), packed)) is not None:
                parts.append(part)
        elif packed:
            parts.append(_as_it_is(tar, packed))
    header: dict[str, object] = {
        "split": folder.name,
        "source": None,
        "rebuilt": error.message.rpartition(": ")[2],
        "tokenizer": tokenizer.fingerprint if tokenizer else None,
    }
    _publish(folder, parts, header, result)
    for tar, kept in damaged:
        if kept:
            tar.unlink(missing_ok=True)
        else:  # nothing of it is anywhere else, and it may never have been ours
            tar.rename(tar.with_name(f"{tar.name}.unreadable"))
    return result


def _again(data: bytes, tokenizer: Tokenizer | None) -> Packed:
    """A record that lost its row: everything is counted anew, and the bytes stay. Raises DataError."""
    made = prepare(read_record(data), tokenizer)
    return Packed(data, {**made.row, "size": len(data), "crc": zlib.crc32(data)}, made.pictures)


def _as_it_is(tar: Path, packed: Sequence[Packed]) -> Part:
    """The part that an intact shard makes, without writing it."""
    writer = ShardWriter(None)
    for sample in packed:
        writer.add(sample.data, sample.row, sample.pictures)
    return writer.finish(tar.name)
