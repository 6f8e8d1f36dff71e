"""A contact sheet of samples with their token masks: one picture, for a report or a terminal that shows them.

Letters that DejaVu lacks (Chinese, emoji) are boxes here; the page shows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from components.images import decode, frame
from components.preview import Piece, View

TILE, GAP = 144, 8  # pixels
WIDTH = 760  # of the text beside the pictures
SIZE, LINE = 13, 18  # of the letters, and from line to line
MOST_LINES = 40  # of one sample
MOST_PICTURES = 4  # of one sample
COLOURS = {"control": (226, 226, 236), "image": (205, 225, 255), "learnt": (186, 230, 192)}
PAPER, INK, SOFT = (255, 255, 255), (24, 24, 24), (110, 110, 110)


def sheet(views: Sequence[View]) -> PIL.Image.Image:
    """One row a sample: its pictures, and its tokens with what is learnt in green. Raises DataError."""
    font = _font()
    rows = [_row(view, font) for view in views]
    key = [Piece("text", "learnt", True), Piece("text", " read, not learnt ", False)]
    key += [Piece("control", "control token", False), Piece("text", " ", False)]
    key += [Piece("image", "picture", False)]
    rows.insert(0, _text(key, font))
    canvas = PIL.Image.new("RGB", (max(row.width for row in rows), sum(row.height + GAP for row in rows)), PAPER)
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height + GAP
    return canvas


def _font() -> PIL.ImageFont.FreeTypeFont:
    """DejaVu, which comes with matplotlib: most alphabets, every letter as wide as any other."""
    import matplotlib

    return PIL.ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSansMono.ttf"), SIZE)


def _row(view: View, font: PIL.ImageFont.FreeTypeFont) -> PIL.Image.Image:
    shown = view.images[:MOST_PICTURES]
    pictures = [frame(decode(image), TILE, fit="pad") for image in shown]
    more = f", {len(view.images) - len(shown)} more pictures" if len(view.images) > len(shown) else ""
    text = _text(view.pieces, font)
    beside = TILE + GAP if pictures else 0
    height = LINE + max(text.height, len(pictures) * (TILE + GAP))
    row = PIL.Image.new("RGB", (TILE + GAP + WIDTH, height), PAPER)
    pen = PIL.ImageDraw.Draw(row)
    pen.line((0, 0, row.width, 0), fill=SOFT)
    head = f"{view.id}   {view.tokens} tokens, {view.learnt} learnt{more}"
    pen.text((2, 2), head, fill=SOFT, font=font)
    for number, picture in enumerate(pictures):
        top = LINE + 2 + number * (TILE + GAP)
        row.paste(picture, (0, top))
        pen.rectangle((0, top, TILE - 1, top + TILE - 1), outline=COLOURS["control"])
    row.paste(text, (beside, LINE + 2))
    return row


def _text(pieces: Sequence[Piece], font: PIL.ImageFont.FreeTypeFont) -> PIL.Image.Image:
    width = font.getlength("m")
    columns = int(WIDTH / width)
    lines = list(_lines(pieces, columns))
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], [Piece("text", f"… {len(lines) - MOST_LINES + 1} more lines", False)]]
    image = PIL.Image.new("RGB", (WIDTH, max(1, len(lines)) * LINE + 4), PAPER)
    pen = PIL.ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        x, y = 0.0, number * LINE
        for piece in line:
            wide = len(piece.text) * width
            colour = COLOURS.get("learnt" if piece.learnt else piece.kind)
            if colour:
                pen.rectangle((x, y + 1, x + wide - 2, y + LINE - 2), fill=colour)
            pen.text((x, y + 1), piece.text, fill=INK, font=font)
            x += wide
    return image


def _lines(pieces: Sequence[Piece], columns: int) -> Iterator[list[Piece]]:
    """Pieces cut into lines of at most ``columns`` characters, and after every line break."""
    line: list[Piece] = []
    used = 0
    for piece in pieces:
        for part in piece.text.replace("\n", "⏎\n").splitlines(keepends=True) or [""]:
            text = part.rstrip("\n")
            while text:
                room = columns - used
                taken, text = text[:room], text[room:]
                line.append(Piece(piece.kind, taken, piece.learnt))
                used += len(taken)
                if used >= columns:
                    yield line
                    line, used = [], 0
            if part.endswith("\n"):
                yield line
                line, used = [], 0
    if line:
        yield line
