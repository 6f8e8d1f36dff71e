"""Our side: the runner of every training stage, on steps whose batches lie ready.

Everything between two steps is real: plans and bins, transfer, autocast, loss on targets only, clipping, schedule,
optimizer plugin, metrics and their file. Left out are reading, rendering, validation and checkpoints.
"""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from pydantic import BaseModel
from torch import nn

import components.builtin
import stages.builtin
import stages.loop
from components.batch import Batch
from components.compiled import compiled, decide
from components.compose import build_model, components_of
from components.tokenizers import Tokenizer
from ghostvis_plugins import dataset
from ghostvis_plugins.manager import Registry
from ghostvis_plugins.types import Document, SampleList
from stages.context import RunContext
from stages.data import Drawn, StepPlan
from stages.distributed import Distributed
from stages.loader import own_bins
from stages.optim import apply_table, set_modes
from stages.packing import pack
from stages.start import PARTS, Start
from stages.stopping import Stopping
from stages.train import _prepare
from stages.workers import Workers

from .measuring import drop, now
from .ready import BlockEnd, Step
from .work import Work

STAGE: dict[str, Any] = {
    "steps": 10**9,
    "eval_samples": 0,
    "workers": 0,
    "schedule": "constant",
    "warmup": 0,
    "stall_seconds": 0,
    "log_seconds": 10.0**9,
}
"""Options of every stage here; what is measured should be what a run has, so only ends and edges are switched off."""


class Unread(BaseModel):
    """The data set that a run has to have; no sample of it is drawn."""


def build_unread(config: Unread, *, split: str) -> SampleList:
    return SampleList([Document("unread", f"unread/{split}")])


class Ready:
    """Stands where the loader does."""

    def __init__(self, steps: list[Step]) -> None:
        self.steps, self.at = steps, 0

    def __enter__(self) -> Ready:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def next_step(self) -> Step:
        self.at += 1
        step = self.steps[self.at % len(self.steps)]
        return Step(step.plan, step.kept)


