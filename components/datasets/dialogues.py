"""Dialogues in memory, as conversations with roles or as plain documents: what the text data sets share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from components.datasets.config import Form
from ghostvis_plugins.types import Conversation, Document, Length, Sample, assistant, user


class DialogueDataset:
    """Turns that alternate between user and assistant, user first.

    As a conversation a dialogue ends with an assistant turn (a trailing question without an answer teaches
    nothing and is left off); as a document it is one turn a line. ``dropped`` counts the source's dialogues
    that could not be used at all.
    """

    def __init__(self, rows: Iterable[tuple[str, Sequence[str]]], *, form: Form, dropped: int = 0) -> None:
        self._form = form
        even = form == "conversations"
        self._rows = [(id, tuple(turns[: len(turns) // 2 * 2] if even else turns)) for id, turns in rows]
        self._rows = [row for row in self._rows if row[1]]
        self.dropped = dropped

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        id, turns = self._rows[index]
        if self._form == "documents":
            return Document("\n".join(turns), id=id)
        messages = tuple((user, assistant)[place % 2](turn) for place, turn in enumerate(turns))
        return Conversation(messages, id=id, metadata={"kind": "dialogue"})

    def length(self, index: int) -> Length:
        turns = self._rows[index][1]
        breaks = len(turns) - 1 if self._form == "documents" else 0
        return Length(sum(len(turn.encode()) for turn in turns) + breaks)


def windows(turns: Sequence[str], longest: int) -> Iterator[Sequence[str]]:
    """Cut ``turns`` into runs of at most ``longest``, each starting with the first speaker; a lone turn is left off."""
    step = longest // 2 * 2
    for start in range(0, len(turns), step):
        window = turns[start : start + step]
        if len(window) >= 2:
            yield window
