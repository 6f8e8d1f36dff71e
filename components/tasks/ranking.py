"""Which of several texts belongs to the picture, by mean likelihood per token: what ranking tasks share.

The right text stands beside texts of other held-out pictures of the same group. Texts that the model was trained on
would be likelier than any held-out one, for no visual reason, and texts of another kind of picture could be told from
their style. The order of the choices, and which they are, are a function of the seed and the sample's id, so a limit
or another order of the samples changes no question.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from ghostvis_plugins.errors import ConfigError
from ghostvis_plugins.types import Conversation, EvalDoc, Generation

Key = Callable[[Conversation], str]


def concept(sample: Conversation) -> str:
    """The thing that the sample's picture varies; it is not offered beside another picture of the same thing."""
    return str(sample.metadata["concept"])


class RankingTask:
    """``samples`` are conversations that end with the right text, each with a ``concept`` in its metadata.

    ``group`` names what a sample's wrong texts are drawn from (from all samples where ``mixed``), and becomes the tag
    of its documents where it is not empty; ``asked`` says which samples are asked about (their texts are offered in any
    case). The interval resamples concepts. ``docs`` raises ConfigError where a group has too few texts.
    """

    metric = "accuracy"
    generation = Generation()  # unused: choices are ranked, nothing is generated

    def __init__(
        self,
        name: str,
        version: str,
        samples: Sequence[Conversation],
        *,
        distractors: int,
        draws: int = 1,
        seed: int = 0,
        group: Key = lambda sample: "",
        mixed: bool = False,
        asked: Callable[[Conversation], bool] = lambda sample: True,
    ) -> None:
        self.name, self.version = name, version
        self._samples, self._distractors, self._draws, self._seed = samples, distractors, draws, seed
        self._group, self._mixed, self._asked = group, mixed, asked

    def docs(self) -> Sequence[EvalDoc]:
        texts: dict[str, dict[str, str]] = {}  # group → text → its concept
        for sample in self._samples:
            texts.setdefault(self._pool(sample), {})[_text(sample)] = concept(sample)
        return [
            self._doc(sample, draw, texts[self._pool(sample)])
            for sample in self._samples
            if self._asked(sample)
            for draw in range(self._draws)
        ]

    def score(self, doc: EvalDoc, answer: str) -> Mapping[str, float]:
        return {self.metric: float(answer == doc.target)}

    def _pool(self, sample: Conversation) -> str:
        return "" if self._mixed else self._group(sample)

    def _doc(self, sample: Conversation, draw: int, texts: Mapping[str, str]) -> EvalDoc:
        right, own, group = _text(sample), concept(sample), self._group(sample)
        others = sorted(text for text, owner in texts.items() if owner != own and text != right)
        if len(others) < self._distractors:
            wanted = f"task.{self.name}.distractors = {self._distractors}"
            where = f" in '{group}'" if group and not self._mixed else ""
            raise ConfigError(f"{wanted}: only {len(others)} other texts are held out{where}")
        rng = random.Random(f"{self._seed}/{sample.id}/{draw}")
        choices = [right, *rng.sample(others, self._distractors)]
        rng.shuffle(choices)
        return EvalDoc(
            id=f"{sample.id}/{draw}" if self._draws > 1 else sample.id,
            prompt=Conversation(sample.messages[:-1], id=sample.id),
            target=right,
            choices=tuple(choices),
            cluster=own,
            tags=(group,) if group else (),
        )


def _text(sample: Conversation) -> str:
    return sample.messages[-1].text
