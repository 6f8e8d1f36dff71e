"""What goes where: JSON and tables on stdout, everything said to a person on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghostvis_plugins.resolved import Resolved

SCHEMA = 1
"""Version of the JSON documents; raised when a key changes its meaning or goes away."""


def emit_json(**document: Any) -> None:
    """One JSON document on stdout, and nothing else there. What is not a number is null."""
    print(json.dumps(_finite({"schema": SCHEMA, **document}), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def note(message: str) -> None:
    """A line for people."""
    print(message, file=sys.stderr)


def warn(message: str) -> None:
    """A line for people who should do something."""
    note(f"ghostvis: warning: {message}")


def note_left_out(resolved: Resolved) -> None:
    """Say which data sets weight 0 leaves out of a run: nothing goes missing in silence."""
    for name, origin in resolved.left_out.items():
        note(f"data set '{name}' is left out: its weight is 0   [from {origin}]")


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns on stdout; greppable, without box characters."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(headers), *texts]) for column in range(len(headers))]
    for line in [[header.upper() for header in headers], *texts]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def short_path(path: Path | str) -> str:
    """Relative to the working directory or to ``~``: fit to be pasted into a report."""
    path = Path(path)
    for base, prefix in ((Path.cwd(), ""), (Path.home(), "~/")):
        if path.is_absolute() and path.is_relative_to(base):
            return prefix + path.relative_to(base).as_posix()
    return str(path)


def rich_help() -> bool:
    """Boxes and colour on a terminal; plain text, faster and greppable, off it."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def epilog(title: str, *lines: str) -> str:
    """Lines under a help text, kept apart in both styles."""
    if rich_help():
        return "\n\n".join([title, *lines])
    return "\b\n" + "\n".join([title, *(f"  {line}" for line in lines)])


def examples(*commands: str) -> str:
    """An epilog of commands that really run; a test runs them."""
    return epilog("Examples:", *commands)
