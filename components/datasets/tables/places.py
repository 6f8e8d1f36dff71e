"""Where things are in a file that has no index: found once, and remembered in the cache folder."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pyarrow as pa

from components.cache import cache_dir, publish
from ghostvis_plugins.errors import DataError

from .schema import first_line

INDEX_VERSION = 1  # raised when the same file gives other places
COPY_BYTES = 8 * 2**20


def cache_entry(path: Path, *about: object) -> Path:
    """The place in the cache for what was found out about a file as it is now."""
    status = path.stat()
    key = (str(path.resolve()), status.st_size, status.st_mtime_ns, INDEX_VERSION, *about)
    return cache_dir() / "tables" / hashlib.sha256(repr(key).encode()).hexdigest()[:32]


def bytes_at(path: Path, start: int, size: int) -> bytes:
    """A piece of a file, which is opened for it: a table may have thousands of files. Raises DataError."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) < size:
        raise DataError(f"{path}: has become shorter since it was opened")
    return data


def unpacked(path: Path) -> Path:
    target = cache_entry(path, "unpacked")
    result = target / path.stem

    def write(folder: Path) -> None:
        try:
            with pa.input_stream(str(path), compression="detect") as packed, (folder / path.stem).open("wb") as file:
                shutil.copyfileobj(packed, file, COPY_BYTES)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: cannot be unpacked: {first_line(error)}", hint="Fetch it again.") from error

    if not result.is_file():
        publish(target, write, is_valid=lambda folder: (folder / path.stem).is_file())
    return result
