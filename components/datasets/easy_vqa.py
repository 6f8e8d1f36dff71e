"""easy-VQA: one coloured shape on a 64 x 64 picture, and templated questions about it.

Source: the package easy-vqa 1.0 (MIT, Victor Zhou). 4,000 training pictures with 38,575 questions and 1,000
test pictures with 9,673, as published; 13 answers (8 colours, 3 shapes, yes, no). The published set has no
validation split: 5 % of the training pictures, with all their questions, are set aside for it by a hash of
the picture's number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from components.datasets.config import EasyVQA
from components.datasets.splits import split_of
from components.packages import fetch
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Conversation, Image, Length, Message, Split, assistant, user

VALIDATION = 0.05

Row = tuple[str, str, int]  # question, answer, number of the picture


class EasyVQADataset:
    """Conversations about one picture each. ``metadata``: ``kind`` ("open", "yes_no" or "mixed") and ``image``."""

    def __init__(self, folder: Path, rows: Sequence[Row], *, name: str, per_sample: int) -> None:
        self._folder = folder
        self._rows = rows
        self._name = name
        self._groups = _groups(rows, per_sample)

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> Conversation:
        start, stop = self._groups[index]
        rows = self._rows[start:stop]
        picture = rows[0][2]
        messages: list[Message] = []
        for question, answer, _ in rows:
            first = (Image(path=str(self._folder / f"{picture}.png")),) if not messages else ()
            messages += [user(*first, question), assistant(answer)]
        kinds = {"yes_no" if answer in ("yes", "no") else "open" for _, answer, _ in rows}
        kind = kinds.pop() if len(kinds) == 1 else "mixed"
        return Conversation(
            tuple(messages),
            id=f"easy_vqa/{self._name}/{start}",
            metadata={"kind": kind, "image": f"{self._name}/{picture}"},
        )

    def length(self, index: int) -> Length:
        start, stop = self._groups[index]
        return Length(sum(len(q.encode()) + len(a.encode()) for q, a, _ in self._rows[start:stop]), images=1)


def build(config: EasyVQA, *, split: Split) -> EasyVQADataset:
    """The data set of one split. Raises UnavailableError or DataError when the package cannot be had or read."""
    published = "test" if split == "test" else "train"
    folder = fetch("easy-vqa") / "easy_vqa" / "data" / published
    path = folder / "questions.json"
    try:
        rows = [(str(question), str(answer), int(image)) for question, answer, image in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not the question file of easy-VQA: {error}") from error
    if split != "test":
        kept = {
            image
            for image in {row[2] for row in rows}
            if split_of(f"easy_vqa/train/{image}", validation=VALIDATION, test=0.0) == split
        }
        rows = [row for row in rows if row[2] in kept]
    rows.sort(key=lambda row: row[2])  # stable: the questions of a picture stay in their published order
    return EasyVQADataset(folder / "images", rows, name=split, per_sample=config.questions_per_sample)


def _groups(rows: Sequence[Row], per_sample: int) -> list[tuple[int, int]]:
    """Runs of at most ``per_sample`` rows about one picture, as (start, stop)."""
    groups: list[tuple[int, int]] = []
    start = 0
    for index in range(1, len(rows) + 1):
        if index == len(rows) or rows[index][2] != rows[start][2] or index - start == per_sample:
            groups.append((start, index))
            start = index
    return groups
