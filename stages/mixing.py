"""What a recipe's mixture really yields: its first samples, counted by rows and by answer tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from components.tokenizers import Tokenizer

from .data import Stream
from .workers import Workers

PLACES = 1  # of a picture: answers are counted here, not what is read
UNLIMITED = 2**31  # nothing is too long, nothing cropped


@dataclass(frozen=True, slots=True)
class Source:
    """One data set of a mixture. Shares are of 1; ``epochs`` is how often its samples were gone through."""

    name: str
    weight: float
    wanted: float
    rows: int
    tokens: int
    bad: int
    row_share: float
    token_share: float
    epochs: float


def sample_mixture(
    datasets: Mapping[str, tuple[Any, float]], tokenizer: Tokenizer, *, seed: int, samples: int
) -> list[Source]:
    """Draw ``samples`` as training does, and count. Raises DataError for a data set that gives nothing usable."""
    with closing(Workers()) as workers:
        stream = Stream(datasets, tokenizer, PLACES, seed=seed, limit=UNLIMITED, workers=workers)
        plan = stream.draw(samples)
    rows = Counter(drawn.source for drawn in plan.samples)
    tokens: Counter[str] = Counter()
    for drawn in plan.samples:
        tokens[drawn.source] += drawn.rendered.targets
    bad = Counter(entry.source for entry in plan.bad)
    return [
        Source(
            name,
            weight,
            stream.mixture.shares.get(name, 0.0),
            rows[name],
            tokens[name],
            bad[name],
            rows[name] / samples,
            tokens[name] / max(plan.targets, 1),
            stream.state.mixture.cursors.get(name, 0) / len(dataset),
        )
        for name, (dataset, weight) in datasets.items()
    ]
