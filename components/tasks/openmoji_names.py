"""Naming held-out pictures: which of four names is the picture's, by mean likelihood per token.

A small model that has never seen a harp will not say "harp", but it may find it likelier than "fondue" when it
looks. Every picture is asked several times against other distractors, which are names of held-out pictures of
other base concepts: names the model was trained on would be likelier than any held-out one, for no visual reason.
The draws of one picture share their likelihoods, and the interval resamples base concepts, not draws.
"""

from __future__ import annotations

from collections.abc import Sequence

from components.datasets.config import OpenMoji
from components.datasets.openmoji import build as build_dataset
from components.tasks.config import OpenMojiNamesTask
from components.tasks.ranking import RankingTask
from ghostvis_plugins.types import Conversation


class NamingTask(RankingTask):
    """``samples`` are conversations of one picture and its name, with the base concept in their metadata."""

    def __init__(self, samples: Sequence[Conversation], config: OpenMojiNamesTask) -> None:
        super().__init__(
            "openmoji_names", "1", samples, distractors=config.distractors, draws=config.draws, seed=config.seed
        )


def build(config: OpenMojiNamesTask) -> NamingTask:
    """OpenMoji pictures whose base concept was never trained on."""
    dataset = build_dataset(OpenMoji(render_size=config.render_size, views=1), split=config.split)
    return NamingTask([dataset[index] for index in range(len(dataset))], config)
