"""Who am I: short conversations about the model itself, from a small file that is made to be edited.

The packaged file is ``identity.toml`` beside this module. Each of its topics pairs questions with answers; every
question is asked once with every opening ("Hi! Who are you?"), and a hash picks the answer, so the set is the same on
every machine and grows by editing the file. A file of your own (``path``) has the same form, as TOML or YAML, or holds
whole conversations as ``.jsonl`` in any shape that :mod:`components.datasets.messages` reads.

Split by a hash of the question: 10 % of the wordings are kept for validation and 10 % for testing, and never asked in
training. The first question of a topic is its plainest one, and always trains.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from components.datasets import jsonl
from components.datasets.config_local import Identity, Jsonl
from components.datasets.local import existing
from components.datasets.splits import pick, split_of
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Conversation, SampleList, Split, assistant, system, user

VALIDATION, TEST = 0.1, 0.1
PACKAGED = Path(__file__).with_name("identity.toml")
_FACT = re.compile(r"\{(\w+)\}")


class Topic(BaseModel):
    """Questions of one meaning, and answers of which each fits each of them."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    questions: list[str] = Field(min_length=1)
    answers: list[str] = Field(min_length=1)


class File(BaseModel):
    """What a file of topics holds."""

    model_config = ConfigDict(extra="forbid")

    facts: dict[str, str] = {}
    system: str | None = None
    openings: list[str] = [""]
    topics: list[Topic] = Field(min_length=1)

    @model_validator(mode="after")
    def _complete(self) -> File:
        ids = [topic.id for topic in self.topics]
        twice = next((id for id in ids if ids.count(id) > 1), None)
        if twice:
            raise ValueError(f"two topics have the id {twice!r}")
        for topic in self.topics:
            for text in (*topic.questions, *topic.answers, self.system or ""):
                unknown = next((name for name in _FACT.findall(text) if name not in self.facts), None)
                if unknown:
                    raise ValueError(f"topic {topic.id}: {text!r} names {{{unknown}}}, which is not among the facts")
            empty = next((text for text in (*topic.questions, *topic.answers) if not text.strip()), None)
            if empty is not None:
                raise ValueError(f"topic {topic.id} has an empty question or answer")
        return self


def build(config: Identity, *, split: Split) -> SampleList | jsonl.Joined:
    """The conversations of one split. Raises UnavailableError or DataError for a file that cannot be had or read."""
    path = existing(config.path, "dataset.identity.path") if config.path else PACKAGED
    if path.suffix == ".jsonl":
        if config.assistant:
            raise DataError(f"dataset.identity.assistant: {path} holds whole conversations, which are left as they are")
        return jsonl.build(Jsonl(path=(str(path),), validation=VALIDATION, test=TEST), split=split)
    file = _read(path)
    facts = file.facts | ({"name": config.assistant} if config.assistant else {})
    samples: list[Conversation] = []
    for topic in file.topics:
        for question in dict.fromkeys(topic.questions):
            if _split(topic, question) == split:
                samples += [
                    _conversation(topic, question, place, opening, file.system, facts)
                    for place, opening in enumerate(dict.fromkeys(file.openings or [""]))
                ]
    return SampleList(samples)


def _split(topic: Topic, question: str) -> Split:
    if question == topic.questions[0]:
        return "train"
    return split_of(f"identity/{question}", validation=VALIDATION, test=TEST)


def _conversation(
    topic: Topic, question: str, place: int, opening: str, prompt: str | None, facts: Mapping[str, str]
) -> Conversation:
    id = f"identity/{topic.id}/{topic.questions.index(question)}/{place}"
    answer = topic.answers[pick(f"{question}/{opening}", len(topic.answers))]
    turns = (user(_filled(opening + question, facts)), assistant(_filled(answer, facts)))
    head = (system(_filled(prompt, facts)),) if prompt else ()
    return Conversation((*head, *turns), id=id, metadata={"kind": "identity", "topic": topic.id})


def _filled(text: str, facts: Mapping[str, str]) -> str:
    return _FACT.sub(lambda found: facts[found[1]], text)


def _read(path: Path) -> File:
    try:
        text = path.read_text(encoding="utf-8")
        data: Any = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
        return File.model_validate(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from error
    except (ValueError, yaml.YAMLError) as error:  # not UTF-8, or not TOML or YAML
        raise DataError(f"{path}: is not {'TOML' if path.suffix == '.toml' else 'YAML'}: {error}") from error
