"""How a run talks to people: a bar on a terminal, a plain line now and then elsewhere, always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any


class Progress:
    """Steps done of steps in all, with figures and the time left. Silent on ranks that do not talk."""

    def __init__(self, title: str, done: int, total: int, *, talks: bool, every: float) -> None:
        self.title, self.total, self.every, self.talks = title, total, every, talks
        self._begun, self._first, self._last = time.monotonic(), done, time.monotonic()
        self._bar: Any = None
        if talks and sys.stderr.isatty():
            self._start_bar(done)

    def _start_bar(self, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
        )
        self._bar = RichProgress(*columns, console=Console(stderr=True), expand=True)
        self._task = self._bar.add_task(self.title, total=self.total, completed=done, figures="")
        self._bar.start()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self.talks:
            print(text, file=sys.stderr, flush=True)

    def update(self, step: int, row: Mapping[str, Any]) -> None:
        """Show the figures of a finished step."""
        if not self.talks:
            return
        self.show(step, figures_of(row))
        if "val_loss" in row:
            bits = f"  bpb {row['val_bpb']:.4f}" if "val_bpb" in row else ""
            self.say(
                f"{self.title} {step}/{self.total}  validation loss {row['val_loss']:.4f}  "
                f"accuracy {row['val_accuracy']:.1%}{bits}"
            )

    def show(self, done: int, figures: str) -> None:
        """Move on to ``done``."""
        if not self.talks:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=done, figures=figures)
        now = time.monotonic()
        if self._bar is None and (now - self._last >= self.every or done == self.total):
            left = (now - self._begun) / max(done - self._first, 1) * (self.total - done)
            self._last = now
            self.say(f"{self.title} {done}/{self.total}  {figures}  eta {clock(left)}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def figures_of(row: Mapping[str, Any]) -> str:
    """Loss and speed of a step in a few words."""
    parts = [f"loss {row['loss']:.4f}", f"{row['tokens_per_second']:,.0f} tok/s"]
    if row.get("images_per_second"):
        parts.append(f"{row['images_per_second']:,.0f} img/s")
    if "mfu" in row:
        parts.append(f"MFU {row['mfu']:.1%}")
    elif "flops_per_second" in row:
        parts.append(f"{si(row['flops_per_second'])}FLOP/s")
    if "memory_bytes" in row:
        parts.append(f"{row['memory_bytes'] / 2**30:.1f} GiB")
    return "  ".join(parts)


def si(value: float) -> str:
    """Three digits and a prefix: ``12.3 G``."""
    for exponent, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**exponent:
            return f"{value / 10**exponent:.3g} {prefix}"
    return f"{value:.3g} "


def clock(seconds: float) -> str:
    """``m:ss`` or ``h:mm:ss``."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
