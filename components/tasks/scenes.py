"""Composed scenes of a held-out split: counting, position, colour, presence.

Tags are the kinds of questions, and whether the drawn objects were trained on ("known objects") or not.
"""

from __future__ import annotations

from collections.abc import Iterator

from components.datasets.config import Scenes
from components.datasets.scenes import build as build_dataset
from components.tasks.answers import AnswerTask
from components.tasks.config import ScenesTask

COUNTED = 4000  # training scenes whose answers feed the controls


def build(config: ScenesTask) -> AnswerTask:
    """One document per scene."""
    dataset = build_dataset(
        Scenes(size=config.size, questions=config.questions, canvas=config.canvas), split=config.split
    )
    train = build_dataset(Scenes(size=COUNTED, questions=config.questions, canvas=config.canvas), split="train")

    def train_answers() -> Iterator[tuple[str, str]]:
        planned = (train.scene(index) for index in range(len(train)))  # the truth without drawing it
        return ((scene.question, scene.answer) for scene in planned)

    return AnswerTask("scenes", "1", dataset, train_answers, config.max_new_tokens)
