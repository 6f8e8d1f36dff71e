"""The one training loop. Every stage that learns by next-token prediction runs it.

Each step: plan its samples, pack them into bins, deal the bins to ranks; sum the loss over own bins and divide by
the number of targets of *all* bins; add up gradients over ranks; clip; step. So neither micro-batches, nor packing,
nor ranks change what is learnt, and gradient accumulation is what happens when a step has more than one bin.

There is no hidden random state: generators are seeded from (seed, step, rank) at the start of each step. Samples are
prepared ahead (:mod:`stages.loader`); the state that a checkpoint holds is that of the last step that was learnt.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from components.batch import Batch
from components.flops import StepFlops, peak_flops
from components.vlm import VLM
from ghostvis_plugins.errors import DataError, GhostVisError, UnavailableError

from . import checkpoint
from .config import TrainConfig
from .context import RunContext
from .data import StepPlan, Stream, StreamState, shard_of
from .distributed import autocast
from .ledger import BadSample, Ledger
from .loader import Collator, Loader
from .meter import PHASES, Meter
from .optim import Schedule, clip_gradients, set_modes
from .packing import Cost
from .progress import Progress
from .validation import Validation

MEASURED = frozenset({
    "seconds", "tokens_per_second", "images_per_second", "flops", "flops_per_second", "mfu", "memory_bytes",
    "energy_joules", "time_other", *(f"time_{phase}" for phase in PHASES),
})  # fmt: skip
"""Figures that hang on the machine and on what was cached, not on seed and samples."""


@dataclass
class Loop:
    """A run in progress: its parts, and where it stands."""

    context: RunContext
    config: TrainConfig
    model: VLM
    optimizer: Any
    optimizer_names: list[str]  # of its parameters, in the order of its groups
    stream: Stream
    collator: Collator
    validation: Validation | None
    ledger: Ledger
    trackers: Sequence[Any]
    progress: Progress
    steps: int
    step: int = 0  # finished
    best: dict[str, float] | None = None  # {"step", "val_loss"}
    _saved: int = field(default=-1, init=False)

    def __post_init__(self) -> None:
        self.dist = self.context.dist
        self.schedule = Schedule(self.config, self.steps)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.checkpoints = self.context.run_dir / "checkpoints"
        self._saved = self.step
        self.state: StreamState = self.stream.state.copy()  # of the data behind the last finished step
        encodes = self.collator.cache is None
        self.cost = Cost.of(self.model, encodes=encodes)
        self.flops = StepFlops.measure(self.model)
        self.peak = peak_flops(self.dist.device)
        self.meter = Meter(self.dist.device, main=self.dist.is_main)

    def run(self) -> None:
        """All remaining steps; validates and writes a checkpoint at the end whatever the intervals are."""
        left = self.steps - self.step
        with Loader(self.stream, self.collator, self.config, self.dist, self.cost, left) as loader:
            self._run(loader)

    def _run(self, loader: Loader) -> None:
        while self.step < self.steps:
            row = self._step(loader, self.step + 1)
            self.step += 1
            last = self.step == self.steps
            better = False
            if last or (self.config.eval_every and self.step % self.config.eval_every == 0):
                better = self._validate(row)
            for tracker in self.trackers:
                tracker.log(self.step, row)  # before the checkpoint: a resumed run drops later rows, but invents none
            self.progress.update(self.step, row)
            due = self.config.checkpoint_every and self.step % self.config.checkpoint_every == 0
            if last or due or (better and self.config.export == "best"):  # else nothing would read the better one
                self._save()

    def _step(self, loader: Loader, step: int) -> dict[str, Any]:
        """One optimizer step; returns its row of metrics. Raises GhostVisError when the loss is not a number."""
        began = time.perf_counter()
        seed_generators(step_seed(self.context.seed, step, self.dist.rank), self.dist.device)
        set_modes(self.model)
        with self.meter.phase("data"):
            loaded = loader.next_step()
        plan = loaded.plan
        nll, learnt, flops = self._backward(loaded.batches(), plan.targets)
        own = [learnt, len(loaded.bad), flops / 1e9, self.meter.joules()]
        totals = self.dist.sum_(torch.cat([nll[None], nll.new_tensor(own)]))
        self.dist.sum_gradients(self.parameters)
        loss_sum, targets, failed, gigaflops, joules = totals.tolist()
        if failed or plan.bad:
            self._note([*plan.bad, *loaded.bad], step)
        if targets != plan.targets:  # samples with unreadable pictures fell out after the plan was made
            self._rescale(plan.targets, targets, step)
        loss = loss_sum / targets

        rate = self.schedule.apply(self.optimizer, step)
        with self.meter.phase("optimizer"):
            norm = clip_gradients(self.parameters, self.config.clip).item()
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise self._incident(step, loss, norm, plan)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.state = plan.state
        return {
            "loss": loss,
            "lr": rate,
            "grad_norm": norm,
            "tokens": plan.tokens,
            "target_tokens": int(targets),
            "samples": len(plan.samples),
            "images": plan.images,
            "fill": round(plan.fill, 4),
            "skipped": plan.skipped,
            "cropped": plan.cropped,
            "bad_samples": len(self.ledger.entries),
            "data_hash": plan.data_hash,
            **self._measured(plan, time.perf_counter() - began, 1e9 * gigaflops, joules),
        }

    def _measured(self, plan: StepPlan, seconds: float, flops: float, joules: float) -> dict[str, Any]:
        """The figures in :data:`MEASURED`; ``mfu`` is the share of the devices' peak, ``memory_bytes`` this rank's."""
        phases = self.meter.take()
        row = {
            "seconds": round(seconds, 5),
            "tokens_per_second": round(plan.tokens / seconds, 1),
            "images_per_second": round(plan.images / seconds, 2),
            "flops": round(flops),
            "flops_per_second": round(flops / seconds),
            **{f"time_{name}": round(value, 5) for name, value in phases.items()},
            "time_other": round(max(0.0, seconds - sum(phases.values())), 5),
        }
        if self.peak is not None:
            row["mfu"] = round(flops / seconds / (self.peak * self.dist.world), 4)
        if (memory := self.meter.memory()) is not None:
            row["memory_bytes"] = memory
        if joules:
            row["energy_joules"] = round(joules, 2)
        return row

    def _backward(self, batches: Iterator[Batch], targets: int) -> tuple[torch.Tensor, int, float]:
        """Gradients of the own share of the step's mean loss; loss, targets and operations, summed over own bins."""
        total, learnt, flops = torch.zeros((), device=self.dist.device), 0, 0.0
        while True:
            before = self._encoded()
            with self.meter.phase("data"):
                batch = next(batches, None)
            if batch is None:
                return total, learnt, flops
            learnt += batch.target_rows.numel()
            flops += self.flops(batch, len(batch.images) if batch.features is None else self._encoded() - before)
            with self.meter.phase("forward"), self._autocast():
                nll, _ = self.model.loss(batch.to(self.dist.device))
            if nll.requires_grad:  # not so when only the vision path trains and no sample of the bin has a picture
                with self.meter.phase("backward"):
                    (nll / targets).backward()
            total += nll.detach()

    def _encoded(self) -> int:
        """Pictures that the encoder has seen for the sake of the feature cache."""
        return 0 if self.collator.cache is None else self.collator.cache.encoded

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.context.values.get("dtype", "auto"), self.dist.device)

    def _rescale(self, planned: int, actual: float, step: int) -> None:
        if actual == 0:
            raise DataError(f"step {step}: none of its samples could be used; see bad_samples.jsonl")
        for parameter in self.parameters:
            assert parameter.grad is not None
            parameter.grad.mul_(planned / actual)

    def _note(self, bad: list[BadSample], step: int) -> None:
        located = [
            replace(entry, shard=entry.shard or shard_of(self.stream.datasets[entry.source], entry.index))
            for entry in bad
        ]
        self.ledger.add({entry for entries in self.dist.gather(located) for entry in entries}, step)

    def _incident(self, step: int, loss: float, norm: float, plan: StepPlan) -> GhostVisError:
        names = [drawn.rendered.id for drawn in plan.samples]
        path = self.context.run_dir / "incident.json"
        if self.dist.is_main:
            path.write_text(json.dumps({"step": step, "loss": str(loss), "grad_norm": str(norm), "samples": names}))
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        return GhostVisError(
            f"step {step}: loss {loss}, gradient norm {norm}; its {len(names)} samples: {shown}",
            hint=f"all of them are in {path}; lower stage.train, or look at these samples",
        )

    def _validate(self, row: dict[str, Any]) -> bool:
        """Add validation figures to ``row``; True when they are the best so far."""
        if self.validation is None:
            return False
        metrics, bad = self.validation(self.model, self.collator, self._autocast)
        found = self.dist.gather(bad)
        if any(found):
            self.ledger.add({entry for entries in found for entry in entries}, self.step)
        row |= metrics
        if self.best is not None and metrics["val_loss"] >= self.best["val_loss"]:
            return False
        self.best = {"step": self.step, "val_loss": metrics["val_loss"]}
        return True

    def _save(self) -> None:
        if self.step == self._saved:
            return
        state = {
            "stream": self.state.to_json(),
            "best": self.best,
            "identity": identity(self.context, self.config),
        }
        if self.dist.is_main:
            try:
                checkpoint.write(self.checkpoints, self.step, self.model, self.optimizer, self.optimizer_names, state)
            except OSError as error:
                raise UnavailableError(
                    f"cannot write a checkpoint to {self.checkpoints}: {error.strerror or error}",
                    hint="free some space; --resume goes on from the last checkpoint",
                ) from error
            checkpoint.prune(
                self.checkpoints, self.config.keep_checkpoints, [int(self.best["step"])] if self.best else []
            )
        self.dist.barrier()
        self._saved = self.step


def step_seed(seed: int, step: int, rank: int) -> int:
    """The generators' seed of one step on one rank."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:7], "little")


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the CPU's generator and that of ``device``.

    ``torch.manual_seed`` seeds every kind of device. One that has not been used keeps each call for later, with a
    stack trace: 1.5 ms a step, and memory that grows.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def identity(context: RunContext, config: TrainConfig) -> dict[str, Any]:
    """What must not change when a run is resumed: it decides which samples come next."""
    return {
        "stage": (context.values.get("stage") or {}).get("name"),
        "seed": context.seed,
        "dataset": context.values.get("dataset"),
        "batch_tokens": config.batch_tokens,
        "pack_tokens": config.row_tokens,
    }
