"""The results of an evaluation as plain text: one block per task, one line per condition, one column per tag."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOTES = {
    "model": "",
    "permuted": "another document's picture",
    "blank": "a white picture",
    "blind": "no picture: the text of the question alone",
    "majority": "always the most frequent answer",
    "per_question": "the most frequent answer to the same question: the best possible blind guess",
}
"""What each condition means, in the order in which they are shown."""


def table(results: Mapping[str, Any]) -> str:
    """Scores in percent with 95 % intervals, bootstrapped over pictures. Counts differ where a control was limited."""
    head = f"model {results['model']}  weights {results['weights'][:12]}"
    return "\n\n".join([head, *(_task(name, task) for name, task in results["tasks"].items())])


def _task(name: str, task: Mapping[str, Any]) -> str:
    conditions = {"model": task["model"], **task["controls"]}
    shown = [(label, conditions[label]) for label in NOTES if label in conditions]
    tags = list(task["model"]["tags"])
    rows = [["", "n", "all", *tags]]
    for label, condition in shown:
        if "skipped" in condition:
            rows.append([label, "0", f"skipped: {condition['skipped']}"])
            continue
        cells = [_percent(condition["score"]), *(_percent(condition["tags"].get(tag)) for tag in tags)]
        rows.append([label, f"{condition['score']['n']:,}", *cells])
    size = task["model"]["score"]
    title = f"{name} (version {task['version']}), {task['metric']} in %, 95 % interval over {size['clusters']:,} clusters"
    return "\n".join([title, *_aligned(rows), *_remarks(task, shown)])


def _percent(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    mean = f"{100 * estimate['mean']:.1f}"
    if estimate["low"] is None:
        return mean
    return f"{mean} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def _aligned(rows: list[list[str]]) -> list[str]:
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(row[column]) for row in full) for column in range(len(rows[0]))]
    widths[0] = max(len(row[0]) for row in rows)
    return ["  ".join(cell.ljust(widths[i]) for i, cell in enumerate(row)).rstrip() for row in rows]


def _remarks(task: Mapping[str, Any], shown: list[tuple[str, Mapping[str, Any]]]) -> list[str]:
    remarks = []
    for label, condition in shown:
        answer = f' ("{condition["answer"]}")' if "answer" in condition else ""
        source = f", counted in {condition['source']}" if "source" in condition else ""
        if NOTES[label]:
            remarks.append(f"  {label}{answer}: {NOTES[label]}{source}")
    if task["chance"] is not None:
        remarks.append(f"  chance: {100 * task['chance']:.1f}")
    model = task["model"]
    for what, count in (("empty", model["empty"]), ("cut at max_new_tokens", model.get("truncated", 0))):
        if count:
            remarks.append(f"  {count:,} of {model['score']['n']:,} answers were {what}")
    return remarks
