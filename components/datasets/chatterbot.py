"""ChatterBot corpus: short questions and answers in English, written by volunteers for a chat bot.

Source: the package chatterbot-corpus 1.3.3 (BSD licence, Gunther Cox and contributors), its English files. Most
entries are a question and an answer; in the files ``computers`` and ``emotion`` an entry is a question and
several answers to choose from, which become one pair each. Exact repetitions are left out: the file on technical
support says the same dozens of things a thousand times. Four files are not used: ``psychology`` (insults and
answers in kind), ``politics`` (opinions on guns and parties), ``coding`` (listings, some of them broken) and
``health`` (one play-acted consultation). ``dropped`` counts what repeats another entry or is damaged (a line of
``trivia`` lost its answer).

Split by a hash of the opening question, so all answers to it stay together: 4 % validation, 4 % test.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

from components.datasets.config import Chatterbot
from components.datasets.dialogues import DialogueDataset
from components.datasets.splits import split_of
from components.packages import fetch
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Split

VALIDATION, TEST = 0.04, 0.04
UNUSED = frozenset({"coding", "health", "politics", "psychology"})
ALTERNATIVES = frozenset({"computers", "emotion"})

Dialogue = tuple[str, ...]


def build(config: Chatterbot, *, split: Split) -> DialogueDataset:
    """The conversations of one split. Raises UnavailableError or DataError when the package cannot be had or read."""
    folder = fetch("chatterbot-corpus") / "chatterbot_corpus" / "data" / "english"
    rows: list[tuple[str, Dialogue]] = []
    seen: set[Dialogue] = set()
    dropped = 0
    for id, turns in _corpus(folder):
        if split_of(f"chatterbot/{_key(turns[0])}", validation=VALIDATION, test=TEST) != split:
            continue
        if len(turns) < 2 or turns in seen:
            dropped += 1
            continue
        seen.add(turns)
        rows.append((id, turns))
    return DialogueDataset(rows, form=config.form, dropped=dropped)


def _key(question: str) -> str:
    """A question without case and punctuation: "Hello!" and "hello" are one."""
    return "".join(char for char in question.lower() if char.isalnum() or char == " ").strip()


@cache
def _corpus(folder: Path) -> tuple[tuple[str, Dialogue], ...]:
    """Every dialogue as (id, turns), by file and place."""
    found: list[tuple[str, Dialogue]] = []
    for path in sorted(folder.glob("*.yml")):
        if path.stem in UNUSED:
            continue
        try:
            entries = yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]
            dialogues = [dialogue for entry in entries for dialogue in _split_up(entry, path.stem)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            raise DataError(f"{path}: not a file of the ChatterBot corpus: {error}") from error
        found += [(f"chatterbot/{path.stem}/{number}", dialogue) for number, dialogue in enumerate(dialogues)]
    if not found:
        raise DataError(f"{folder}: holds no conversations")
    return tuple(found)


def _split_up(entry: list[str] | str, name: str) -> Iterator[Dialogue]:
    if isinstance(entry, str):  # not a list of turns: kept as one turn, which build() counts as dropped
        entry = [entry]
    turns = tuple(" ".join(str(turn).split()) for turn in entry)
    if name in ALTERNATIVES:
        yield from ((turns[0], answer) for answer in turns[1:])
    else:
        yield turns
