"""Runs as their folders tell: what each was, how far it came, what it cost; and several side by side.

A folder is a run when it holds ``resolved.json``. Nothing is kept elsewhere, so what was moved or copied is a run, too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.trackers.jsonl import FILE as METRICS
from components.trackers.jsonl import read_metrics
from ghostvis_plugins.errors import DataError, MissingError, did_you_mean
from ghostvis_plugins.layers import flatten

from .rundir import QUEUED, resolved_of

QUIET = 120.0
"""Seconds without a step after which an unfinished run counts as failed; ten times its slowest step, if that's more."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run directory as it is now."""

    path: Path
    resolved: dict[str, Any]
    metrics: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def values(self) -> dict[str, Any]:
        return self.resolved["values"]  # type: ignore[no-any-return]

    @property
    def touched(self) -> float:
        """When the run last wrote its metrics, or began: seconds of the epoch."""
        path = self.path / METRICS
        return (path if path.exists() else self.path / "resolved.json").stat().st_mtime

    def state(self, now: float | None = None) -> str:
        """``finished``: its model is there; ``queued``: its job has not started; ``running``: a step was made not long
        ago; else ``failed``.

        A run leaves no word when it dies, so the latter two are told by its silence.
        """
        if (self.path / "model" / "config.json").is_file():
            return "finished"
        if (self.path / QUEUED).exists():
            return "queued"
        patience = max(QUIET, *(10 * row["seconds"] for row in self.metrics if "seconds" in row), 0)
        return "running" if (now or time.time()) - self.touched < patience else "failed"

    def summary(self, now: float | None = None) -> dict[str, Any]:
        """A line of the listing; losses are None where there are none."""
        now = now or time.time()
        last = self.metrics[-1] if self.metrics else {}
        validated = [row["val_loss"] for row in self.metrics if "val_loss" in row]
        stage = self.values.get("stage") or {}
        return {
            "name": self.name,
            "stage": stage.get("name"),
            "step": last.get("step", 0),
            "steps": stage.get("steps"),
            "state": self.state(now),
            "loss": last.get("loss"),
            "val_loss": validated[-1] if validated else None,
            "age_seconds": round(max(0.0, now - self.touched), 1),
        }

    def figures(self) -> dict[str, Any]:
        """What the run reached, and at what cost. Empty for a run without a step."""
        if not self.metrics:
            return {}
        seconds = sum(row.get("seconds", 0.0) for row in self.metrics)
        total = {key: sum(row.get(key, 0) for row in self.metrics) for key in ("tokens", "images", "flops")}
        validated = [row for row in self.metrics if "val_loss" in row]
        found: dict[str, Any] = {"step": self.metrics[-1]["step"], "loss": self.metrics[-1]["loss"]}
        if validated:
            found |= {key: value for key, value in validated[-1].items() if key.startswith("val_")}
            found["best_val_loss"] = min(row["val_loss"] for row in validated)
        found |= {**total, "seconds": round(seconds, 2)}
        if seconds:
            found["tokens_per_second"] = round(total["tokens"] / seconds, 1)
            found["flops_per_second"] = round(total["flops"] / seconds)
        for key in ("mfu", "energy_joules"):
            if rows := [row for row in self.metrics if key in row]:
                weighted = [row[key] * (row["seconds"] / seconds if key == "mfu" else 1) for row in rows]
                found[key] = round(sum(weighted), 4)
        if most := max(row.get("memory_bytes", 0) for row in self.metrics):
            found["memory_bytes"] = most
        return found


def open_run(path: Path) -> Run:
    """The run in a folder. Raises DataError for metrics that nothing here wrote."""
    try:
        return Run(path, resolved_of(path, {}), read_metrics(path))
    except ValueError as error:
        raise DataError(f"{path}: neither {METRICS} nor resolved.json may be anything else: {error}") from error


def find_run(given: str, runs: Path) -> Run:
    """The run that a name or a folder means. Raises MissingError."""
    for path in (runs / given, Path(given)):
        if (path / "resolved.json").is_file():
            return open_run(path)
    known = [run.name for run in list_runs(runs)]
    raise MissingError(
        f"no run '{given}'.{did_you_mean(given, known)}",
        hint=f"Runs: {', '.join(known)}." if known else f"There is none in {runs} yet.",
    )


def list_runs(runs: Path) -> list[Run]:
    """Every run in the folder, the last written first."""
    folders = (path.parent for path in runs.glob("*/resolved.json") if not path.parent.is_symlink())
    return sorted(map(open_run, folders), key=lambda run: (-run.touched, run.name))


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Resolved values that are not the same in all runs, by dotted key; None where a run has none."""
    flat: list[Mapping[str, Any]] = [dict(flatten(run.values)) for run in runs]
    keys = sorted({key for values in flat for key in values if key != "name"})
    found = {key: [values.get(key) for values in flat] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}
