"""Open Clip Art: drawings by hundreds of people, with the titles they gave them.

Source: the Debian packages openclipart-svg and openclipart-png (public domain; Open Clip Art Library 0.18). Titles,
descriptions and authors are in the metadata of the SVG files (RDF, Dublin Core); the pictures are the PNG of the same
name. Links to the same file under another name are left out.

The caption is the description where that says more about the thing than its title (four to twenty words, one of them
from the title, nothing about how the file was made), else the title. Left out are titles that are not of one drawing:
names of icon themes and collections, whatever more than three drawings are called, and numbered series of more than
three ("BlueMan#102"); titles without a word; and the drawings of authors who write their titles in other languages
than English.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from components.datasets import captions, debian
from components.datasets.captions import CaptionDataset, Folders, Pair, Source, normalise
from components.datasets.config import OpenClipart
from ghostvis_plugins.types import Split

DRAWINGS, PICTURES = "openclipart-svg", "openclipart-png"
MOST = 3  # drawings of one title
WORDS = range(4, 21)  # of a description that is used
LONGEST = 20  # words of a title
_DC = "{http://purl.org/dc/elements/1.1/}"
_CREATOR = f"{_DC}creator/*/{_DC}title"
_CREDIT = re.compile(r"^Clip ?art by .*? - ", re.IGNORECASE)
_THEME = re.compile(
    r"\b(?:icon[- ]?(?:set|theme)|theme|collection|clip ?arts?|submission|openclipart)\b", re.IGNORECASE
)
_MAKING = re.compile(
    r"inkscape|sodipodi|svg|xml|http|@|www\.|hash\(|contact|licen[cs]e|public domain|convert|vectori[sz]ed|traced|"
    r"clip ?art|collection|copyright|created|made (?:by|with|in)|drawn (?:by|with|in)|based on|part of|\bi\b|\bmy\b|"
    r"please|submission|version|data from|normal|nice|standard",
    re.IGNORECASE,
)
_OTHER_LANGUAGES = frozenset({
    "Architetto Francesco Rollandin", "Rollandin Francesco", "Francesco Rollandin", "yves GUILLOU", "Jean-Victor Balin",
    "Sérgio Luiz Araújo Silva", "Sergio Luiz Araujo Silva", "Mauro Olivo", "Tanguy JACQ", "Franck Doucet",
    "Moisés Rincón Maza", "Aubanel MONNIER",
})  # fmt: skip


def build(config: OpenClipart, *, split: Split) -> CaptionDataset:
    """The drawings of one split. Raises UnavailableError, MissingError or DataError when they cannot be had or read."""
    folders = debian.folders(config, {DRAWINGS: "svg", PICTURES: "png"}, dataset="openclipart")
    pin = debian.PACKAGES[DRAWINGS]
    source = Source(
        name="openclipart",
        license=pin.license,
        attribution=pin.attribution,
        folders={"svg": folders[DRAWINGS], "png": folders[PICTURES]},
    )
    return captions.dataset(source, scan, split, views=config.views)


@dataclass(frozen=True, slots=True)
class Work:
    """What the metadata of a drawing say; "" for what they do not."""

    title: str
    description: str
    author: str


def scan(folders: Folders, rendered: Path) -> tuple[list[Pair], int]:
    """Every drawing that has a usable title and a picture, ordered by path."""
    works: list[tuple[str, Work]] = []
    unusable = 0
    for drawing in sorted(folders["svg"].rglob("*.svg")):
        name = drawing.relative_to(folders["svg"]).with_suffix("").as_posix()
        picture = folders["png"] / f"{name}.png"
        if drawing.is_symlink() or picture.is_symlink() or not picture.is_file():
            continue  # another name of a drawing that is here anyway; links are not unpacked
        work = work_of(drawing)
        if work is None:
            unusable += 1
        else:
            works.append((name, work))
    raw = Counter(work.title for _, work in works)
    series = Counter(title_of(work.title) for _, work in works if title_of(work.title) != _spoken(work.title))
    descriptions = Counter(work.description for _, work in works)
    pairs = []
    for name, work in works:
        title = title_of(work.title)
        if not title or raw[work.title] > MOST or series[title] > MOST or work.author in _OTHER_LANGUAGES:
            unusable += 1
            continue
        usable = descriptions[work.description] <= MOST and says_more(work.description, title)
        caption = work.description if usable else title
        pairs.append(Pair(f"openclipart/{name}", caption, f"png/{name}.png", work.author))
    return pairs, unusable


def work_of(drawing: Path) -> Work | None:
    """Title, description and author of a drawing; None for a file that is no XML or names no work."""
    try:
        for _, element in ET.iterparse(drawing):
            if element.tag.endswith("}Work"):
                fields = (element.findtext(path) or "" for path in (f"{_DC}title", f"{_DC}description", _CREATOR))
                return Work(*(" ".join(text.split()) for text in fields))
    except ET.ParseError:
        return None
    return None


def title_of(raw: str) -> str:
    """A title as a caption: without credit, underscores and running number; "" where it names no single thing."""
    text = re.sub(r"(?:\s*#\s*\d+|(?<=[a-z]{2})\d{1,2}|\s+0\d|\s+\d)$", "", _spoken(raw)).strip(" -,:")
    readable = text.isascii() and re.search(r"[A-Za-z]{3}", text) and len(text.split()) <= LONGEST
    return text if readable and not _THEME.search(text) else ""


def _spoken(raw: str) -> str:
    return " ".join(_CREDIT.sub("", raw).replace("_", " ").split())


def says_more(description: str, title: str) -> bool:
    """Whether a description tells what the drawing shows, and more of it than the title does."""
    if len(description.split()) not in WORDS or not description.isascii() or _MAKING.search(description):
        return False
    told, named = set(normalise(description).split()), set(normalise(title).split())
    return bool(told - named) and any(len(word) > 2 and word in told for word in named)
