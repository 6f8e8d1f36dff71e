"""Samples of one step into bins, bins onto ranks.

A step's samples are decided before (:mod:`stages.data`) and by nothing in here, so micro-batch size and number
of ranks change how a step is computed, not what is learnt. Bins hold whole samples: neither a document nor an
image span is ever cut.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence


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


def capacity_for(lengths: Sequence[int], micro_tokens: int, ranks: int) -> int:
    """Size of a bin: ``micro_tokens``, or less when that leaves a rank without work."""
    if not lengths:
        return micro_tokens
    fair = -(-sum(lengths) // ranks)
    return min(micro_tokens, max(max(lengths), fair + fair // 16))


def deal(bins: Sequence[Sequence[int]], lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Bin numbers of each rank: the largest bin left goes to the rank with the fewest tokens."""
    costs = [sum(lengths[number] for number in members) for members in bins]
    loads = [0] * ranks
    hands: list[list[int]] = [[] for _ in range(ranks)]
    for number in sorted(range(len(bins)), key=lambda i: (-costs[i], i)):
        rank = min(range(ranks), key=lambda r: (loads[r], r))
        loads[rank] += costs[number]
        hands[rank].append(number)
    return hands