class Rows:
    """A tracker that keeps the rows of metrics, takes the time of each, and ends a block of steps."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.left = device, 0
        self.rows: list[Mapping[str, Any]] = []
        self.times: list[float] = []

    def start(self, count: int) -> None:
        self.left, self.times = count, [now(self.device)]

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """A step waits for the device on its own, so nothing waits here.

        From the end of one step's loss to that of the next is a whole step, if in another order: with the update of
        the one before, and pictures of the one behind.
        """
        self.rows.append(dict(metrics))
        self.left -= 1
        self.times.append(time.perf_counter())
        if not self.left:
            raise BlockEnd

    def finish(self) -> None:
        pass


class Ours:
    """A run of ``values`` over ``work``. ``vocab_size`` as a tokenizer's would be."""

    def __init__(
        self, values: Mapping[str, Any], work: Work, vocab_size: int, ranks: Distributed, folder: Path
    ) -> None:
        self.work, self.losses, device = work, [], ranks.device
        values = copy.deepcopy(dict(values))
        stage = values["stage"] = {**STAGE, **values["stage"], "batch_tokens": max(1, round(work.tokens()))}
        longest = max(16, *work.lengths())
        stage.setdefault("micro_tokens", longest)
        values.setdefault("optimizer", {"name": "adamw"})
        values.update({"seed": 0, "from": None, "dataset": {"unread": {}}})
        specs = [spec for hook in (components.builtin, stages.builtin) for spec in hook.ghostvis_components()]
        registry = Registry.from_specs([*specs, dataset("unread", config=Unread, build=build_unread)])
        config = registry.make_config("stage", stage["name"], stage)
        chosen = {part: values.get(part) for part in PARTS}
        torch.manual_seed(0)
        with torch.device(device):
            model = build_model(chosen, registry, vocab_size)
        self.context = RunContext(values, registry, folder, ranks)
        start = Start(model, Tokenizer.train(["unread"], 300), components_of(model, chosen, registry))
        apply_table(model, config.train)
        model.to(device)
        set_modes(model)
        self.loop = _prepare(self.context, config, start, None, Workers(0), Stopping())
        self.rows = Rows(device)
        self.loop.trackers = [*self.loop.trackers, self.rows]
        self.device, self.micro = device, 0
        self.ready = Ready([])

    def prepare(self, micro: int) -> None:
        self.micro = micro
        self.loop.config = self.loop.config.model_copy(update={"micro_tokens": micro})
        self.ready = Ready([self._step(samples) for samples in self.work.steps])

    def _step(self, samples: list[Any]) -> Step:
        plan, work = StepPlan(), self.work
        for number, sample in enumerate(samples):
            rendered = sample.render(f"random/{number}", work.tokens_per_image, work.marker)
            plan.add(Drawn("unread", rendered, index=number))
        plan.rows = pack(plan.lengths, self.micro)
        plan.room = self.micro * len(plan.rows)
        plan.state = self.loop.stream.state
        batches = []
        for members in own_bins(plan, self.loop.config, self.loop.dist, self.loop.cost)[0]:
            batch = Batch.pack([drawn.rendered for drawn in members])
            batch.pixels = work.pixels([samples[drawn.index] for drawn in members])
            batches.append(batch.pin() if self.device.type == "cuda" else batch)
        return Step(plan, batches)

    def run(self, count: int) -> list[float]:
        self.rows.start(count)
        with mock.patch.object(stages.loop, "Loader", return_value=self.ready), contextlib.suppress(BlockEnd):
            self.loop.run()
        now(self.device)  # what was begun ends here, and not in the other side's time
        times = self.rows.times
        rows = self.rows.rows[-count:]
        if len(times) != count + 1 or self.loop.skipped_steps:
            raise RuntimeError(f"{len(times) - 1} of {count} steps ended, {self.loop.skipped_steps} were left out")
        self.losses += [row["loss"] for row in rows]
        return [after - before for before, after in pairwise(times)]

    def model(self) -> nn.Module | None:
        return self.loop.model

    def forget(self) -> None:
        drop(self.loop.model, self.loop.parallel.optimizer)

    def flops(self, count: int) -> float | None:
        """Useful operations of a step, the median of the last ``count``; None where they are not counted."""
        found = [row["flops"] for row in self.rows.rows[-count:] if "flops" in row]
        return statistics.median(found) if found else None

    def facts(self) -> Mapping[str, Any]:
        phases = ("time_data", "time_forward", "time_backward", "time_optimizer", "time_other")
        rows = self.rows.rows[-4:]
        split = {key: statistics.median(row[key] for row in rows) for key in phases}
        return {"micro_tokens": self.micro, "batches": len(self.ready.steps[0].kept), **split}


class OurEncoder:
    """The frozen encoder of a run, called as the loss calls it; a step is ``calls`` batches of ``work``'s pictures."""

    def __init__(self, run: Ours, batch: int, calls: int) -> None:
        self.run_, self.calls, self.losses = run, calls, []
        pictures = run.work.pictures
        assert pictures is not None
        self.pixels = pictures[torch.arange(batch) % len(pictures)].to(run.device)

    def prepare(self, micro: int) -> None:
        pass

    def run(self, count: int) -> list[float]:
        loop, seconds = self.run_.loop, []
        loop.model.train()
        with compiled(loop.model, enabled=decide(loop.config.compile, self.run_.device.type)), loop._autocast():
            for _ in range(count):
                began = now(self.run_.device)
                for _ in range(self.calls):
                    features = loop.model.encode(self.pixels)
                seconds.append(now(self.run_.device) - began)
                self.losses.append(float(features.float().mean()))
        return seconds

    def model(self) -> nn.Module | None:
        return None

    def forget(self) -> None:
        pass

    def flops(self, count: int) -> float | None:
        found = self.run_.loop.flops
        return None if found is None else found.encoder * len(self.pixels) * self.calls

    def facts(self) -> Mapping[str, Any]:
        return {"batch": len(self.pixels)}
