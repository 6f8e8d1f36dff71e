"""WebDataset tars that somebody else wrote: pictures with captions, or our own records without their index.

Local tars are read at random: one pass over their headers (and their small text members) finds where each sample is,
and the cache keeps that as an index. It has no checksums and no sizes of pictures, which would cost reading all of
every tar; a damaged picture is found when it is decoded. Remote ones can only be streamed from begin to end, so they
have neither a length nor an order of their own: ``ghostvis data prepare`` reads them once, through the library, and
writes indexed shards.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.cache import cache_dir
from components.datasets.captions import REQUESTS
from components.datasets.splits import pick
from components.shards import index as indexes
from components.shards.files import shards_in
from components.shards.index import NAME, PICTURE, ROW, UNCHECKED, Index, Shard
from components.shards.record import BLOCK, decode, is_ours, split_name
from ghostvis_plugins.errors import ConfigError, DataError, UnavailableError
from ghostvis_plugins.types import Conversation, Image, Sample, assistant, length_of, user

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "tif", "tiff", "bmp", "heic", "avif")
CAPTIONS = ("txt", "caption", "text")
LARGEST_TEXT = 2**24  # bytes of a text member that is read while indexing
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_REMOTE = re.compile(r"^(?:pipe:|[a-z][a-z0-9+.]*://)")


def is_remote(path: str) -> bool:
    """Whether a path is something that can only be streamed."""
    return bool(_REMOTE.match(path)) and not path.startswith("file://")


def sample_of(key: str, files: Mapping[str, bytes], caption: str | None = None) -> Sample:
    """One of our records, or the pictures of a sample and its caption. Raises DataError that says what it lacks."""
    if is_ours(files.get("json", b"")):
        return decode(files)
    pictures = [Image(data=files[suffix]) for suffix in sorted(files) if suffix.rpartition(".")[2] in PICTURES]
    if not pictures:
        raise DataError(f"sample '{key}' has no picture: its files end in {', '.join(sorted(files))}")
    text, metadata = _caption(key, files, caption)
    request = REQUESTS[pick(f"request/{key}", len(REQUESTS))]
    return Conversation((user(*pictures, request), assistant(text)), id=key, metadata=metadata)


def _caption(key: str, files: Mapping[str, bytes], wanted: str | None) -> tuple[str, dict[str, Any]]:
    """The caption, and everything else that the sample's JSON says."""
    try:
        table = json.loads(files["json"]) if "json" in files else {}
    except (ValueError, RecursionError) as error:
        raise DataError(f"sample '{key}': its json cannot be read: {error}") from error
    if not isinstance(table, dict):
        table = {}
    for name in (wanted,) if wanted else CAPTIONS:
        if name in files:
            try:
                text: object = files[name].decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"sample '{key}': its {name} is not UTF-8: {error.reason}") from error
        else:
            text = table.pop(name, None)
        if isinstance(text, str) and text.strip():
            return text.strip(), table
    where = f"'{wanted}'" if wanted else ", ".join(CAPTIONS)
    raise DataError(f"sample '{key}' has no caption under {where}")


def expand_braces(path: str) -> list[str]:
    """``a-{00..02}.tar`` → three paths. Raises ConfigError for a brace without its partner."""
    from braceexpand import braceexpand

    try:
        return list(braceexpand(path))
    except ValueError as error:
        raise ConfigError(f"dataset.webdataset.path = {path}: {error}") from error


def expand(path: str) -> list[Path]:
    """The tars that a folder, a file, or a pattern with braces or stars stands for, in order of their names."""
    found: list[Path] = []
    for pattern in expand_braces(str(Path(path.removeprefix("file://")).expanduser())):
        if Path(pattern).is_dir():
            found += shards_in(Path(pattern))
        elif glob.has_magic(pattern):
            found += sorted(map(Path, glob.glob(pattern)))
        else:
            found.append(Path(pattern))
    return found


def open_index(tars: Sequence[Path], caption: str | None = None) -> Index:
    """The index of tars, out of the cache, or made now by one pass over each. Raises DataError, UnavailableError."""
    described: list[tuple[str, int, int]] = []
    for tar in tars:
        try:
            stat = tar.stat()
        except OSError as error:
            raise UnavailableError(
                f"{tar}: cannot be read: {error.strerror or error}", hint="Check the path."
            ) from error
        described.append((str(tar.resolve()), stat.st_size, stat.st_mtime_ns))
    what = json.dumps([indexes.FORMAT_VERSION, caption, described])
    folder = cache_dir() / "shards" / hashlib.sha256(what.encode()).hexdigest()[:16]
    file = folder / NAME
    if not file.is_file():
        print(f"indexing {len(tars)} tar files, once", file=sys.stderr, flush=True)
        tables, shards = [], []
        for number, (name, size, _) in enumerate(described):
            table = _table(list(scan(Path(name), caption)), number)
            tables.append(table)
            shards.append(Shard(name, size, len(table)))
        rows = np.concatenate(tables)
        if not len(rows):
            raise DataError(f"there is no sample in {len(tars)} tar files from {tars[0]} on")
        rows["first_picture"] = np.cumsum(rows["pictures"]) - rows["pictures"]
        indexes.write(file, rows, np.zeros(rows["pictures"].sum(), PICTURE), shards, {})
    return indexes.load(file, elsewhere=True)


