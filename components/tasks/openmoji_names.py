"""Naming held-out pictures: which of four names is the picture's, by mean likelihood per token.

A small model that has never seen a harp will not say "harp", but it may find it likelier than "fondue" when it
looks. Every picture is asked several times against other distractors, which are names of held-out pictures of
other base concepts: names the model was trained on would be likelier than any held-out one, for no visual reason.
The draws of one picture share their likelihoods, and the interval resamples base concepts, not draws.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from components.datasets.config import OpenMoji
from components.datasets.openmoji import build as build_dataset
from components.tasks.config import OpenMojiNamesTask
from ghostvis_plugins.errors import ConfigError
from ghostvis_plugins.types import Conversation, EvalDoc, Generation


class NamingTask:
    """``samples`` are conversations of one picture and its name, with the base concept in their metadata."""

    name = "openmoji_names"
    version = "1"
    metric = "accuracy"
    generation = Generation()  # unused: choices are ranked, nothing is generated

    def __init__(self, samples: Sequence[Conversation], config: OpenMojiNamesTask) -> None:
        self._samples = samples
        self._config = config

    def docs(self) -> Sequence[EvalDoc]:
        names = [(_name(sample), _concept(sample)) for sample in self._samples]
        return [self._doc(sample, draw, names) for sample in self._samples for draw in range(self._config.draws)]

    def score(self, doc: EvalDoc, answer: str) -> Mapping[str, float]:
        return {self.metric: float(answer == doc.target)}

    def _doc(self, sample: Conversation, draw: int, names: Sequence[tuple[str, str]]) -> EvalDoc:
        right, concept = _name(sample), _concept(sample)
        others = sorted({name for name, owner in names if owner != concept and name != right})
        if len(others) < self._config.distractors:
            wanted = f"task.openmoji_names.distractors = {self._config.distractors}"
            raise ConfigError(f"{wanted}: only {len(others)} other names are held out")
        # Seeded by the picture and the number of the draw, so a limit or another order changes no question.
        rng = random.Random(f"{self._config.seed}/{sample.id}/{draw}")
        choices = [right, *rng.sample(others, self._config.distractors)]
        rng.shuffle(choices)
        prompt = Conversation(sample.messages[:-1], id=sample.id)
        return EvalDoc(id=f"{sample.id}/{draw}", prompt=prompt, target=right, choices=tuple(choices), cluster=concept)


def _name(sample: Conversation) -> str:
    return sample.messages[-1].text


def _concept(sample: Conversation) -> str:
    return str(sample.metadata["concept"])


def build(config: OpenMojiNamesTask) -> NamingTask:
    """OpenMoji pictures whose base concept was never trained on."""
    dataset = build_dataset(OpenMoji(render_size=config.render_size, views=1), split=config.split)
    return NamingTask([dataset[index] for index in range(len(dataset))], config)
