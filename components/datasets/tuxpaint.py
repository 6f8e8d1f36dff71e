"""Tux Paint stamps: drawings and photographs of single things, each with a sentence for children.

Source: the Debian package tuxpaint-stamps-default (GPL-2 or later; Bill Kendrick and contributors). A stamp is
``NAME.png`` or ``NAME.svg`` beside ``NAME.txt``, whose first line is the English sentence ("A great blue heron.",
"Tankers carry bulk liquids."); the lines after it are translations, and the other files sounds. Where a stamp has
both pictures the pixels are used; vector drawings are rendered. The folder ``symbols`` (letters, digits, coins) is
left out: its captions tell what is written there. Ready-made mirror images have no sentence of their own.
"""

from __future__ import annotations

from pathlib import Path

from components.datasets import captions, debian
from components.datasets.captions import RENDERED, CaptionDataset, Folders, Pair, Source
from components.datasets.config import TuxPaint
from ghostvis_plugins.errors import UnavailableError
from ghostvis_plugins.types import Split

PACKAGE = "tuxpaint-stamps-default"
UNUSED = frozenset({"symbols"})
LONGEST = 30  # words; the few longer ones are whole encyclopaedia entries


def build(config: TuxPaint, *, split: Split) -> CaptionDataset:
    """The stamps of one split; renders the drawings on first use (seconds).

    Raises UnavailableError, MissingError or DataError when the stamps cannot be had or read.
    """
    folders = debian.folders(config, {PACKAGE: ""}, dataset="tuxpaint")
    pin = debian.PACKAGES[PACKAGE]
    source = Source(
        name="tuxpaint", license=pin.license, attribution=pin.attribution, folders={"stamps": folders[PACKAGE]}
    )
    return captions.dataset(
        source, _Scan(config.render_size), split, views=config.views, variant=f"{config.render_size}px"
    )


class _Scan:
    """Reads the stamps; drawings become pictures whose longer side is ``size``."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Scan) and other.size == self.size

    def __hash__(self) -> int:
        return hash(self.size)

    def __call__(self, folders: Folders, rendered: Path) -> tuple[list[Pair], int]:
        root = folders["stamps"]
        pairs: list[Pair] = []
        unusable = 0
        for text in sorted(root.rglob("*.txt")):
            name = text.relative_to(root).with_suffix("").as_posix()
            if UNUSED.intersection(name.split("/")[:-1]):
                continue
            sentence = sentence_of(text.read_bytes())
            picture = self._picture(root, name, rendered) if sentence else None
            if picture is None:
                unusable += 1
            else:
                pairs.append(Pair(f"tuxpaint/{name}", sentence, picture))
        return pairs, unusable

    def _picture(self, root: Path, name: str, rendered: Path) -> str | None:
        """PLACE/PATH of a stamp's picture; None where it has none, or a drawing that cannot be rendered."""
        if (root / f"{name}.png").is_file():
            return f"stamps/{name}.png"
        drawing = root / f"{name}.svg"
        png = render(drawing.read_bytes(), self.size) if drawing.is_file() else None
        if png is None:
            return None
        file = name.replace("/", "-") + ".png"
        (rendered / file).write_bytes(png)
        return f"{RENDERED}/{file}"


def sentence_of(text: bytes) -> str:
    """The first line without extra spaces; "" where it is empty or too long to be a caption."""
    words = text.decode("utf-8", "replace").lstrip("\ufeff").partition("\n")[0].split()
    return " ".join(words) if len(words) <= LONGEST else ""


def render(svg: bytes, size: int) -> bytes | None:
    """A drawing as PNG whose longer side is about ``size`` pixels; None for one that the renderer refuses."""
    try:
        import resvg_py
    except ImportError as error:
        raise UnavailableError(
            f"drawings are rendered with resvg-py, which cannot be imported: {error}",
            hint="Install it: pip install resvg-py",
        ) from error
    from io import BytesIO

    import PIL.Image

    text = svg.decode("utf-8", "replace")
    try:
        wide = bytes(resvg_py.svg_to_bytes(svg_string=text, width=size, skip_system_fonts=True))
        with PIL.Image.open(BytesIO(wide)) as opened:
            width, height = opened.size
        if height <= width:
            return wide
        return bytes(resvg_py.svg_to_bytes(svg_string=text, height=size, skip_system_fonts=True))
    except (ValueError, OSError):
        return None
