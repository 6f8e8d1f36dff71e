"""The results of an evaluation as plain text: one block per task, one line per tag, one column per condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOTES = {
    "model": "",
    "permuted": "with another document's picture",
    "blank": "with a white picture",
    "blind": "without a picture, from the text of the question",
    "majority": "always the most frequent answer",
    "per_question": "the most frequent answer to the same question, the best blind guess",
}
"""What each condition means, in the order in which they are shown."""

PLAIN = ("perplexity",)
"""Metrics that are not shares: shown as they are, not in percent."""


def table(results: Mapping[str, Any]) -> str:
    """Scores in percent, perplexities as they are.

    The model's have 95 % intervals over clusters; those of the controls are in results.json.
    """
    head = f"model {results['model']}, weights {results['weights'][:12]}"
    return "\n\n".join([head, *(_task(name, task) for name, task in results["tasks"].items())])


def _task(name: str, task: Mapping[str, Any]) -> str:
    conditions = {"model": task["model"], **task["controls"]}
    shown = {label: conditions[label] for label in NOTES if "score" in conditions.get(label, {})}
    rows = [["", "n", *shown]]
    for tag in (None, *task["model"]["tags"]):
        estimates = {label: _estimate(condition, tag) for label, condition in shown.items()}
        show = _plain if task["metric"] in PLAIN else _percent
        cells = [show(estimate, interval=label == "model") for label, estimate in estimates.items()]
        rows.append([tag or "all", f"{estimates['model']['n']:,}", *cells])
    size = task["model"]["score"]
    title = (
        f"{name} (version {task['version']}): {task['metric']}{'' if task['metric'] in PLAIN else ' in %'}, "
        f"95 % interval over {size['clusters']:,} clusters"
    )
    return "\n".join([title, *_aligned(rows), *_remarks(task, shown)])


def _estimate(condition: Mapping[str, Any], tag: str | None) -> Any:
    return condition["score"] if tag is None else condition["tags"].get(tag)


def _percent(estimate: Mapping[str, Any] | None, *, interval: bool) -> str:
    if estimate is None:
        return "-"
    mean = f"{100 * estimate['mean']:.1f}"
    if not interval or estimate["low"] is None:
        return mean
    return f"{mean} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def _plain(estimate: Mapping[str, Any] | None, *, interval: bool) -> str:
    if estimate is None:
        return "-"
    if not interval or estimate["low"] is None:
        return f"{estimate['mean']:,.2f}"
    return f"{estimate['mean']:,.2f} [{estimate['low']:,.2f}, {estimate['high']:,.2f}]"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _remarks(task: Mapping[str, Any], shown: Mapping[str, Mapping[str, Any]]) -> list[str]:
    remarks = []
    n = task["model"]["score"]["n"]
    for label, condition in shown.items():
        if label == "model":
            continue
        answer = f' ("{condition["answer"]}")' if "answer" in condition else ""
        source = f"; counted in {condition['source']}" if "source" in condition else ""
        fewer = f"; on {condition['score']['n']:,} documents" if condition["score"]["n"] != n else ""
        remarks.append(f"  {label}{answer}: {NOTES[label]}{source}{fewer}")
    for label, condition in task["controls"].items():
        if "skipped" in condition:
            remarks.append(f"  {label}: skipped, {condition['skipped']}")
    if task["chance"] is not None:
        remarks.append(f"  chance: {100 * task['chance']:.1f}")
    if n < task["documents"]:
        remarks.append(f"  limited to {n:,} of {task['documents']:,} documents")
    model = task["model"]
    for what, count in (("empty", model.get("empty", 0)), ("cut at the limit", model.get("truncated", 0))):
        if count:
            remarks.append(f"  {count:,} of {n:,} answers were {what}")
    if "bits_per_byte" in model.get("intervals", {}):
        bits = _plain(model["intervals"]["bits_per_byte"], interval=True)
        remarks.append(f"  {bits} bits per byte; {model['tokens']:,} tokens, {model['bytes']:,} bytes")
        if model["cut"]:
            remarks.append(f"  {model['cut']:,} of {n:,} conversations were cut to the model's positions")
    return remarks
