"""A file appears under its name when it is complete, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ghostvis_plugins.errors import UnavailableError

PARTIAL = ".partial-"
"""How the name of a file begins that is not complete; no pattern for shards matches a name with a dot in front."""

UNFINISHED = ".prepare"
"""The folder beside shards that exists as long as some of them are missing."""

UNFINISHED_HINT = "Run the same `ghostvis data prepare` again: it makes the shards that are missing."


def shards_in(folder: Path) -> list[Path]:
    """The tars of a folder that are complete, by name."""
    return sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))


@contextmanager
def published(target: Path) -> Iterator[BinaryIO]:
    """A file to write, which replaces ``target`` when the block ends well. Raises UnavailableError.

    It is flushed to the disk before it is renamed, and the folder after it, so that a power cut leaves the old file,
    no file, or the new one.
    """
    partial = target.with_name(f"{PARTIAL}{os.getpid()}-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        _sync_folder(target.parent)
    except OSError as error:
        raise UnavailableError(
            f"cannot write {target}: {error.strerror or error}", hint="Free some space, or choose another folder."
        ) from error


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows cannot open a folder; its file system journals the rename
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
