"""The bad-sample ledger: what could not be used is written down, counted, and too much of it stops the run."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ghostvis_plugins.errors import DataError

from .journal import Journal, whole_lines

# Left out where reasons are counted, since it makes each its own: paths, names in quotes, numbers.
_OWN = re.compile(r"\S+[/\\]\S+|'[^']*'|\d[\d,.]*")


@dataclass(frozen=True, slots=True, order=True)
class BadSample:
    """A sample that could not be used, and why.

    ``index`` is its number in the data set and ``shard`` the file it lies in, where these are known. ``picture`` says
    that the sample itself could be read, so that it has its place in a step, and one of its pictures could not.
    """

    source: str
    id: str
    reason: str
    index: int = -1
    shard: str = ""
    picture: bool = False

    @property
    def key(self) -> tuple[str, str, int]:
        return self.source, self.id, self.index


class Ledger:
    """Distinct bad samples of a run; ``path`` is ``bad_samples.jsonl``, or None on ranks that do not write.

    The allowance is a share of *all* training samples, not of those seen so far, so whether a run stops does not
    depend on where in the order the bad ones happen to be.
    """

    def __init__(self, path: Path | None, fraction: float, samples: int) -> None:
        self.path = path
        self.journal = Journal(path)
        self.samples = samples
        self.allowed = int(fraction * samples)
        self.entries: dict[tuple[str, str, int], BadSample] = {}  # met so far
        self.known: dict[tuple[str, str, int], BadSample] = {}  # and those that the run met before it was resumed

    def load(self, step: int) -> None:
        """Take up what the run that is resumed at ``step`` knew. What it met later is known, but counts when it is met
        again."""
        if self.path is None or not self.path.is_file():
            return
        for line in whole_lines(self.path):
            entry = json.loads(line)
            met = entry.pop("step")
            bad = BadSample(**entry)
            self.known[bad.key] = bad
            if met <= step:
                self.entries[bad.key] = bad

    def add(self, found: Iterable[BadSample], step: int) -> None:
        """Write down new ones. Raises DataError with a table of the reasons when there are too many."""
        for bad in sorted(found):
            if bad.key in self.entries:
                continue
            self.entries[bad.key] = bad
            if bad.key not in self.known:
                self.journal.add({**asdict(bad), "step": step})
        if len(self.entries) > self.allowed:
            raise DataError(self._table(), hint="repair or remove them, or raise stage.max_bad_fraction")

    def _table(self) -> str:
        found = self.entries.values()
        head = f"{len(found)} unusable of {self.samples} training samples, and {self.allowed} are allowed"
        named = [f"{bad.source}: {bad.id}" + (f" in {bad.shard}" if bad.shard else "") for bad in found]
        lines = [head, *count_reasons(bad.reason for bad in found), "such as " + ", ".join(named[:3])]
        return "\n".join(lines) + (f"\nall of them: {self.path}" if self.path is not None else "")


def count_reasons(reasons: Iterable[str], most: int = 10) -> list[str]:
    """The table of reasons: lines with a count each, the most frequent first.

    What each sample has of its own, such as a path, does not tell them apart.
    """
    counts = Counter(_OWN.sub("…", reason.splitlines()[0]) for reason in reasons)
    return [f"{count:6d}  {reason}" for reason, count in counts.most_common(most)]


def by_index(bad: Iterable[BadSample]) -> dict[tuple[str, int], BadSample]:
    """Those whose number is known, by data set and number."""
    return {(entry.source, entry.index): entry for entry in bad if entry.index >= 0}
