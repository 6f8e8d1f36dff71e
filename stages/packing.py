"""Samples of one step into bins, bins onto ranks.

A step's samples are decided before (:mod:`stages.data`) and by nothing in here, so the size of a micro-batch and the
number of ranks change how a step is computed, not what is learnt. Bins hold whole samples: neither a document nor an
image span is ever cut.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Cost:
    """What a sample costs the rank that computes it, in tokens through the language model.

    Its ``n`` tokens cost ``n``, attention between them ``n² / span``, and each picture ``image``. ``span`` is the
    length at which attention costs as much as everything else in the language model.
    """

    span: float = math.inf
    image: float = 0.0

    def __call__(self, tokens: int, images: int) -> float:
        return tokens + tokens * tokens / self.span + self.image * images

    @classmethod
    def of(cls, model: Any, *, encodes: bool) -> Cost:
        """By the usual count of operations: 2 per parameter and token, and 2 per layer, channel and pair of tokens
        (causal attention), so the span is parameters / (layers · width): 12 widths in a plain transformer.

        A picture costs the encoder's parameters times its patches, a third of it when no gradient flows back, and
        nothing where its features are kept (``encodes`` False). That is exact for a vision transformer, a guess for a
        convolutional network. The split onto ranks is all that hangs on it.
        """
        backbone, encoder = model.backbone, model.encoder
        size = sum(parameter.numel() for parameter in backbone.parameters())
        span = size / (backbone.n_layers * backbone.dim)
        if encoder is None or not encodes:
            return cls(span)
        seen = sum(parameter.numel() for parameter in encoder.parameters()) * encoder.tokens
        return cls(span, seen / size / (3 if model.encoder_frozen else 1))


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of sample numbers, each of at most ``capacity`` tokens: best fit, longest samples first.

    Within a bin the numbers ascend. Deterministic. Raises ValueError for a sample longer than ``capacity``.
    """
    room: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    bins: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[number]
        if length > capacity:
            raise ValueError(f"sample {number} has {length} tokens, a bin holds {capacity}")
        place = bisect.bisect_left(room, (length, -1))
        if place < len(room):
            free, chosen = room.pop(place)
        else:
            free, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(number)
        bisect.insort(room, (free - length, chosen))
    return [sorted(members) for members in bins]


def share(
    rows: Sequence[Sequence[int]], lengths: Sequence[int], costs: Sequence[float], capacity: int, ranks: int
) -> list[list[list[int]]]:
    """The bins of each rank, of at most ``capacity`` tokens: the planned rows where these fit and can be dealt evenly.

    ``lengths`` and ``costs`` are those of the samples whose numbers stand in ``rows``. Deterministic.
    """
    bins = [list(row) for row in rows]
    if any(sum(lengths[number] for number in row) > capacity for row in bins):
        bins = pack(lengths, capacity)
    if len(bins) % ranks:  # a rank would wait for the others, so the samples are levelled onto a few bins more
        bins = _level(lengths, costs, -(-len(bins) // ranks) * ranks, capacity) or bins
    return [[bins[number] for number in hand] for hand in deal(_totals(bins, costs), ranks)]


def deal(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Numbers of the bins of each rank: the dearest bin left goes to the rank that has least to do."""
    loads = [0.0] * ranks
    hands: list[list[int]] = [[] for _ in range(ranks)]
    for number in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = min(range(ranks), key=lambda r: (loads[r], r))
        loads[rank] += costs[number]
        hands[rank].append(number)
    return hands


def _level(lengths: Sequence[int], costs: Sequence[float], count: int, capacity: int) -> list[list[int]] | None:
    """At most ``count`` bins of about the same cost; None when a sample finds no room."""
    loads, room = [0.0] * count, [capacity] * count
    bins: list[list[int]] = [[] for _ in range(count)]
    for number in sorted(range(len(lengths)), key=lambda i: (-costs[i], i)):
        fitting = [b for b in range(count) if lengths[number] <= room[b]]
        if not fitting:
            return None
        chosen = min(fitting, key=lambda b: (loads[b], b))
        loads[chosen] += costs[number]
        room[chosen] -= lengths[number]
        bins[chosen].append(number)
    return [sorted(members) for members in bins if members]


def _totals(bins: Sequence[Sequence[int]], costs: Sequence[float]) -> list[float]:
    return [sum(costs[number] for number in members) for members in bins]
