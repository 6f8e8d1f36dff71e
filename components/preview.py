"""Samples for the eye: their text, and what a model reads of them, token by token.

Used by ``data preview`` and reports; :mod:`components.preview_page` and :mod:`components.preview_sheet` draw it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from components.rendering import Rendered, render
from components.tokenizers import MIN_VOCAB_SIZE, Tokenizer
from ghostvis_plugins.types import Document, Image, Message, Sample

LONGEST_CHARACTER = 4  # bytes, and so the most tokens that may share one


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


@dataclass(frozen=True, slots=True)
class Piece:
    """One token, a few that share a character, or the place of a picture. ``learnt`` is the loss mask."""

    kind: Literal["text", "control", "image"]
    text: str
    learnt: bool


@dataclass(frozen=True, slots=True)
class View:
    """A sample as a model reads it."""

    id: str
    pieces: tuple[Piece, ...]
    images: tuple[Image, ...]
    tokens: int  # without those of pictures
    learnt: int


def byte_tokenizer() -> Tokenizer:
    """Our own format without a learnt vocabulary: every byte is a token."""
    return Tokenizer.train([], MIN_VOCAB_SIZE)


def view(sample: Sample, tokenizer: Tokenizer) -> View:
    """What training makes of a sample. Raises DataError for what cannot be rendered."""
    rendered = render(sample, tokenizer, tokens_per_image=1)
    tokens = len(rendered.ids) - len(rendered.images)
    return View(sample.id, tuple(_pieces(rendered, tokenizer)), rendered.images, tokens, rendered.targets)


def _pieces(rendered: Rendered, tokenizer: Tokenizer) -> Iterator[Piece]:
    starts = {start for start, _ in rendered.image_spans}
    at = pictures = 0
    while at < len(rendered.ids):
        token, learnt = rendered.ids[at], rendered.loss_mask[at]
        if at in starts:
            pictures += 1
            yield Piece("image", f"picture {pictures}", learnt)
            at += 1
        elif token in tokenizer.control_ids:
            yield Piece("control", tokenizer.spell([token]), learnt)
            at += 1
        else:
            text, count = _character(rendered.ids[at : at + LONGEST_CHARACTER], tokenizer)
            yield Piece("text", text, learnt)
            at += count


def _character(ids: list[int], tokenizer: Tokenizer) -> tuple[str, int]:
    """The text of the fewest tokens that are whole characters, and how many they are; of one, where none are."""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count])
        if "\ufffd" not in text:
            return text, count
    return tokenizer.decode(ids[:1]), 1
