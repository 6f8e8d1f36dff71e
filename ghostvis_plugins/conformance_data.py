"""Checks of the kinds that are not torch modules: data sets, tasks, trackers, rewards and callables."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from . import protocols
from .conformance import Report, fits
from .errors import GhostVisError, UnavailableError
from .types import Completion, Conversation, Document, Length, Rollout, Split, length_of, user

SAMPLES = 8
"""Samples that are looked at in each split."""


def check_dataset(build: Callable[..., Any], config: Any, report: Report) -> None:
    """Length, samples and their costs agree and are the same every time."""
    refused: list[str] = []
    unreachable: list[str] = []
    built = 0
    for split in get_args(Split):
        try:
            data, again = build(config, split=split), build(config, split=split)
        except UnavailableError as error:
            unreachable.append(error.message)
            continue
        except GhostVisError as error:
            refused.append(f"{split}: {error.message}")
            continue
        except Exception as error:
            report.problems.append(_problem("build", f"split '{split}'", error))
            continue
        built += 1
        if fits(report, data, protocols.Dataset):
            with report.step(f"split-{split}"):
                _check_split(data, again, split, report)
    if unreachable:
        report.skipped.append(f"samples: {unreachable[0]}")
    elif not built:
        report.expect(not refused, "build", f"no split can be built: {'; '.join(refused)}")


def _check_split(data: Any, again: Any, split: str, report: Report) -> None:
    size = len(data)
    if not report.expect(size > 0, "length", f"split '{split}' is empty"):
        return
    report.expect(len(again) == size, "deterministic", f"split '{split}' has another length the second time")
    indices = sorted({round(step * (size - 1) / (SAMPLES - 1)) for step in range(SAMPLES)})
    seen: set[str] = set()
    for index in indices:
        sample = data[index]
        where = f"{split}[{index}]"
        if not report.expect(
            isinstance(sample, Conversation | Document), "sample", f"{where} is {type(sample).__name__}"
        ):
            return
        report.expect(sample == again[index], "deterministic", f"{where} is another sample in a second instance")
        report.expect(
            sample.id and sample.id not in seen, "id", f"{where} has the id {sample.id!r}: empty or used before"
        )
        seen.add(sample.id)
        cost, real = data.length(index), length_of(sample)
        if report.expect(isinstance(cost, Length), "length", f"length({index}) is {type(cost).__name__}, not Length"):
            report.expect(cost == real, "length", f"length({index}) says {cost}, {where} has {real}")
        if isinstance(sample, Conversation):
            _check_conversation(sample, where, report)
    for outside in (size, size + 10):
        try:
            data[outside]
        except IndexError:
            continue
        report.expect(False, "index", f"{split}[{outside}] is past the end and raises no IndexError")


def _check_conversation(sample: Conversation, where: str, report: Report) -> None:
    from PIL import Image

    answers = [message.text for message in sample.messages if message.role == "assistant"]
    report.expect(any(text.strip() for text in answers), "sample", f"{where} has no assistant text to learn from")
    for image in sample.images:
        try:
            Image.open(io.BytesIO(image.read())).load()
        except Exception as error:
            report.problems.append(_problem("image", where, error))


def check_task(build: Callable[..., Any], config: Any, report: Report) -> None:
    """Documents in a fixed order, and a score between 0 and 1 that an empty answer does not earn.

    A task of likelihoods asks nothing: its documents are conversations in which the assistant says something.
    """
    with report.step("task"):
        task = build(config)
        likelihood = isinstance(task, protocols.LikelihoodTask)
        if not likelihood and not fits(report, task, protocols.Task):
            return
        docs = task.docs()
        if not report.expect(len(docs) > 0, "docs", "it has no documents"):
            return
        ids = [doc.id for doc in docs]
        report.expect(len(set(ids)) == len(ids), "docs", "two documents have the same id")
        report.expect([doc.id for doc in build(config).docs()] == ids, "docs", "their order changes")
        for doc in docs[:: max(1, len(docs) // SAMPLES)]:
            if likelihood:
                said = any(message.role == "assistant" and message.text for message in doc.prompt.messages)
                report.expect(said and not doc.choices, "docs", f"in {doc.id} there is nothing to measure")
                continue
            empty, some = task.score(doc, ""), task.score(doc, str(doc.target))
            report.expect(task.metric in empty, "score", f"score has no '{task.metric}'")
            report.expect(empty.get(task.metric) == 0, "score", f"an empty answer to {doc.id} scores {empty}")
            report.expect(all(0 <= value <= 1 for value in some.values()), "score", f"{doc.id} scores {some}")
            if isinstance(doc.target, str) and not doc.choices:
                right = some.get(task.metric) == 1
                report.expect(right, "score", f"the target of {doc.id} itself scores {some}")


def check_tracker(build: Callable[..., Any], config: Any, report: Report) -> None:
    """It takes metrics and ends."""
    with report.step("tracker"), tempfile.TemporaryDirectory() as folder:
        tracker = build(config, run_dir=Path(folder))
        if fits(report, tracker, protocols.Tracker):
            tracker.log(1, {"loss": 1.5, "tokens": 7, "note": "text"})
            tracker.log(2, {"loss": 1.25})
            tracker.finish()


def check_reward(build: Callable[..., Any], config: Any, report: Report) -> None:
    """One result per rollout, in order; an empty batch is fine."""
    with report.step("reward"):
        reward = build(config)
        completion = Completion(text="4", ids=(1,), logprobs=(-0.5,), finish_reason="stop")
        rollouts = [Rollout(prompt=Conversation((user("2 + 2?"),)), completion=completion, group="a")] * 3
        results = reward(rollouts)
        report.expect(len(results) == 3, "reward", f"3 rollouts give {len(results)} results")
        report.expect(list(reward([])) == [], "reward", "no rollout gives a result")


def check_callable(build: Callable[..., Any], config: Any, report: Report) -> None:
    """What is built can be called; a call needs a run or a chat."""
    with report.step("build"):
        report.expect(callable(build(config)), "protocol", "what build returns cannot be called")


def check_engine(build: Callable[..., Any], config: Any, report: Report) -> None:
    """An engine exists around a model only."""
    report.skipped.append("behaviour: an engine is built with a model")


def _problem(check: str, where: str, error: BaseException) -> Any:
    from .conformance import Problem
    from .isolation import one_line

    return Problem(check, f"{where}: {one_line(error)}")
