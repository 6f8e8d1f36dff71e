"""Where each sample of a set of shards is: one file of fixed rows, mapped into memory, never read as a whole.

::

    0   8  "GHOSTVIX"            magic
    8   4  format_version        1
    12  4  H                     bytes of the header that follows
    16  4  crc32 of the header
    20  4  crc32 of the tables   rows and pictures, checked by ``ghostvis data verify``
    24  8  N                     samples
    32  8  P                     pictures
    40  24 zeros
    64  H  header                JSON: split, source, tokenizer, shards with sizes and sha256
    …      zeros                 up to a multiple of 64
    …      48 N                  rows (ROW)
    …      8 P                   width and height of every picture, upright, in reading order (PICTURE)

All numbers are little-endian and unsigned, but for the two token counts, where -1 says that no tokenizer counted.
The file ends where these numbers say, so one that was cut is known at once. Names of samples are in the tars; the
index holds 64 bits of their sha256, of which :func:`components.datasets.splits.fraction` is the beginning.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.shards.files import published
from ghostvis_plugins.errors import DataError

FORMAT_VERSION = 1
NAME = "index.gvx"
MAGIC = b"GHOSTVIX"
_PRELUDE = struct.Struct("<8sIIIIQQ24x")
_ALIGN = 64

ROW = np.dtype(
    [
        ("id", "<u8"),  # first 8 bytes of the sha256 of the sample's id, as a big-endian number
        ("offset", "<u8"),  # of the sample's first tar header in its shard
        ("size", "<u4"),  # bytes of all its members with their headers and padding
        ("crc", "<u4"),  # crc32 of those bytes
        ("shard", "<u4"),  # number in the header's list
        ("text_bytes", "<u4"),  # UTF-8 bytes of its text parts, as Length counts them
        ("text_tokens", "<i4"),  # tokens without those that stand for pictures; -1 unknown
        ("answer_tokens", "<i4"),  # targets among them; -1 unknown
        ("first_picture", "<u4"),  # number of its first picture in the table of pictures
        ("pictures", "<u2"),
        ("flags", "<u2"),
    ]
)
PICTURE = np.dtype([("width", "<u4"), ("height", "<u4")])
DOCUMENT = 1  # flag: a text, not a conversation
UNCHECKED = 2  # flag: crc, and sizes of pictures, are not known


class DamagedIndex(DataError):
    """An index that is missing or not what was written, so that nothing is lost by making it anew."""


def id_hash(id: str) -> int:
    """The 64 bits of an id that are kept."""
    return int.from_bytes(hashlib.sha256(id.encode(errors="surrogateescape")).digest()[:8], "big")


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar: its name beside the index (or an absolute path), its size, and what it holds."""

    name: str
    bytes: int
    samples: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Index:
    """An opened index. ``header`` is its JSON without the shards."""

    file: Path
    header: Mapping[str, Any]
    shards: tuple[Shard, ...]
    rows: np.ndarray  # of ROW
    pictures: np.ndarray  # of PICTURE

    def path(self, shard: int) -> Path:
        return self.file.parent / self.shards[shard].name

    @property
    def tokenizer(self) -> str | None:
        """Fingerprint of the tokenizer that counted the tokens."""
        return self.header.get("tokenizer")


def write(
    file: Path, rows: np.ndarray, pictures: np.ndarray, shards: Sequence[Shard], header: Mapping[str, Any]
) -> None:
    """Publish an index: a reader sees the whole of it or none. Raises UnavailableError when it cannot be written."""
    text = json.dumps({**header, "shards": [asdict(shard) for shard in shards]}, sort_keys=True).encode()
    tables = np.ascontiguousarray(rows, ROW).tobytes(), np.ascontiguousarray(pictures, PICTURE).tobytes()
    checksum = zlib.crc32(tables[1], zlib.crc32(tables[0]))
    prelude = _PRELUDE.pack(MAGIC, FORMAT_VERSION, len(text), zlib.crc32(text), checksum, len(rows), len(pictures))
    with published(file) as handle:
        for piece in (prelude, text, bytes(-len(text) % _ALIGN), *tables):
            handle.write(piece)


def load(file: Path, *, elsewhere: bool = False) -> Index:
    """Map an index into memory. Raises DataError for one that is cut, damaged, or of another version.

    Its shards lie beside it, and a name that says otherwise is refused, since repairing rewrites shards; only an index
    that was made here for tars ``elsewhere`` names them by their whole paths.
    """
    damaged = f"{file}: the index is damaged"
    hint = "`ghostvis data repair FOLDER` makes it anew from the shards."
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            start = handle.read(_PRELUDE.size)
            if len(start) < _PRELUDE.size or start[: len(MAGIC)] != MAGIC:
                raise DamagedIndex(f"{damaged}: it does not begin as one", hint=hint)
            _, version, length, checksum, _, samples, pictures = _PRELUDE.unpack(start)
            if version != FORMAT_VERSION:
                raise DataError(
                    f"{file}: format_version {version}, and this version of GhostVis reads {FORMAT_VERSION}",
                    hint="Update GhostVis, or prepare the data anew.",
                )
            rows_at = _PRELUDE.size + length + -length % _ALIGN
            pictures_at = rows_at + samples * ROW.itemsize
            end = pictures_at + pictures * PICTURE.itemsize
            if size != end:
                raise DamagedIndex(f"{damaged}: {size:,} bytes, and it says {end:,}", hint=hint)
            text = handle.read(length)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    if zlib.crc32(text) != checksum:
        raise DamagedIndex(f"{damaged}: its header has another checksum", hint=hint)
    header = json.loads(text)
    shards = tuple(Shard(**shard) for shard in header.pop("shards"))
    for shard in shards:
        if not elsewhere and (Path(shard.name).name != shard.name or not shard.name.endswith(".tar")):
            raise DataError(f"{file}: names a shard outside of its folder: {shard.name!r}")
    data = np.asarray(np.memmap(file, mode="r"))
    return Index(file, header, shards, data[rows_at:pictures_at].view(ROW), data[pictures_at:].view(PICTURE))


def check_tables(index: Index) -> None:
    """Read all of the index. Raises DataError for a flipped bit, or a row that points outside."""
    with index.file.open("rb") as handle:
        checksum = _PRELUDE.unpack(handle.read(_PRELUDE.size))[4]
    if zlib.crc32(index.pictures.tobytes(), zlib.crc32(index.rows.tobytes())) != checksum:
        raise DamagedIndex(f"{index.file}: the index is damaged: its rows have another checksum")


def check_sizes(index: Index) -> None:
    """Compare each shard's size with what the index says. Raises DataError naming the first that differs."""
    for number, shard in enumerate(index.shards):
        if problem := size_problem(index, number):
            raise DataError(
                f"shard {index.path(number)}: {problem}",
                hint=f"`ghostvis data verify {index.file.parent}` lists what is damaged, `ghostvis data repair` keeps "
                f"the samples that are whole. The shard holds {shard.samples:,} of {len(index.rows):,}.",
            )


def size_problem(index: Index, number: int) -> str | None:
    """What is wrong with the file of a shard, as far as its size tells."""
    try:
        size = index.path(number).stat().st_size
    except OSError as error:
        return f"is missing or cannot be read: {error.strerror or error}"
    expected = index.shards[number].bytes
    if size < expected:
        return f"is cut off: {size:,} of {expected:,} bytes, or it is older than the index"
    return f"has {size:,} bytes, not {expected:,}: it changed after the index was written" if size > expected else None
