"""Evaluation: a model directory, some tasks, and what the model scores with and without looking.

Reads top to bottom: choose the documents, answer them (the model, then the controls), score, summarise. Every
answer is a row of ``samples.jsonl`` (:mod:`stages.eval_rows`) before it is a figure in ``results.json``.

Notable choices
---------------
* Equal prompts are answered once. Greedy decoding and likelihoods are pure functions of the prompt, so ten draws
  of names for one picture, or one question about a blank picture asked a thousand times, cost one forward pass.
* A limit takes the head of one seeded shuffle, so a larger limit contains a smaller one and reuses its rows, and
  a small one spreads over many pictures instead of asking everything about the first.
* Documents that share a picture are answered next to each other, so that the engine encodes it once.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from components.metrics import bootstrap_ci, choose, mean_scores
from ghostvis_plugins.errors import ConfigError, GhostVisError, did_you_mean
from ghostvis_plugins.protocols import LikelihoodTask
from ghostvis_plugins.types import Completion, EvalDoc, Score
from stages import eval_likelihood
from stages.eval_controls import CONTROLS, MODEL_CONTROLS, PROMPTS, controlled, priors
from stages.eval_likelihood import Likelihoods
from stages.eval_rows import Hasher, Row, RowStore, digest_of, key_of

if TYPE_CHECKING:
    import torch

    from ghostvis_plugins.manager import Registry
    from ghostvis_plugins.protocols import Engine, Task

T = TypeVar("T")

BATCH = {"cuda": 256}
"""Documents answered together, by device; 64 on others. A GPU waits for Python far longer than for a wider batch."""

Progress = Callable[[str, str, int, int], None]  # task, condition, documents done, documents in all


def evaluate(
    model_dir: Path,
    tasks: Sequence[str],
    registry: Registry,
    out_dir: Path,
    *,
    limit: int | None = None,
    control_limit: int | None = None,
    controls: Sequence[str] = CONTROLS,
    seed: int = 0,
    device: str = "auto",
    engine: Mapping[str, Any] | str = "native",
    batch_size: int | None = None,
    task_options: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score the model in ``model_dir`` on ``tasks``; write ``samples.jsonl`` and ``results.json`` to ``out_dir``.

    ``engine`` is a name, or a table of a name and options; ``limit`` and ``control_limit`` bound
    the documents of the model and of each control that runs it. ``batch_size`` documents are answered together.
    Raises MissingError for an unknown task, ConfigError for an unknown control or wrong task option, and what
    loading a model raises.
    """
    from stages.distributed import choose_device  # brings torch

    _check(controls, limit, control_limit)
    built = [_build_task(registry, name, (task_options or {}).get(name, {})) for name in dict.fromkeys(tasks)]
    table = {"name": engine} if isinstance(engine, str) else dict(engine)
    chosen = choose_device(device)
    batch_size = batch_size or BATCH.get(chosen.type, 64)
    loaded = _load(model_dir, registry, chosen, table)
    setup = {"engine": table, "dtype": loaded.dtype}
    results: dict[str, Any] = {
        "format_version": 1,
        "model": str(model_dir),
        "weights": loaded.weights,
        "device": loaded.device,
        **setup,
        "seed": seed,
        "limit": limit,
        "control_limit": control_limit,
        "tasks": {},
    }
    with RowStore(out_dir / "samples.jsonl") as store:
        for task in built:
            run = Run(
                loaded.engine,
                task,
                store,
                weights=loaded.weights,
                setup=setup,
                batch_size=batch_size,
                likelihoods=loaded.likelihoods,
            )
            results["tasks"][task.name] = run_task(
                run, controls=controls, limit=limit, control_limit=control_limit, seed=seed, progress=progress
            )
    _write_json(out_dir / "results.json", results)
    return results


def _check(controls: Sequence[str], *limits: int | None) -> None:
    for control in controls:
        if control not in CONTROLS:
            raise ConfigError(
                f"unknown control '{control}'.{did_you_mean(control, CONTROLS)}", hint=f"Known: {', '.join(CONTROLS)}."
            )
    if any(limit is not None and limit < 1 for limit in limits):
        raise ConfigError("a limit must be at least 1")


def _build_task(registry: Registry, name: str, options: Mapping[str, Any]) -> Task | LikelihoodTask:
    spec = registry.get("task", name)
    config = registry.make_config("task", name, options)
    return spec.load_build()(config)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Loaded:
    engine: Engine
    weights: str
    dtype: str
    device: str
    likelihoods: Likelihoods


def _load(model_dir: Path, registry: Registry, device: torch.device, engine: Mapping[str, Any]) -> _Loaded:
    from components.weights import load_model, weights_hash

    config = registry.make_config("engine", engine["name"], engine)
    loaded = load_model(model_dir, registry, device=device)
    built = registry.get("engine", engine["name"]).load_build()(config, model=loaded.model, tokenizer=loaded.tokenizer)
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    likelihoods = Likelihoods(loaded.model, loaded.tokenizer)
    return _Loaded(built, weights_hash(model_dir), dtype, str(device), likelihoods)


