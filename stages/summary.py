"""The report of a speedrun: how long each stage took and what it learnt, what the model scores, and what it says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from components.images import decode
from ghostvis_plugins.manager import Registry
from ghostvis_plugins.types import EvalDoc

from .eval_report import table as scores_table
from .eval_rows import Row
from .provenance import provenance, table
from .runs import Run, open_run

SHOWN = 3  # documents of each tag of each task


def write_summary(
    out: Path,
    *,
    runs: Sequence[Path],
    model: Path,
    registry: Registry,
    seconds: Mapping[str, float],
    total: float,
    results: Mapping[str, Any],
    processes: int,
    argv: Sequence[str],
) -> Path:
    """Write ``report.md`` beside the evaluation's ``samples.jsonl`` in ``out``; pictures go to folders beside it.

    ``runs`` are the directories of the stages, in their order.
    """
    times = {name: f"{value:.1f} s" for name, value in seconds.items()}
    sections = [
        f"# {out.name}",
        f"Model: `{model}`. Each stage has its own report in its run directory.",
        "## Time",
        table({**times, "**in all**": f"**{total:.1f} s**"}),
        *_learning(out, [run for run in map(open_run, runs) if run.metrics]),
        "## Held-out scores",
        f"```\n{scores_table(results)}\n```",
        "## What it says",
        *_examples(out, registry, results),
        "## Where these figures come from",
        table(dict(provenance(argv, torch.device(results["device"]), processes))),
    ]
    path = out / "report.md"
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def _learning(out: Path, runs: Sequence[Run]) -> list[str]:
    """What each stage that makes steps came to, and its curve; those that were finished before count as well."""
    titles = ("stage", "steps", "tokens", "pictures", "validation loss", "in steps", "tokens/s", "MFU", "memory")
    lines = [titles, ("---",) * len(titles), *map(_learnt, runs)]
    sections = ["## What it learnt", "\n".join("| " + " | ".join(line) + " |" for line in lines)]
    for run in runs:
        curve = Path("curves") / f"{run.name}.png"
        if (run.path / "loss.png").is_file():
            (out / curve).parent.mkdir(exist_ok=True)
            shutil.copyfile(run.path / "loss.png", out / curve)
            sections.append(f"![loss of {run.name}]({curve.as_posix()})")
    return sections


def _learnt(run: Run) -> tuple[str, ...]:
    """A row of the table: validation loss where it began, at its best and at the end; ``-`` for what is not known."""
    figures = run.figures()
    validated = [row["val_loss"] for row in run.metrics if "val_loss" in row]
    losses = (validated[0], min(validated), validated[-1]) if validated else ()
    return (
        f"{run.name} ({run.values['stage']['name']})",
        f"{figures['step']:,}",
        f"{figures['tokens']:,}",
        f"{figures['images']:,}",
        "first {:.3f}, best {:.3f}, last {:.3f}".format(*losses) if losses else "-",
        f"{figures['seconds']:.1f} s",
        f"{figures.get('tokens_per_second', 0):,.0f}",
        f"{figures['mfu']:.1%}" if "mfu" in figures else "-",
        f"{figures['memory_bytes'] / 2**30:.2f} GiB" if "memory_bytes" in figures else "-",
    )


def _examples(out: Path, registry: Registry, results: Mapping[str, Any]) -> list[str]:
    """Held-out documents with their pictures and the model's answers, a few of each kind of question."""
    answers = _answers(out / "samples.jsonl", results["weights"])
    sections = []
    for name in results["tasks"]:
        spec = registry.get("task", name)
        docs = spec.load_build()(registry.make_config("task", name, {})).docs()
        shown = [doc for doc in _few_of_each_tag(docs, answers, name) if doc.target is not None]
        if not shown:  # nothing is answered: a perplexity, say
            continue
        sections.append(f"### {name}")
        for number, doc in enumerate(shown):
            sections.append(_example(out, f"{name}_{number}", doc, answers[name, doc.id]))
    return sections


def _answers(samples: Path, weights: str) -> dict[tuple[str, str], Row]:
    rows = map(json.loads, samples.read_text(encoding="utf-8").splitlines())
    return {(r["task"], r["doc"]): r for r in rows if r["condition"] == "model" and r["weights"] == weights}


def _few_of_each_tag(docs: Sequence[EvalDoc], answers: Mapping[tuple[str, str], Row], task: str) -> list[EvalDoc]:
    """The first documents of each tag that were asked, each about another picture. Not chosen by their answers."""
    taken: dict[str, list[EvalDoc]] = {}
    seen: set[str] = set()
    for doc in docs:
        shown = taken.setdefault(doc.tags[0] if doc.tags else "", [])
        if (task, doc.id) in answers and len(shown) < SHOWN and doc.cluster not in seen:
            shown.append(doc)
            seen.add(doc.cluster)
    return [doc for shown in taken.values() for doc in shown]


def _example(out: Path, name: str, doc: EvalDoc, row: Row) -> str:
    (out / "samples").mkdir(exist_ok=True)
    pictures = []
    for index, image in enumerate(image for message in doc.prompt.messages for image in message.images):
        file = f"samples/{name}_{index}.png"
        decode(image).save(out / file)
        pictures.append(f"![{doc.id}]({file})")
    lines = {"question": doc.prompt.messages[-1].text, "answer": _plain(doc.target), "model": row["output"]}
    if row.get("choices"):
        lines["choices"] = ", ".join(row["choices"])
    return "\n\n".join([*pictures, table(dict(lines))])


def _plain(target: Any) -> str:
    return target if isinstance(target, str) else json.dumps(target, ensure_ascii=False)
