"""The cache folder, and how a folder appears in it: complete or not at all.

Everything that can be made again (unpacked packages, rendered pictures, encoder features) lives under one
folder, which ``GHOSTVIS_CACHE`` moves. Several processes may make the same entry at the same time: each
fills a private folder beside the target and renames it; the first rename wins and the others use its result.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from ghostvis_plugins.errors import UnavailableError

MANIFEST = ".ghostvis.json"
"""The file that says what an unpacked archive consists of; :func:`is_intact` reads it."""


def cache_dir() -> Path:
    """The cache folder: ``GHOSTVIS_CACHE``, else the platform's user cache directory. It need not exist yet."""
    configured = os.environ.get("GHOSTVIS_CACHE", "").strip()
    return Path(configured).expanduser() if configured else Path(platformdirs.user_cache_dir("ghostvis", False))


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A private folder inside ``parent``, on the same file system, removed at the end if still there.

    Raises UnavailableError when the folder cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=parent))
    except OSError as error:
        raise UnavailableError(
            f"the cache folder {parent} cannot be written: {error.strerror or error}",
            hint="Point the environment variable GHOSTVIS_CACHE at a folder that can.",
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(target: Path, fill: Callable[[Path], None], *, is_valid: Callable[[Path], bool]) -> Path:
    """Make ``target`` by calling ``fill`` on a private folder and renaming that; returns ``target``.

    A valid ``target`` of another process is kept and ours is dropped; an invalid one is replaced.
    ``is_valid`` must be cheap and must reject what an interrupted or damaged copy looks like.
    """
    with scratch(target.parent) as folder:
        content = folder / "content"
        content.mkdir()
        try:
            fill(content)
            sync(content)
        except OSError as error:
            raise UnavailableError(
                f"cannot write {target}: {error.strerror or error}",
                hint="Free some space, or point the environment variable GHOSTVIS_CACHE at another disk.",
            ) from error
        for _ in range(3):
            try:
                content.rename(target)
                break
            except OSError:
                if is_valid(target):
                    return target
            # Whatever lies there is damaged: out of the way first (a rename, so nobody sees half of it).
            try:
                target.rename(folder / f"damaged-{len(list(folder.iterdir()))}")
            except FileNotFoundError:
                continue  # another process was faster
        else:
            raise UnavailableError(f"{target} keeps being replaced by other processes", hint="Try again.")
        sync(target.parent)
    return target


def sync(folder: Path) -> None:
    """Flush the entries of one folder, and the files directly in it, to the disk.

    Files deeper down are left to the operating system: one flush for each of thousands of small files costs
    seconds, and a manifest with their sizes tells after a power cut whether they arrived.
    """
    for path in (*(entry for entry in folder.iterdir() if entry.is_file()), folder):
        try:
            handle = os.open(path, os.O_RDONLY)
        except PermissionError:
            if os.name == "nt" and path.is_dir():
                return  # Windows cannot open a folder; its file system journals the rename
            raise
        try:
            os.fsync(handle)
        except OSError:
            if os.name != "nt":  # Windows only flushes handles that may write
                raise
        finally:
            os.close(handle)


def is_intact(folder: Path, sha256: str, keep: Sequence[str]) -> bool:
    """Whether ``folder`` is the whole of a pinned archive: its manifest is of that and every file has its size.

    A manifest holds the archive's ``sha256``, the patterns that were unpacked as ``keep``, and ``files`` with sizes.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["sha256"] != sha256 or manifest["keep"] != list(keep):
            return False
        return all(os.stat(folder / path).st_size == size for path, size in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # no manifest, or not one: the caller unpacks again, and says so
