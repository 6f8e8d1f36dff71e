"""A picture in a terminal: every cell is an upper half block, its colours two pixels one above the other.

Half blocks work in every terminal that has colour, cost one pass over a thumbnail, and need no protocol that a
multiplexer or a remote shell may swallow. A cell is about twice as high as wide, so the two pixels are square.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size
from textual.strip import Strip
from textual.widget import Widget

if TYPE_CHECKING:
    import PIL.Image


def half_blocks(picture: PIL.Image.Image, columns: int, rows: int) -> list[Strip]:
    """``picture`` (RGB) within ``columns`` x ``rows`` cells, its aspect kept: one strip per row of cells."""
    scale = min(columns / picture.width, 2 * rows / picture.height)
    width = max(1, min(columns, round(picture.width * scale)))
    height = max(1, min(rows, round(picture.height * scale / 2)))
    small = picture.convert("RGB").resize((width, 2 * height))
    data = small.tobytes()

    def colour(x: int, y: int) -> str:
        at = 3 * (y * width + x)
        return f"#{data[at]:02x}{data[at + 1]:02x}{data[at + 2]:02x}"

    def cell(x: int, row: int) -> Segment:
        return Segment("▀", Style(color=colour(x, 2 * row), bgcolor=colour(x, 2 * row + 1)))

    return [Strip([cell(x, row) for x in range(width)], width) for row in range(height)]


class Preview(Widget):
    """A picture as half blocks, as large as fits into ``columns`` x ``rows``; rendered once."""

    DEFAULT_CSS = "Preview { width: auto; height: auto; }"

    def __init__(self, picture: PIL.Image.Image, *, columns: int = 32, rows: int = 12) -> None:
        super().__init__()
        self._strips = half_blocks(picture, columns, rows)

    def get_content_width(self, container: Size, viewport: Size) -> int:
        return self._strips[0].cell_length

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self._strips)

    def render_line(self, y: int) -> Strip:
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.size.width)
