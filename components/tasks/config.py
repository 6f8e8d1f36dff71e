"""The options of the built-in tasks. Imports neither torch nor Pillow."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from components.datasets.config import SceneKind

CaptionSet = Literal["tuxpaint", "openclipart", "gimp_help", "openmoji"]
DialogueSet = Literal["chitchat", "chatterbot"]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    split: Literal["validation", "test"] = "test"
    """``test`` is held out from everything; ``validation`` may have chosen the checkpoint."""


class EasyVQATask(_Options):
    """Questions about one coloured shape, answered freely."""

    max_new_tokens: int = Field(4, ge=1)
    """Tokens an answer may have; every right answer is one word."""


class ScenesTask(_Options):
    """Questions about composed pictures, answered freely."""

    size: int = Field(1000, ge=1)
    """Scenes asked about."""
    questions: tuple[SceneKind, ...] = Field(("counting", "position", "colour", "presence"), min_length=1)
    """Kinds of questions, in equal shares."""
    canvas: int = Field(128, ge=96, le=512)
    """Side of a scene, in pixels."""
    max_new_tokens: int = Field(8, ge=1)
    """Tokens an answer may have."""


class OpenMojiNamesTask(_Options):
    """Which of several names belongs to the picture, by likelihood."""

    draws: int = Field(10, ge=1)
    """Independent draws of distractors per picture."""
    distractors: int = Field(3, ge=1)
    """Wrong names beside the right one; chance is 1 / (distractors + 1)."""
    seed: int = 0
    """Of the distractors and of their order."""
    render_size: int = Field(128, ge=16, le=1024)
    """Side of the rendered pictures, in pixels."""


class CaptionsTask(_Options):
    """Which of several captions belongs to the picture, by likelihood."""

    sets: tuple[CaptionSet, ...] = Field(("tuxpaint", "openclipart", "gimp_help"), min_length=1)
    """Data sets whose held-out pictures are asked about."""
    limit: int | None = Field(None, ge=1)
    """Pictures of each set, the same ones every time; without it all of them."""
    distractors: int = Field(3, ge=1)
    """Wrong captions beside the right one; chance is 1 / (distractors + 1)."""
    mixed: bool = False
    """Whether wrong captions are of pictures of any set: easier, because a set can be told from its style."""
    seed: int = 0
    """Of the distractors and of their order."""
    roots: dict[CaptionSet, str] = {}
    """Folders with the files of a set, as its option ``root``."""


class ChatPerplexityTask(_Options):
    """Perplexity of held-out dialogues."""

    sets: tuple[DialogueSet, ...] = Field(("chitchat",), min_length=1)
    """Data sets whose held-out dialogues are measured."""
    max_turns: int = Field(16, ge=2)
    """Longer dialogues are measured in parts of at most this many messages."""
