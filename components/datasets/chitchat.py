"""Chit-chat: human dialogues about everyday things, typed by students for a course challenge.

Source: the package chitchat-dataset 0.9.0 (MIT; The BYU Chit-Chat Dataset, Myers, Etchart and Fulda 2020):
7,168 dialogues, 258,145 messages, 12.5 million characters. What one person types in a row is one turn. 3,151
dialogues have fewer than two turns (nobody answered) and are dropped, and counted in ``dropped``. Texts are as
people typed them: slang, typos, a few rude words. Split by a hash of the dialogue's id: 2 % validation, 2 % test.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from components.datasets.config import Chitchat
from components.datasets.dialogues import DialogueDataset, windows
from components.datasets.splits import split_of
from components.packages import fetch
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Split

VALIDATION, TEST = 0.02, 0.02


def build(config: Chitchat, *, split: Split) -> DialogueDataset:
    """The dialogues of one split. Raises UnavailableError or DataError when the package cannot be had or read."""
    path = fetch("chitchat-dataset") / "chitchat_dataset" / "dataset.json"
    rows: list[tuple[str, tuple[str, ...]]] = []
    dropped = 0
    for key, turns in _dialogues(path):
        if split_of(f"chitchat/{key}", validation=VALIDATION, test=TEST) != split:
            continue
        if len(turns) < 2:
            dropped += 1
            continue
        cut = windows(turns, config.max_turns)
        rows += [(f"chitchat/{key}/{number}", tuple(window)) for number, window in enumerate(cut)]
    return DialogueDataset(rows, form=config.form, dropped=dropped)


@cache
def _dialogues(path: Path) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Every dialogue as (id, turns), in the order of the file."""
    try:
        source = json.loads(path.read_bytes())
        return tuple((str(key), tuple(_turns(dialogue["messages"]))) for key, dialogue in source.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not the chit-chat data set: {error}") from error


def _turns(groups: Iterable[Iterable[Mapping[str, Any]]]) -> list[str]:
    """Join what one sender writes in a row, with a space; empty messages say nothing."""
    turns: list[str] = []
    speaker = None
    for message in (message for group in groups for message in group):
        text = " ".join(message["text"].split())
        if not text:
            continue
        if message["sender"] == speaker:
            turns[-1] += " " + text
        else:
            turns.append(text)
            speaker = message["sender"]
    return turns
