"""Splits that never move: a key's place depends on the key alone, not on order, library or machine."""

from __future__ import annotations

import hashlib

from ghostvis_plugins.types import Split


def fraction(key: str) -> float:
    """A number in [0, 1) that is a pure function of ``key``."""
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogateescape")).digest()[:7], "big") / (1 << 56)


def pick(key: str, count: int) -> int:
    """A number in ``range(count)`` that is a pure function of ``key``."""
    return int(fraction(key) * count)


def split_of(key: str, *, validation: float, test: float) -> Split:
    """The split that ``key`` belongs to, with the given shares; the rest is train."""
    place = fraction(key)
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"
