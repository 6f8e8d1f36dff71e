"""Metrics as lines of JSON: what every run writes, whichever tracker it also talks to."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .config import Jsonl as Config

FILE = "metrics.jsonl"


class JsonlTracker:
    """Appends ``{"step": …, …}`` per call; a line is handed to the system whole, so a reader never sees half of one."""

    def __init__(self, run_dir: Path) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self._file = (run_dir / FILE).open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float | int | str]) -> None:
        """Append one line."""
        self._file.write(_line({"step": step, **metrics}))
        self._file.flush()

    def finish(self) -> None:
        """Close the file."""
        self._file.close()


def _line(row: Mapping[str, Any]) -> str:
    """JSON has no word for what is not a number, such as the loss of a step that was left out: it is null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
    }
    return json.dumps(finite) + "\n"


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Every whole line of a run's metrics, null as NaN; a line cut short by a crash can only be the last."""
    path = run_dir / FILE
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    rows = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
    return [{key: math.nan if value is None else value for key, value in row.items()} for row in rows]


def rewind(run_dir: Path, step: int) -> None:
    """Drop what was logged after ``step``, which a resumed run is going to log again."""
    kept = [row for row in read_metrics(run_dir) if row["step"] <= step]
    path = run_dir / FILE
    if not path.is_file():
        return
    private = path.with_suffix(".tmp")
    with private.open("w", encoding="utf-8") as file:
        file.writelines(map(_line, kept))
        file.flush()
        os.fsync(file.fileno())
    private.replace(path)


def build(config: Config, *, run_dir: Path) -> JsonlTracker:
    """The ``jsonl`` component."""
    return JsonlTracker(run_dir)
