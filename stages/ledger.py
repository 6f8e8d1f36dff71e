"""The bad-sample ledger: what could not be used is written down, counted, and too much of it stops the run."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ghostvis_plugins.errors import DataError

_PATH = re.compile(r"\S+[/\\]\S+")  # left out where reasons are counted: it makes each its own


@dataclass(frozen=True, slots=True, order=True)
class BadSample:
    """A sample that could not be used, and why."""

    source: str
    id: str
    reason: str


class Ledger:
    """Distinct bad samples of a run; ``path`` is ``bad_samples.jsonl``, or None on ranks that do not write.

    The allowance is a share of *all* training samples, not of those seen so far, so whether a run stops does not
    depend on where in the order the bad ones happen to be.
    """

    def __init__(self, path: Path | None, fraction: float, samples: int) -> None:
        self.path = path
        self.samples = samples
        self.allowed = int(fraction * samples)
        self.entries: dict[tuple[str, str], str] = {}

    def load(self) -> None:
        """Take up what the run that is resumed already knew."""
        if self.path is None or not self.path.is_file():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            self.entries[entry["source"], entry["id"]] = entry["reason"]

    def add(self, found: Iterable[BadSample], step: int) -> None:
        """Write down new ones. Raises DataError with a table of the reasons when there are too many."""
        for bad in sorted(found):
            if (bad.source, bad.id) in self.entries:
                continue
            self.entries[bad.source, bad.id] = bad.reason
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**asdict(bad), "step": step}, ensure_ascii=False) + "\n")
        if len(self.entries) > self.allowed:
            head = f"{len(self.entries)} unusable of {self.samples} training samples, and {self.allowed} are allowed"
            where = f"\nall of them: {self.path}" if self.path is not None else ""
            raise DataError(
                "\n".join([head, *count_reasons(self.entries.values())]) + where,
                hint="repair or remove them, or raise stage.max_bad_fraction",
            )


def count_reasons(reasons: Iterable[str], most: int = 10) -> list[str]:
    """The table of reasons: lines with a count each, the most frequent first; paths in them do not tell them apart."""
    counts = Counter(_PATH.sub("…", reason.splitlines()[0]) for reason in reasons)
    return [f"{count:6d}  {reason}" for reason, count in counts.most_common(most)]
