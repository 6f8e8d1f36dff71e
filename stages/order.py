"""Which sample comes next: a pure function of (seed, epoch, index), and a mixture without randomness.

An epoch visits each sample once in the order of a keyed permutation that is computed per index, so the state
of a shuffled stream is one integer, random access is free, and resuming needs no replay. Sources are mixed by
deficit round robin on target tokens: the next sample comes from the source that is furthest behind its share.
The realised ratio is never off by more than one sample, whatever their lengths.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

ROUNDS = 6
_MASK = (1 << 64) - 1


def permutation_key(seed: int, epoch: int, source: str) -> tuple[int, ...]:
    """Round keys of one epoch of one source."""
    digest = hashlib.sha512(f"{seed}/{epoch}/{source}".encode()).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(ROUNDS))


def permuted(index: int, size: int, key: tuple[int, ...]) -> int:
    """Where a keyed permutation of ``range(size)`` sends ``index``.

    A Feistel network on a rectangle of ``rows * columns >= size`` cells that is just large enough (Black and
    Rogaway 2002, "Ciphers with arbitrary finite domains"); cells outside the range are walked over.
    """
    if not 0 <= index < size:
        raise IndexError(f"{index} is not below {size}")
    columns = max(1, int(size**0.5))
    rows = -(-size // columns)
    while True:
        row, column = divmod(index, columns)
        for number, salt in enumerate(key):
            if number % 2:
                column = (column + _mix(row ^ salt)) % columns
            else:
                row = (row + _mix(column ^ salt)) % rows
        index = row * columns + column
        if index < size:
            return index


def _mix(x: int) -> int:
    """The finaliser of splitmix64: every output bit depends on every input bit."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


class Order:
    """The endless shuffled order of one source: position 0, 1, 2, … → index of a sample."""

    def __init__(self, seed: int, source: str, size: int) -> None:
        self.seed, self.source, self.size = seed, source, size
        self._epoch = -1
        self._key: tuple[int, ...] = ()

    def __call__(self, position: int) -> int:
        """The sample at ``position``; every ``size`` positions a new epoch shuffles anew."""
        epoch, index = divmod(position, self.size)
        if epoch != self._epoch:
            self._epoch, self._key = epoch, permutation_key(self.seed, epoch, self.source)
        return permuted(index, self.size, self._key)


@dataclass
class MixtureState:
    """All that a mixture remembers, as JSON values: positions and target tokens per source."""

    cursors: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    def copy(self) -> MixtureState:
        return MixtureState(dict(self.cursors), dict(self.tokens))

    def to_json(self) -> dict[str, dict[str, int]]:
        return {"cursors": dict(self.cursors), "tokens": dict(self.tokens)}

    @classmethod
    def from_json(cls, data: Mapping[str, Mapping[str, int]]) -> MixtureState:
        return cls(dict(data["cursors"]), dict(data["tokens"]))


class Mixture:
    """Chooses the source of each sample. ``weights`` are shares of target tokens, in any unit."""

    def __init__(self, weights: Mapping[str, float], state: MixtureState | None = None) -> None:
        total = sum(weights.values())
        if total <= 0 or any(weight < 0 for weight in weights.values()):
            raise ValueError("the weights of a mixture must be positive")
        self.shares = {name: weight / total for name, weight in weights.items() if weight > 0}
        self.state = state or MixtureState()
        for name in self.shares:
            self.state.cursors.setdefault(name, 0)
            self.state.tokens.setdefault(name, 0)

    def choose(self) -> str:
        """The source that is furthest behind its share; the first of equals, in the order they were given."""
        tokens = self.state.tokens
        total = sum(tokens[name] for name in self.shares)
        return max(self.shares, key=lambda name: self.shares[name] * total - tokens[name])

    def advance(self, source: str) -> int:
        """Position of the next sample of ``source``, which is thereby used up."""
        position = self.state.cursors[source]
        self.state.cursors[source] = position + 1
        return position

    def account(self, source: str, targets: int) -> None:
        """Book the target tokens of a sample that was taken."""
        self.state.tokens[source] += targets
