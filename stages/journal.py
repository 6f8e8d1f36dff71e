"""What a run writes down about itself, a line of JSON each. A full disk delays the lines, and not the run."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def to_stderr(text: str) -> None:
    """A warning for people."""
    print(f"ghostvis: warning: {text}", file=sys.stderr, flush=True)


class Journal:
    """Appends entries to ``path``, or nowhere when it is None, as on ranks that do not write.

    What a full disk keeps out waits for the next entry, or for :meth:`flush`; ``warn`` hears of it once per outage. An
    entry that is there already is not written again: a resumed run meets the same things in the same steps.
    """

    def __init__(self, path: Path | None, warn: Callable[[str], None] = to_stderr) -> None:
        self.path = path
        self._warn = warn
        self._waiting: list[str] = []
        self._written = set(whole_lines(path)) if path is not None and path.is_file() else set()

    def add(self, entry: dict[str, Any]) -> None:
        """Write an entry, and whatever waits. Raises OSError for what is not a full disk."""
        line = json.dumps(entry)  # in ASCII: an id may hold what no encoding can write
        if self.path is not None and line not in self._written:
            self._written.add(line)
            self._waiting.append(line)
            self._try(new=True)

    def flush(self) -> None:
        """Try again to write what waits. Raises OSError for what is not a full disk."""
        if self._waiting:
            self._try(new=False)

    def _try(self, *, new: bool) -> None:
        assert self.path is not None
        try:
            _append(self.path, "".join(f"{line}\n" for line in self._waiting).encode())
            self._waiting.clear()
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            if new and len(self._waiting) == 1:
                self._warn(f"{self.path} cannot be written now, the disk is full; its lines wait, and the run goes on")


def whole_lines(path: Path) -> list[str]:
    """The lines of a file; one that a crash cut short, which can only be the last, is cut off in the file, too."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return whole.split("\n")[:-1]


def _append(path: Path, data: bytes) -> None:
    """All of ``data`` or, with an OSError, nothing of it."""
    with path.open("ab", buffering=0) as file:  # a buffer would be written again when the file is closed
        end = file.tell()
        try:
            rest = memoryview(data)
            while rest:  # the system writes what fits, and says no only when nothing does
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(end)
            raise
