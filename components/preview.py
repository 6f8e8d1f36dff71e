"""Samples for the eye: their text, and their pictures on a contact sheet. Used by ``data preview`` and reports."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from components.images import decode, frame
from ghostvis_plugins.types import Conversation, Document, Message, Sample

TILE, TEXT, COLUMNS = 160, 66, 6  # pixels a side, pixels of text below, tiles a row
LINES, CHARACTERS = 4, 26


def spread(length: int, count: int) -> list[int]:
    """At most ``count`` indices spread evenly over ``range(length)``."""
    count = min(count, length)
    return [index * length // count for index in range(count)]


def text_of(sample: Sample) -> str:
    """The sample as plain text: one line a turn, pictures as ``[image]``."""
    if isinstance(sample, Document):
        return sample.text
    return "\n".join(f"{message.role}: {_line(message)}" for message in sample.messages)


def _line(message: Message) -> str:
    return " ".join(["[image]"] * len(message.images) + ([message.text] if message.text else []))


def contact_sheet(samples: Sequence[Sample]) -> PIL.Image.Image | None:
    """The first picture of every sample that has one, with its text below; None when no sample has a picture.

    Raises DataError for a picture that cannot be decoded.
    """
    shown = [sample for sample in samples if isinstance(sample, Conversation) and sample.images]
    if not shown:
        return None
    rows = -(-len(shown) // COLUMNS)
    size = (min(len(shown), COLUMNS) * (TILE + 8), rows * (TILE + TEXT + 8))
    sheet = PIL.Image.new("RGB", size, (236, 236, 236))
    pen = PIL.ImageDraw.Draw(sheet)
    font = PIL.ImageFont.load_default(12)
    for place, sample in enumerate(shown):
        x, y = place % COLUMNS * (TILE + 8) + 4, place // COLUMNS * (TILE + TEXT + 8) + 4
        sheet.paste(frame(decode(sample.images[0]), TILE, fit="pad"), (x, y))
        pen.multiline_text((x + 2, y + TILE + 2), _caption(sample), fill=(20, 20, 20), font=font, spacing=2)
    return sheet


def _caption(sample: Conversation) -> str:
    lines: list[str] = []
    for message in sample.messages:
        mark = "> " if message.role == "assistant" else ""
        lines += textwrap.wrap(mark + message.text, CHARACTERS)
    return "\n".join(lines if len(lines) <= LINES else [*lines[: LINES - 1], "..."])
