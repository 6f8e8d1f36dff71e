"""Files of the user: where they are, which split they are of, and pictures that they point to.

A folder whose files or subfolders are called ``train``, ``validation`` (``valid``, ``val``, ``dev``) and ``test``
brings its own splits, as on the Hugging Face hub. For those that have no file of theirs, a share of the training rows
is set aside by a hash.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from components.datasets.splits import split_of
from ghostvis_plugins.errors import DataError, UnavailableError
from ghostvis_plugins.types import Image, Split

_SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # two letters and more: C: is a drive


def named_split(name: str) -> Split | None:
    """The split that a file or folder is called after: ``train``, ``val.jsonl``, ``test-00000-of-00002``."""
    return _SPLITS.get(re.split(r"[-_.]", name.lower(), maxsplit=1)[0])


def existing(path: str, option: str) -> Path:
    """The absolute path. Raises UnavailableError when nothing is there, naming the ``option`` that said so."""
    found = Path(path).expanduser().absolute()
    if not found.exists():
        raise UnavailableError(
            f"{option} = {path}: there is no such file or folder", hint=f"Say where it is: --set {option}=PATH."
        )
    return found


def of_split(
    found: Mapping[Path, Split | None], split: Split, *, validation: float, test: float
) -> tuple[list[Path], tuple[float, float] | None]:
    """What to read for ``split``, and the shares that are set aside in it for validation and test; None: all is of it.

    What no split is named after is training data, of which the held-out splits without files of their own are taken.
    """
    named = {name for name in found.values() if name is not None}
    if split != "train" and split in named:
        return [path for path, name in found.items() if name == split], None
    shares = (0 if "validation" in named else validation, 0 if "test" in named else test)
    return [path for path, name in found.items() if (name or "train") == "train"], shares


def chosen(keys: Iterable[str], split: Split, shares: tuple[float, float]) -> list[int]:
    """The places of the ``keys`` that a hash puts into ``split``."""
    validation, test = shares
    return [place for place, key in enumerate(keys) if split_of(key, validation=validation, test=test) == split]


def locate(folder: Path) -> Callable[[str], Image]:
    """Turns what a row says about a picture into the picture: a path relative to ``folder``, ``file:`` or ``data:``.

    Nothing is fetched. Raises DataError for a file that is not there and for any other address.
    """

    def picture(source: str) -> Image:
        scheme = _SCHEME.match(source)
        kind = scheme[0].lower() if scheme else ""
        if kind == "data:":
            return Image(data=_inline(source))
        path = unquote(urlsplit(source).path) if kind == "file:" else source
        if "\0" not in path and os.path.isfile(target := folder / path):
            return Image(path=str(target))
        if kind and kind != "file:":
            raise DataError(f"picture {source[:200]!r}: only files and data: are read; download it and say its path")
        raise DataError(f"picture {path[:200]!r} does not exist")

    return picture


def _inline(source: str) -> bytes:
    """The bytes of a ``data:image/png;base64,…`` URL."""
    head, comma, body = source.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise DataError(f"picture {head[:80]}: a data: URL without ;base64,")
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"picture {head[:80]}: its base64 is damaged: {error}") from error
    if not data:
        raise DataError(f"picture {head[:80]}: is empty")
    return data
