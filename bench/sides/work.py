"""Made-up work that both sides do: the same documents and the same pictures, in the same steps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from components.rendering import Rendered
from ghostvis_plugins.types import Image

PICTURES = 32  # different ones; more would only fill the host's memory


@dataclass(frozen=True, slots=True)
class Sample:
    """``prompt`` is read, ``answer`` is learnt; a picture, given by its number, stands before both."""

    prompt: list[int]
    answer: list[int]
    picture: int | None = None

    def length(self, tokens_per_image: int) -> int:
        return (0 if self.picture is None else tokens_per_image) + len(self.prompt) + len(self.answer)

    def ids(self, tokens_per_image: int, marker: int) -> list[int]:
        return [marker] * (0 if self.picture is None else tokens_per_image) + self.prompt + self.answer

    def render(self, name: str, tokens_per_image: int, marker: int) -> Rendered:
        """As our renderer would give it."""
        ids = self.ids(tokens_per_image, marker)
        mask = [False] * (len(ids) - len(self.answer)) + [True] * len(self.answer)
        if self.picture is None:
            return Rendered(ids, mask, [], (), name)
        return Rendered(ids, mask, [(0, tokens_per_image)], (Image(path=f"random/{self.picture}"),), name)


@dataclass
class Work:
    """Steps that come round again. Placeholders have the id ``marker``, which no text has."""

    steps: list[list[Sample]]
    marker: int
    tokens_per_image: int = 0
    image_size: int = 0
    pictures: Tensor | None = field(init=False, default=None)  # [PICTURES, 3, S, S] float32

    def __post_init__(self) -> None:
        if self.image_size:
            generator = torch.Generator().manual_seed(0)
            self.pictures = torch.randn(PICTURES, 3, self.image_size, self.image_size, generator=generator)

    def lengths(self) -> list[int]:
        """Tokens of every sample of every step."""
        return [sample.length(self.tokens_per_image) for step in self.steps for sample in step]

    def tokens(self) -> float:
        """Of a step, on average."""
        return sum(self.lengths()) / len(self.steps)

    def samples(self) -> float:
        return sum(map(len, self.steps)) / len(self.steps)

    def pixels(self, samples: Sequence[Sample]) -> Tensor | None:
        """``[I, 3, S, S]`` of those with a picture; None where there is none."""
        numbers = [sample.picture for sample in samples if sample.picture is not None]
        return None if not numbers or self.pictures is None else self.pictures[numbers]


def texts(count: int, length: int, vocabulary: int, *, steps: int, seed: int = 0) -> Work:
    """``count`` documents a step of ``length`` tokens: all but the first is learnt."""
    draw = random.Random(seed)
    return Work(
        [
            [Sample([draw.randrange(vocabulary)], draw.choices(range(vocabulary), k=length - 1)) for _ in range(count)]
            for _ in range(steps)
        ],
        marker=vocabulary,
    )


def questions(
    count: int,
    prompt: tuple[int, int],
    answer: tuple[int, int],
    vocabulary: int,
    *,
    tokens_per_image: int,
    image_size: int,
    text_only: float = 0.0,
    group: int = 0,
    steps: int,
    seed: int = 0,
) -> Work:
    """``count`` samples a step, of lengths between two numbers; those of answers are skewed to the short end.

    ``group`` brings samples of similar length into the same run of ``group`` samples, as padding wants it.
    ``vocabulary`` is the last id that text may have, and one more is the placeholder.
    """
    draw = random.Random(seed)
    samples = []
    for number in range(count * steps):
        asked = draw.randint(*prompt)
        low, high = answer
        said = low + int((high - low + 1) * draw.random() ** 3)
        picture = None if draw.random() < text_only else number % PICTURES
        ids = draw.choices(range(vocabulary), k=asked + said)
        samples.append(Sample(ids[:asked], ids[asked:], picture))
    if group:
        samples.sort(key=lambda sample: sample.length(tokens_per_image))
        runs = [samples[at : at + group] for at in range(0, len(samples), group)]
        draw.shuffle(runs)
        samples = [sample for run in runs for sample in run]
    return Work(
        [samples[at : at + count] for at in range(0, len(samples), count)], vocabulary, tokens_per_image, image_size
    )
