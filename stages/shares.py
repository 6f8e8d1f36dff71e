"""What a mixture became: of each data set its weight, and how much of what was learnt came from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .data import Stream, StreamState, Taken

COLUMNS = ("data set", "weight", "answer tokens", "share", "samples", "share", "epochs")


@dataclass(frozen=True, slots=True)
class Share:
    """One data set of a finished run. Shares are of all data sets together; ``epochs`` counts unusable samples, too."""

    name: str
    weight: float
    targets: int
    target_share: float
    samples: int
    sample_share: float
    epochs: float

    def cells(self) -> tuple[str, ...]:
        return (
            self.name,
            f"{self.weight:.1%}",
            f"{self.targets:,}",
            f"{self.target_share:.1%}",
            f"{self.samples:,}",
            f"{self.sample_share:.1%}",
            f"{self.epochs:.2f}",
        )


def realised(stream: Stream, state: StreamState) -> list[Share]:
    """The data sets of a stream, largest weight first, as they are in the ``state`` behind the last step."""
    taken = {name: state.taken.get(name, Taken()) for name in stream.mixture.shares}
    targets = sum(own.targets for own in taken.values()) or 1
    samples = sum(own.samples for own in taken.values()) or 1
    return [
        Share(
            name,
            weight,
            taken[name].targets,
            taken[name].targets / targets,
            taken[name].samples,
            taken[name].samples / samples,
            _passed(state, name) / len(stream.datasets[name]),
        )
        for name, weight in sorted(stream.mixture.shares.items(), key=lambda item: -item[1])
    ]


def _passed(state: StreamState, name: str) -> int:
    """Positions of a data set's order that are done with: drawn, and not waiting for a row."""
    return state.mixture.cursors.get(name, 0) - sum(source == name for source, _ in state.pool)


def format_shares(shares: Sequence[Share]) -> str:
    """The table in columns, for people."""
    lines = [COLUMNS, *(share.cells() for share in shares)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def markdown_shares(shares: Sequence[Share]) -> str:
    """The same for the report."""
    lines = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *(share.cells() for share in shares)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
