"""Figures of the GIMP manual with their captions: dialogs, menus, tool options, examples of filters.

Source: the Debian package gimp-help-en (GFDL 1.2 or later; the GIMP Documentation Team), the English manual as HTML
made from DocBook. A figure is ``<div class="figure">`` with a numbered title, a picture, and often a text of its own
below each picture. The caption of a figure with one picture is its title without the number. Of a figure with several,
each picture that has a text of its own is captioned "TITLE: TEXT"; those that only show the original are left out,
as are pictures that stand in more than three figures: what such a figure is about is not what its picture shows.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath

from components.datasets import captions, debian
from components.datasets.captions import CaptionDataset, Folders, Pair, Source
from components.datasets.config import GimpHelp
from ghostvis_plugins.types import Split

PACKAGE = "gimp-help-en"
LONGEST = 30  # words of a caption
COMMON = 3  # figures that may share a picture
_NUMBER = re.compile(r"^(?:Figure\s+\w+(?:\.\w+)*[.:](?:\s+|$))+")
_ORIGINAL = re.compile(r"\b(?:original|initial|before|without|no filter)\b", re.IGNORECASE)


def build(config: GimpHelp, *, split: Split) -> CaptionDataset:
    """The figures of one split. Raises UnavailableError, MissingError or DataError when the manual cannot be read."""
    folders = debian.folders(config, {PACKAGE: ""}, dataset="gimp_help")
    pin = debian.PACKAGES[PACKAGE]
    source = Source(
        name="gimp_help", license=pin.license, attribution=pin.attribution, folders={"en": folders[PACKAGE]}
    )
    return captions.dataset(source, scan, split, views=config.views)


@dataclass(slots=True)
class Figure:
    """A title, and the pictures with the text below each."""

    title: str = ""
    pictures: list[tuple[str, str]] = field(default_factory=list)


def scan(folders: Folders, rendered: Path) -> tuple[list[Pair], int]:
    """Every figure of the manual, page by page."""
    root = folders["en"]
    found: list[tuple[str, str]] = []  # picture, caption
    for page in sorted(root.glob("*.html")):
        for figure in figures(page.read_text(encoding="utf-8", errors="replace")):
            found += [(path, caption) for path, caption in captioned(figure) if not _leaves(path)]
    uses: defaultdict[str, set[str]] = defaultdict(set)
    for path, caption in found:
        uses[path].add(caption)
    pairs: dict[str, Pair] = {}
    unusable = 0
    for path, caption in found:
        number = sorted(uses[path]).index(caption)
        id = f"gimp_help/{path.removeprefix('images/')}" + (f"/{number}" if len(uses[path]) > 1 else "")
        if id in pairs:
            continue  # the same figure on another page
        if not caption or len(caption.split()) > LONGEST or len(uses[path]) > COMMON or not (root / path).is_file():
            unusable += 1
        else:
            pairs[id] = Pair(id, caption, f"en/{path}")
    return list(pairs.values()), unusable


def captioned(figure: Figure) -> Iterator[tuple[str, str]]:
    """(picture, caption) of what a figure shows."""
    title = _NUMBER.sub("", figure.title).strip()
    if len(figure.pictures) == 1:
        yield figure.pictures[0][0], title
        return
    for path, text in figure.pictures:
        if text and not _ORIGINAL.search(text):
            yield path, f"{title.rstrip('.:')}: {text}" if title else text


def _leaves(path: str) -> bool:
    """Whether a picture is not a file below the manual's own folder."""
    parts = PurePosixPath(path).parts
    return not parts or ".." in parts or path.startswith("/") or ":" in parts[0]


def figures(page: str) -> list[Figure]:
    """The figures of an HTML page, in order."""
    parser = _Pages()
    parser.feed(page)
    parser.close()
    return parser.figures


class _Pages(HTMLParser):
    """Follows the nesting of ``div`` elements, which is what DocBook's stylesheets make figures of."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.figures: list[Figure] = []
        self._open: list[str] = []  # the classes of the open divs
        self._title = False  # inside of the paragraph with the figure's title
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "div":
            self._open.append(given.get("class", ""))
            self._text = []
            if self._open[-1] == "figure":
                self.figures.append(Figure())
        elif "figure" in self._open:
            if tag == "img" and "caption" not in self._open:
                self.figures[-1].pictures.append((given.get("src", ""), ""))
            elif tag == "p" and given.get("class") == "title":
                self._title, self._text = True, []

    def handle_endtag(self, tag: str) -> None:
        if tag == "p":
            self._text.append(" ")  # paragraphs do not run into each other
            if self._title:
                self.figures[-1].title, self._title = self._said(), False
        elif tag == "div" and self._open:
            closed = self._open.pop()
            if closed == "caption" and "figure" in self._open and self.figures[-1].pictures:
                path, _ = self.figures[-1].pictures[-1]
                self.figures[-1].pictures[-1] = path, self._said()

    def handle_data(self, data: str) -> None:
        self._text.append(data)

    def _said(self) -> str:
        return " ".join("".join(self._text).split())
