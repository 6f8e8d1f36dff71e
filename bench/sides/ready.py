"""Steps of the training loop whose batches lie ready, so that data costs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from components.batch import Batch
from stages.data import StepPlan


class BlockEnd(Exception):
    """The block of steps is over."""


@dataclass
class Step:
    """A step whose batches lie ready."""

    plan: StepPlan
    kept: list[Batch]
    bad: list[Any] = field(default_factory=list)
    left: int = 0  # batches that were not asked for yet

    @property
    def most(self) -> int:
        return len(self.kept)

    def batches(self) -> Iterator[Batch]:
        for number, batch in enumerate(self.kept, 1):
            self.left = len(self.kept) - number
            yield batch