def _table(rows: Sequence[Mapping[str, int]], shard: int) -> np.ndarray:
    table = np.zeros(len(rows), ROW)
    for field in ROW.names or ():
        table[field] = [row.get(field, 0) for row in rows]
    table["shard"] = shard
    table["flags"] |= UNCHECKED
    table["text_tokens"] = table["answer_tokens"] = -1
    return table


def scan(tar: Path, caption: str | None = None) -> Iterator[dict[str, int]]:
    """A row for every sample of a tar: neighbouring members of one key, as WebDataset groups them.

    Raises DataError for a tar that is compressed, cut off or damaged.
    """
    group: list[tarfile.TarInfo] = []
    try:
        with tarfile.open(tar, mode="r:") as archive:
            for member in archive:
                if not member.isreg() or not split_name(member.name)[1]:
                    continue
                if group and split_name(group[0].name)[0] != split_name(member.name)[0]:
                    yield _row(archive, group, caption)
                    group = []
                group.append(member)
                archive.members = []  # type: ignore[attr-defined]  # which would keep every header in memory
            if group:
                yield _row(archive, group, caption)
            _check_end(tar, archive.offset)
    except tarfile.TarError as error:
        compressed = tar.suffix != ".tar" or tar.name.endswith(".tar.gz")
        hint = "Unpack it first: a compressed tar cannot be read at random." if compressed else ""
        raise DataError(f"{tar}: is not a tar that can be read: {error}", hint=hint) from error


def _check_end(tar: Path, end: int) -> None:
    """After its last member a tar has empty blocks; the library also stops, in silence, where there are none."""
    with tar.open("rb") as file:
        file.seek(end)
        block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise DataError(f"{tar}: is cut off at byte {end + len(block):,}")
    if any(block):
        raise DataError(f"{tar}: is damaged at byte {end:,}: what is there is no tar member")


def _row(archive: tarfile.TarFile, group: Sequence[tarfile.TarInfo], caption: str | None) -> dict[str, int]:
    key = split_name(group[0].name)[0]
    files: dict[str, bytes] = {}
    for member in group:
        suffix = split_name(member.name)[1]
        is_text = suffix.rpartition(".")[2] not in PICTURES and member.size <= LARGEST_TEXT
        handle = archive.extractfile(member) if is_text else None
        files[suffix] = handle.read() if handle is not None else b""
    start, last = group[0].offset, group[-1]
    row = {"offset": start, "size": last.offset_data + -(-last.size // BLOCK) * BLOCK - start}
    try:
        sample = sample_of(key, files, caption)
    except DataError:
        return {**row, "id": indexes.id_hash(key)}  # reading it says the same, to the ledger
    cost = length_of(sample)
    return {**row, "id": indexes.id_hash(sample.id), "text_bytes": cost.text_bytes, "pictures": cost.images}


class _Watched:
    """A stream that remembers its end: the library takes a tar that stops anywhere between members for a whole one."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._start, self._end = stream, b"", b""

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._stream.read(size)
        self._start = self._start or data[:6]
        self._end = (self._end + data)[-BLOCK:]
        return data

    def close(self) -> None:
        self._stream.close()

    def check(self) -> None:
        """Raise OSError for a tar without its empty blocks. A compressed one notices by itself that it is cut."""
        while self.read(2**20):
            pass
        if not self._start.startswith(_COMPRESSED) and (len(self._end) < BLOCK or any(self._end)):
            raise OSError("it has no end: the tar is cut off")


class RemoteShards:
    """Tars behind URLs: samples in the order of the stream, one part per URL. Not a data set, but a source of one."""

    def __init__(self, urls: Sequence[str], caption: str | None = None) -> None:
        self.urls, self.caption = tuple(urls), caption

    @property
    def parts(self) -> int:
        """How many streams there are."""
        return len(self.urls)

    def stream(self, part: int) -> Iterator[tuple[str, Sample | DataError]]:
        """Ids and samples of one URL, or what is wrong with them. Raises UnavailableError when the stream breaks."""
        from webdataset.tariterators import group_by_keys, tar_file_expander, url_opener

        url = self.urls[part]
        ends: list[_Watched] = []

        def watched() -> Iterator[dict[str, Any]]:
            for source in url_opener([{"url": url}]):
                ends.append(_Watched(source["stream"]))
                yield {**source, "stream": ends[-1]}

        try:
            for files in group_by_keys(tar_file_expander(watched())):
                key = files["__key__"]
                try:
                    found = {name: data for name, data in files.items() if not name.startswith("__")}
                    yield key, sample_of(key, found, self.caption)
                except DataError as error:
                    yield key, error
            for end in ends:
                end.check()
        except (OSError, ValueError, tarfile.TarError) as error:
            reason = str(error.args[0] if error.args else error)
            raise UnavailableError(
                f"{url}: the stream broke off: {reason}",
                hint="Run the same command again: shards that are complete are kept.",
            ) from error

    def __len__(self) -> int:
        raise ConfigError(
            f"dataset.webdataset.path = {self.urls[0]}: a remote tar can be streamed, and not be read at random; it "
            "has neither a length nor an order that survives a restart",
            hint="`ghostvis data prepare webdataset --set path=URL --out DIR` reads it once and writes local shards.",
        )
