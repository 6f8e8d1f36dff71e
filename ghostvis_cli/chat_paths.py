"""Pictures named in what people type, paste or drop.

A terminal delivers a dropped file as pasted text: quoted, with backslashes before blanks, or as a ``file://``
address, and several files in a row. A text that begins with such paths gives its pictures; anything else is text.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp"})
_MAGIC = re.compile(rb"\x89PNG\r\n|\xff\xd8\xff|GIF8|BM|II\*\0|MM\0\*|RIFF....WEBP", re.DOTALL)
_WORD = re.compile(r"""\s*(?:'([^']*)'|"([^"]*)"|((?:\\.|[^\s\\'"])+))(?=\s|$)""")
_PATHLIKE = re.compile(r"[/~.'\"]|file://|[A-Za-z]:[\\/]")


def leading_images(text: str) -> tuple[list[Path], str]:
    """The picture files that ``text`` begins with, and the rest of it.

    A file counts when its name or its first bytes are a picture's, so that a damaged one is reported and not
    taken for a question. A bare word is never a path: "cat.jpg" may be what somebody asks about.
    """
    found: list[Path] = []
    rest = text
    while _PATHLIKE.match(rest.lstrip()) and (word := _WORD.match(rest)):
        path = to_path(next(group for group in word.groups() if group is not None), quoted=word[3] is None)
        if not _is_picture(path):
            break
        found.append(path)
        rest = rest[word.end() :]
    return found, rest.strip() if found else text


def split_paths(arguments: str) -> list[str]:
    """The paths in the arguments of a command; all of it is one path when a file of that name exists."""
    whole = arguments.strip()
    if not whole or to_path(whole, quoted=True).exists():
        return [whole] if whole else []
    words: list[str] = []
    position = 0
    while word := _WORD.match(whole, position):
        words.append(str(to_path(next(g for g in word.groups() if g is not None), quoted=word[3] is None)))
        position = word.end()
    return words if position == len(whole.rstrip()) else [whole]


def to_path(word: str, *, quoted: bool) -> Path:
    """A word as a path: ``file://`` decoded, backslashes before other characters removed, ``~`` expanded."""
    if word.startswith("file://"):
        return Path(unquote(urlsplit(word).path))
    if not quoted:
        word = re.sub(r"\\(.)", r"\1", word)
    try:
        return Path(word).expanduser()
    except RuntimeError:  # ~name of nobody: then the name is what it says
        return Path(word)


def _is_picture(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return True
        with path.open("rb") as file:
            return bool(_MAGIC.match(file.read(16)))
    except (OSError, ValueError):  # too long, a NUL inside, no permission: not a picture we can show
        return False