@dataclass
class Run:
    """One task on one model: what an answer depends on, and where answers are kept."""

    engine: Engine
    task: Task | LikelihoodTask
    store: RowStore
    weights: str
    setup: Mapping[str, Any] = field(default_factory=dict)  # of the engine: part of every row's generation settings
    batch_size: int = 64
    hasher: Hasher = field(default_factory=Hasher)
    likelihoods: Likelihoods | None = None  # for tasks of likelihoods


def run_task(
    run: Run,
    *,
    controls: Sequence[str] = CONTROLS,
    limit: int | None = None,
    control_limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The model's figures on one task, and those of each control, as a JSON-able mapping."""
    started, task = time.monotonic(), run.task
    everything = list(task.docs())
    order = list(range(len(everything)))
    random.Random(f"{seed}/{task.name}").shuffle(order)
    docs = [everything[i] for i in sorted(order[:limit])]
    fewer = [everything[i] for i in sorted(order[:limit][:control_limit])]
    if not docs:
        raise GhostVisError(f"task '{task.name}' has no documents")

    result: dict[str, Any] = {
        "version": task.version,
        "metric": task.metric,
        "documents": len(everything),
        "generation": None if isinstance(task, LikelihoodTask) else asdict(task.generation),
        "chance": None if isinstance(task, LikelihoodTask) else _chance(docs),
        "model": summarise(task, answer(run, "model", docs, progress)),
        "controls": {},
    }
    for name in controls:
        if name == "majority":
            if not isinstance(task, LikelihoodTask):
                result["controls"].update(_majority(task, docs))
        else:
            asked = controlled(fewer, name, identity=run.hasher.image, seed=seed)
            result["controls"][name] = _control(run, name, asked, progress)
    result["seconds"] = round(time.monotonic() - started, 3)
    return result


def _control(run: Run, name: str, docs: Sequence[EvalDoc], progress: Progress | None) -> dict[str, Any]:
    if not docs:
        return {"skipped": "no document has a picture that could be changed"}
    return {"prompt": PROMPTS[name], **summarise(run.task, answer(run, name, docs, progress))}


def _chance(docs: Sequence[EvalDoc]) -> float | None:
    """The expected accuracy of guessing among the choices; None where the answer is free."""
    if not all(doc.choices for doc in docs):
        return None
    return sum(1 / len(doc.choices) for doc in docs) / len(docs)


def _majority(task: Task, docs: Sequence[EvalDoc]) -> dict[str, Any]:
    """Answers without a model. Ranking has none: its documents have no answer in common, only a chance level."""
    if any(doc.choices for doc in docs):
        return {}
    prior = priors(task, docs)

    def figures(name: str, reply: Callable[[EvalDoc], str]) -> dict[str, Any]:
        rows = [_row_of(doc, reply(doc), dict(task.score(doc, reply(doc)))) for doc in docs]
        return {"source": prior.source, **summarise(task, rows)}

    return {
        "majority": {"answer": prior.majority, **figures("majority", lambda _: prior.majority)},
        "per_question": figures("per_question", prior.answer),
    }


# --- answers ------------------------------------------------------------------------------------------------------


def answer(run: Run, condition: str, docs: Sequence[EvalDoc], progress: Progress | None = None) -> list[Row]:
    """One row per document, in order: from the store where it is there, else from the model, then stored."""
    found: dict[int, Row] = {}
    waiting: dict[str, list[tuple[int, Row]]] = {}  # prompt -> the documents that ask it
    for index, doc in enumerate(docs):
        row = _unanswered(run, condition, doc)
        stored = run.store.get(row["key"])
        if stored is not None:
            found[index] = stored
        else:
            same = run.hasher.conversation(doc.prompt) if _pure(run.task, doc) else f"{index}"
            waiting.setdefault(same, []).append((index, row))
    if progress:
        progress(run.task.name, condition, len(found), len(docs))
    groups = sorted(waiting.values(), key=lambda group: _neighbourhood(docs, group[0][0]))
    for finished in (_measure_groups if isinstance(run.task, LikelihoodTask) else _answer_groups)(run, docs, groups):
        run.store.append(row for _, row in finished)
        found.update(finished)
        if progress:
            progress(run.task.name, condition, len(found), len(docs))
    return [found[index] for index in range(len(docs))]


def _pure(task: Task | LikelihoodTask, doc: EvalDoc) -> bool:
    return isinstance(task, LikelihoodTask) or bool(doc.choices) or task.generation.temperature == 0


def _neighbourhood(docs: Sequence[EvalDoc], index: int) -> tuple[str, int]:
    return docs[index].cluster, index


def _unanswered(run: Run, condition: str, doc: EvalDoc) -> Row:
    if isinstance(run.task, LikelihoodTask):
        how: dict[str, Any] = {"mode": "likelihood"}
    else:
        how = {"mode": "score"} if doc.choices else {"mode": "generate", **asdict(run.task.generation)}
    row = {
        "weights": run.weights,
        "task": run.task.name,
        "task_version": run.task.version,
        "condition": condition,
        "doc": doc.id,
        "prompt_hash": run.hasher.doc(doc),
        "generation": {**how, **run.setup},
    }
    return {"key": key_of(row), **row}


Group = list[tuple[int, Row]]


def _measure_groups(run: Run, docs: Sequence[EvalDoc], groups: Sequence[Group]) -> Iterator[Group]:
    """Measure one conversation of each group of equal ones; yield the finished rows batch by batch."""
    if run.likelihoods is None:
        raise ConfigError(f"task '{run.task.name}' measures likelihoods, which needs a model and not only an engine")
    for batch in run.likelihoods.measure([docs[group[0][0]].prompt for group in groups]):
        yield [(i, row | eval_likelihood.row_of(docs[i], figures)) for n, figures in batch for i, row in groups[n]]


def _answer_groups(run: Run, docs: Sequence[EvalDoc], groups: Sequence[Group]) -> Iterator[Group]:
    """Ask the engine once per group of equal prompts; yield the finished rows batch by batch."""
    assert not isinstance(run.task, LikelihoodTask)
    ranking = [group for group in groups if docs[group[0][0]].choices]
    free = [group for group in groups if not docs[group[0][0]].choices]
    if ranking and "score" not in run.engine.capabilities:
        raise ConfigError(f"task '{run.task.name}' ranks by likelihood, which this engine cannot score")
    for batch in _batches(free, run.batch_size):
        completions = run.engine.generate([docs[group[0][0]].prompt for group in batch], run.task.generation)
        pairs = zip(batch, completions, strict=True)
        yield [(i, _generated(run.task, docs[i], row, said)) for group, said in pairs for i, row in group]
    for group in ranking:
        yield list(_ranked(run, docs, group))


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _generated(task: Task, doc: EvalDoc, row: Row, said: Completion) -> Row:
    extra = {"finish_reason": said.finish_reason, "tokens": len(said.ids)}
    return row | _row_of(doc, said.text, dict(task.score(doc, said.text))) | extra


def _ranked(run: Run, docs: Sequence[EvalDoc], group: Group) -> Iterator[tuple[int, Row]]:
    names = list(dict.fromkeys(choice for i, _ in group for choice in docs[i].choices))
    prompt = docs[group[0][0]].prompt
    assert not isinstance(run.task, LikelihoodTask)
    scores: dict[str, Score] = {}
    for some in _batches(names, run.batch_size):
        scores.update(zip(some, run.engine.score(prompt, some), strict=True))
    for index, row in group:
        doc = docs[index]
        offered = [scores[choice] for choice in doc.choices]
        try:
            chosen = doc.choices[choose(offered)]
        except ValueError as error:
            raise GhostVisError(f"task '{run.task.name}', document {doc.id}: {error}") from error
        extra = {"choices": list(doc.choices), "nll": [score.mean_nll for score in offered]}
        yield index, row | _row_of(doc, chosen, dict(run.task.score(doc, chosen))) | extra


def _row_of(doc: EvalDoc, output: str, scores: dict[str, float]) -> Row:
    about = {"target": doc.target, "tags": list(doc.tags), "cluster": doc.cluster}
    return {"output": output, "scores": scores, **about}


# --- figures ------------------------------------------------------------------------------------------------------


def summarise(task: Task | LikelihoodTask, rows: Sequence[Row]) -> dict[str, Any]:
    """Overall and per tag: the headline figure with its interval over clusters, and the means of the others."""
    if isinstance(task, LikelihoodTask):
        return eval_likelihood.summarise(rows)

    def estimate(some: Sequence[Row]) -> dict[str, Any]:
        values = [row["scores"][task.metric] for row in some]
        return bootstrap_ci(values, [row["cluster"] or f"row {i}" for i, row in enumerate(some)]).to_json()

    tags = sorted({tag for row in rows for tag in row["tags"]})
    others = {k: v for k, v in mean_scores([row["scores"] for row in rows]).items() if k != task.metric}
    summary = {
        "score": estimate(rows),
        "tags": {tag: estimate([row for row in rows if tag in row["tags"]]) for tag in tags},
        "empty": sum(not row["output"].strip() for row in rows),
    }
    if others:
        summary["figures"] = others
    if all("finish_reason" in row for row in rows):
        summary["truncated"] = sum(row["finish_reason"] == "length" for row in rows)
    if all("prompt_hash" in row for row in rows):
        summary["prompts_hash"] = digest_of([row["prompt_hash"] for row in rows])
    return summary


def _write_json(path: Path, value: Any) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    scratch.replace(path)


__all__ = ["CONTROLS", "MODEL_CONTROLS", "Progress", "Run", "answer", "evaluate", "run_task", "summarise"]
