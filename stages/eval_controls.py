"""Controls: what a score would be if the model did not look. A figure for a vision task means little without them.

``blind``     the question alone: every picture is removed from the prompt and the model answers the text.
``blank``     every picture is a white one.
``permuted``  every picture is another document's: a seeded cyclic permutation of the distinct pictures, so that no
              document ever gets its own.
``majority``  no model: the most frequent answer, and beside it ``per_question``, the most frequent answer to the
              very same question, which is the best that anyone can do blind. Learned from the task's training
              split where the task offers one, else from the documents themselves, and the result says which.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ghostvis_plugins.types import Conversation, EvalDoc, Image, Message, Part

MODEL_CONTROLS = ("blind", "blank", "permuted")
CONTROLS = ("majority", *MODEL_CONTROLS)

PROMPTS = {
    "blind": "the text of the question, without the picture",
    "blank": "the question with a white picture",
    "permuted": "the question with another document's picture",
}


@cache
def white_picture(side: int = 64) -> Image:
    """A white PNG of ``side`` x ``side`` pixels, written by hand so that it is the same bytes everywhere."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)  # 8-bit grey
    pixels = zlib.compress((b"\0" + b"\xff" * side) * side, 9)
    return Image(data=b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def controlled(docs: Sequence[EvalDoc], control: str, *, identity: Callable[[Image], str], seed: int) -> list[EvalDoc]:
    """``docs`` as ``control`` asks them. Documents without a picture are left out: there is nothing to control.

    ``identity`` names a picture by its content. Under ``permuted`` a document is also left out when no other
    document has as many pictures as it has.
    """
    with_pictures = [doc for doc in docs if doc.prompt.images]
    if control == "blind":
        return [_with_images(doc, ()) for doc in with_pictures]
    if control == "blank":
        return [_with_images(doc, (white_picture(),) * len(doc.prompt.images)) for doc in with_pictures]
    if control == "permuted":
        return _permuted(with_pictures, identity, seed)
    raise ValueError(f"not a control that runs the model: {control}")


def _with_images(doc: EvalDoc, images: Sequence[Image]) -> EvalDoc:
    """``doc`` with its pictures replaced in order, or without any when there are none to replace them."""
    remaining = iter(images)
    messages: list[Message] = []
    for message in doc.prompt.messages:
        parts: list[Part] = []
        for part in message.parts:
            if not isinstance(part, Image):
                parts.append(part)
            elif images:
                parts.append(next(remaining))
        messages.append(replace(message, parts=tuple(parts)))
    return replace(doc, prompt=replace(doc.prompt, messages=tuple(messages)))


def _permuted(docs: Sequence[EvalDoc], identity: Callable[[Image], str], seed: int) -> list[EvalDoc]:
    def names(doc: EvalDoc) -> tuple[str, ...]:
        return tuple(identity(image) for image in doc.prompt.images)

    pictures = {names(doc): doc.prompt.images for doc in docs}
    by_count: dict[int, list[tuple[str, ...]]] = defaultdict(list)
    for group in pictures:
        by_count[len(group)].append(group)
    successor: dict[tuple[str, ...], tuple[str, ...]] = {}
    for groups in by_count.values():
        if len(groups) > 1:  # one cycle through all of them: nothing maps to itself
            random.Random(seed).shuffle(groups)
            successor.update(zip(groups, groups[1:] + groups[:1], strict=True))
    return [_with_images(doc, pictures[successor[names(doc)]]) for doc in docs if names(doc) in successor]


@dataclass(frozen=True, slots=True)
class Priors:
    """The most frequent answer, overall and to each question. ``source`` says where they were counted."""

    majority: str
    per_question: dict[str, str]
    source: str

    def answer(self, doc: EvalDoc) -> str:
        """The best blind answer; the overall majority for a question never seen."""
        return self.per_question.get(question_of(doc.prompt), self.majority)


def question_of(prompt: Conversation) -> str:
    """The text of the last message, the user's."""
    return prompt.messages[-1].text


def priors(task: Any, docs: Sequence[EvalDoc]) -> Priors:
    """Count the answers of the task's ``train_answers()`` (pairs of question and answer), else of ``docs``."""
    train_answers: Callable[[], Iterable[tuple[str, str]]] | None = getattr(task, "train_answers", None)
    if train_answers is not None:
        return _count(train_answers(), "the training split")
    pairs = ((question_of(doc.prompt), _first(doc.target)) for doc in docs)
    return _count(pairs, "the documents themselves")


def _first(target: Any) -> str:
    return str(target[0]) if isinstance(target, list | tuple) and target else str(target)


def _count(pairs: Iterable[tuple[str, str]], source: str) -> Priors:
    overall: Counter[str] = Counter()
    each: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in pairs:
        overall[answer] += 1
        each[question][answer] += 1
    # Ties fall to the answer that comes first in the alphabet: a Counter alone would decide by order of arrival.
    best = {question: min(answers, key=lambda a: (-answers[a], a)) for question, answers in each.items()}
    return Priors(min(overall, key=lambda a: (-overall[a], a)), best, source)
