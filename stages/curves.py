"""Curves over steps: a picture file, and characters for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

Curve = Sequence[tuple[float, float]]  # points (step, value)

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a Braille character from U+2800: rows from above, left and right."""


def draw(curves: Mapping[str, Curve], path: Path, *, title: str, dotted: Mapping[str, Curve] | None = None) -> None:
    """Write a PNG with a line per curve; ``dotted`` ones have a mark at each point. Needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = {}
    for name, points in curves.items():
        (line,) = axes.plot([x for x, _ in points], [y for _, y in points], label=name, linewidth=1)
        colours[name.split(",")[0]] = line.get_color()
    for name, points in (dotted or {}).items():
        colour = colours.get(name.split(",")[0]) if len(curves) > 1 else None  # of its run
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", label=name, color=colour, markersize=4)
    axes.set(xlabel="step", ylabel="loss per target token (nats)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})


def text_plot(curves: Sequence[Curve], *, width: int = 60, height: int = 10) -> list[list[tuple[str, int | None]]]:
    """Curves as lines of ``width`` by ``height`` Braille characters, each with the number of the curve it shows.

    Where two curves meet in a character, the later one gives it its number. Empty when there is nothing finite.
    """
    kept = [[(x, y) for x, y in curve if math.isfinite(x) and math.isfinite(y)] for curve in curves]
    points = [point for curve in kept for point in curve]
    if not points:
        return []
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    bits = [[0] * width for _ in range(height)]
    owner: list[list[int | None]] = [[None] * width for _ in range(height)]
    for number, curve in enumerate(kept):
        placed = [(_place(x, left, right, 2 * width), _place(y, high, low, 4 * height)) for x, y in curve]
        for (x0, y0), (x1, y1) in zip(placed, placed[1:] or placed, strict=False):
            steps = max(abs(x1 - x0), abs(y1 - y0), 1)
            for step in range(steps + 1):
                x, y = round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps)
                bits[y // 4][x // 2] |= DOTS[y % 4][x % 2]
                owner[y // 4][x // 2] = number
    return [
        [(chr(0x2800 + bit) if bit else " ", who) for bit, who in zip(row, numbers, strict=True)]
        for row, numbers in zip(bits, owner, strict=True)
    ]


def _place(value: float, first: float, last: float, cells: int) -> int:
    """The cell of ``value`` where ``first`` is in the first one and ``last`` in the last."""
    return round((value - first) / (last - first) * (cells - 1)) if last != first else 0
