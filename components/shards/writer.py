"""Samples become one shard and its rows. A shard appears under its name when it is complete."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from components.images import decode
from components.rendering import render
from components.samples import check_learnable
from components.shards.files import published
from components.shards.index import DOCUMENT, PICTURE, ROW, Shard, id_hash
from components.shards.record import BLOCK, pack
from components.tokenizers import Tokenizer
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Conversation, Document, Sample, length_of

MOST_PICTURES = np.iinfo(np.uint16).max
LARGEST = np.iinfo(np.uint32).max  # bytes of one sample
END = bytes(2 * BLOCK)  # two empty blocks end a tar, and it is a multiple of RECORD long
RECORD = 20 * BLOCK


@dataclass(frozen=True, slots=True)
class Packed:
    """A sample ready to be written: its bytes in a tar, its row without shard, offset and picture number."""

    data: bytes
    row: dict[str, int]
    pictures: list[tuple[int, int]]  # width and height


def prepare(sample: Sample, tokenizer: Tokenizer | None = None) -> Packed:
    """Check a sample, decode its pictures, count its tokens, and pack it.

    Raises DataError for whatever would be an unusable sample in training.
    """
    check_learnable(sample)
    data = pack(sample)
    images = sample.images if isinstance(sample, Conversation) else ()
    if len(images) > MOST_PICTURES or len(data) > LARGEST:
        raise DataError(f"it is too large: {len(images):,} pictures, {len(data):,} bytes")
    tokens = count_tokens(sample, tokenizer)
    row = {
        "id": id_hash(sample.id),
        "size": len(data),
        "crc": zlib.crc32(data),
        "text_bytes": length_of(sample).text_bytes,
        "text_tokens": tokens[0],
        "answer_tokens": tokens[1],
        "pictures": len(images),
        "flags": DOCUMENT if isinstance(sample, Document) else 0,
    }
    return Packed(data, row, [decode(image).size for image in images])


def count_tokens(sample: Sample, tokenizer: Tokenizer | None) -> tuple[int, int]:
    """Tokens of the text with its control tokens, and targets among them; (-1, -1) without a tokenizer.

    Raises DataError for a conversation that the tokenizer's chat format cannot say.
    """
    if tokenizer is None:
        return -1, -1
    rendered = render(sample, tokenizer, tokens_per_image=1)
    return len(rendered.ids) - len(rendered.images), rendered.targets


class ShardWriter:
    """Writes records one after another and remembers where they are; without a file it only does the latter."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file, self._hash, self._at = file, hashlib.sha256(), 0
        self._rows: list[dict[str, int]] = []
        self._pictures: list[tuple[int, int]] = []

    def add(self, data: bytes, row: dict[str, int], pictures: Iterable[tuple[int, int]]) -> None:
        """Append the bytes of one sample; ``row`` needs neither shard nor offset nor the number of its pictures."""
        self._rows.append({**row, "shard": 0, "offset": self._at, "first_picture": len(self._pictures)})
        self._pictures += pictures
        self._write(data)

    def finish(self, name: str) -> tuple[Shard, np.ndarray, np.ndarray]:
        """End the tar; returns the shard, its rows (of shard 0) and its pictures."""
        self._write(END + bytes(-(self._at + len(END)) % RECORD))
        shard = Shard(name, self._at, len(self._rows), self._hash.hexdigest())
        rows = np.zeros(len(self._rows), ROW)
        for field in ROW.names or ():
            rows[field] = [row[field] for row in self._rows]
        return shard, rows, np.array(self._pictures, PICTURE)

    def _write(self, data: bytes) -> None:
        if self._file is not None:
            self._file.write(data)
        self._hash.update(data)
        self._at += len(data)


def write_shard(file: Path, packed: Iterable[Packed]) -> tuple[Shard, np.ndarray, np.ndarray] | None:
    """Publish a shard of ``packed`` samples, or none where there are none. Raises UnavailableError."""
    samples = iter(packed)
    first = next(samples, None)
    if first is None:
        return None
    with published(file) as handle:
        writer = ShardWriter(handle)
        writer.add(first.data, first.row, first.pictures)
        for sample in samples:
            writer.add(sample.data, sample.row, sample.pictures)
        return writer.finish(file.name)


def join(parts: Iterable[tuple[Shard, np.ndarray, np.ndarray]]) -> tuple[list[Shard], np.ndarray, np.ndarray]:
    """The shards, rows and pictures of several shards as one index has them."""
    shards: list[Shard] = []
    all_rows, all_pictures, pictures_so_far = [np.zeros(0, ROW)], [np.zeros(0, PICTURE)], 0
    for shard, rows, pictures in parts:
        rows = rows.copy()
        rows["shard"] = len(shards)
        rows["first_picture"] += pictures_so_far
        pictures_so_far += len(pictures)
        shards.append(shard)
        all_rows.append(rows)
        all_pictures.append(pictures)
    return shards, np.concatenate(all_rows), np.concatenate(all_pictures)
