"""The one training loop. Every stage that learns by next-token prediction runs it.

Each step: plan its samples, pack them into bins, deal the bins to ranks; sum the loss over own bins and divide by
the number of targets of *all* bins; add up gradients over ranks; clip; step. So neither micro-batches, nor packing,
nor ranks change what is learnt, and gradient accumulation is what happens when a step has more than one bin.

There is no hidden random state: generators are seeded from (seed, step, rank) at the start of each step. Samples are
prepared ahead (:mod:`stages.loader`); the state that a checkpoint holds is that of the last step that was learnt.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from components.batch import Batch
from components.compiled import compiled, decide
from components.flops import StepFlops, peak_flops
from components.vlm import VLM
from ghostvis_plugins.errors import DataError, GhostVisError, RequeueError

from .config import TrainConfig
from .context import RunContext
from .data import StepPlan, Stream, StreamState, shard_of
from .determinism import deterministic, seed_generators, step_seed
from .distributed import Upload, autocast, to_device, to_host
from .journal import DISK_FULL, Journal
from .ledger import BadSample, Ledger
from .loader import Collator, Loader, Step
from .meter import PHASES, Meter
from .optim import Schedule, clip_factor, set_modes
from .packing import Cost
from .parallel import Alone
from .progress import Progress
from .saving import Saver, Spared
from .stopping import Stopping
from .validation import Validation
from .watchdog import Watchdog

INCIDENTS = "incidents.jsonl"

MEASURED = frozenset({
    "seconds", "tokens_per_second", "images_per_second", "flops", "flops_per_second", "mfu", "memory_bytes",
    "energy_joules", "time_other", "time_checkpoint", *(f"time_{phase}" for phase in PHASES),
})  # fmt: skip
"""Figures that hang on the machine and on what was cached, not on seed and samples."""


@dataclass
class Begun:
    """A step, and its batches behind the ``first``, which may be on the device already, with its pictures encoded."""

    step: Step
    batches: Iterator[Batch]
    first: Batch | None = None
    encoded: int = 0


@dataclass
class Loop:
    """A run in progress: its parts, and where it stands."""

    context: RunContext
    config: TrainConfig
    model: VLM
    parallel: Alone  # or however else its ranks share the model
    flops: StepFlops | None
    stream: Stream
    collator: Collator
    validation: Validation | None
    ledger: Ledger
    trackers: Sequence[Any]
    progress: Progress
    steps: int
    stopping: Stopping = field(default_factory=Stopping)
    step: int = 0  # finished
    best: dict[str, float] | None = None  # {"step", "val_loss"}
    skipped_steps: int = 0  # with a loss or gradient that was not finite
    skipped_in_a_row: int = 0
    rollbacks: list[dict[str, int]] = field(default_factory=list)  # {"first", "last"} bad step, "to" which checkpoint

    def __post_init__(self) -> None:
        self.dist = self.context.dist
        self.schedule = Schedule(self.config, self.steps)
        self.checkpoints = self.context.run_dir / "checkpoints"
        self._best_before = self.best
        self._stop = False  # some rank was asked to stop before the end of the last finished step
        self._failed = False  # some rank's thread cannot write the checkpoint
        chosen = self.config.checkpoint_async
        self.saver = Saver(
            self.checkpoints,
            self.dist,
            self._alarm,
            keep=self.config.keep_checkpoints,
            every=self.config.keep_every,
            done=self.step,
            asynchronous=self.dist.device.type == "cuda" if chosen == "auto" else chosen,
        )
        self.state: StreamState = self.stream.state.copy()  # of the data behind the last finished step
        encodes = self.collator.cache is None
        self.cost = Cost.of(self.model, encodes=encodes)
        self.encodes_ahead = encodes and self.model.encoder is not None and self.model.encoder_frozen
        self._begun: Begun | GhostVisError | None = None
        self.peak = peak_flops(self.dist.device)
        self.upload = Upload(self.dist.device)
        self.meter = Meter(self.dist.device, main=self.dist.is_main)
        self.incidents = Journal(self.context.run_dir / INCIDENTS if self.dist.is_main else None, self._alarm)

    def run(self) -> None:
        """All remaining steps; validates and writes a checkpoint at the end whatever the intervals are.

        Raises RequeueError after the step in which any rank was asked to stop, with a checkpoint of that step.
        """
        left = self.steps - self.step
        compiles = decide(self.config.compile, self.dist.device.type)
        with (
            Watchdog(self.config.stall_seconds, self.context.run_dir, self.dist.rank) as watchdog,
            self.saver,
            Loader(self.stream, self.collator, self.config, self.dist, self.cost, left) as loader,
            compiled(self.model, enabled=compiles),
            deterministic(enabled=self.config.deterministic),
        ):
            self._run(loader, watchdog)

    def _run(self, loader: Loader, watchdog: Watchdog) -> None:
        set_modes(self.model)
        self._begun = None
        while self.step < self.steps:
            row = self._step(loader, self.step + 1)
            watchdog.beat()
            self.step += 1
            last = self.step == self.steps
            better = False
            if last or (self.config.eval_every and self.step % self.config.eval_every == 0):
                self._settle()  # what could not be saved is not the best so far
                watchdog.beat()
                better = self._validate(row)
                set_modes(self.model)
                watchdog.beat()
            self._log(row)  # before the checkpoint: a resumed run drops later rows, but invents none
            self.progress.update(self.step, row)
            due = self.config.checkpoint_every and self.step % self.config.checkpoint_every == 0
            stop = self._stop and not last  # a complete run has nothing to be continued
            read = better and self.config.export == "best"  # otherwise nothing would read the better one
            saves = last or stop or due or read
            if saves or self._failed:
                self._settle()
                watchdog.beat()
            if saves:
                self._save(must=last or stop)
                watchdog.beat()
            if stop:
                raise RequeueError(
                    f"stopped by a signal after step {self.step} of {self.steps}; its checkpoint is saved",
                    hint="the same command with --resume goes on",
                )

    def _step(self, loader: Loader, step: int) -> dict[str, Any]:
        """One optimizer step; returns its row of metrics. Raises GhostVisError when too many in a row were left out and
        there is nothing to go back to."""
        began = time.perf_counter()
        if isinstance(self._begun, GhostVisError):
            raise self._begun
        begun, self._begun = self._begun or self._begin(loader), None
        seed_generators(step_seed(self.context.seed, step, self.dist.rank), self.dist.device)
        loaded, plan = begun.step, begun.step.plan
        nll, learnt, flops = self._backward(begun)
        self.parallel.sum_gradients()
        asked = [self.stopping.requested, self.saver.failed]
        own = [learnt, len(loaded.bad), flops / 1e9, self.meter.joules(), *asked]
        totals = self.dist.sum_(torch.cat([nll[None], to_device(own, nll.device)]))
        found = to_host(torch.cat([totals, self.parallel.norm().to(totals)[None]]))
        if self.encodes_ahead and step < self.steps:  # work for the device while the host reads, and steps
            try:
                self._begun = self._begin(loader)
            except GhostVisError as error:  # of the next step: this one is learnt, and saved if it is due
                self._begun = error
        # the one time in a step that it is waited for
        loss_sum, targets, unusable, gigaflops, joules, stops, failures, norm = found()
        self._stop, self._failed = stops > 0, failures > 0
        if unusable or plan.bad:
            self._note([*plan.bad, *loaded.bad], step)
        if targets == 0:
            raise DataError(f"step {step}: none of its samples could be used; see bad_samples.jsonl")
        # Samples with unreadable pictures fell out after the plan was made, and after gradients were divided.
        correction = plan.targets / targets
        loss, norm = loss_sum / targets, norm * correction

        rate = self.schedule.apply(self.parallel, step)
        with self.meter.phase("optimizer"):
            if math.isfinite(loss) and math.isfinite(norm):  # both are sums over ranks: all decide alike
                factor = correction * clip_factor(norm, self.config.clip)
                if factor != 1:
                    self.parallel.scale(factor)
                self.parallel.step()
                self.skipped_in_a_row = 0
            else:
                self._skip(step, loss, norm, plan)
            self.parallel.zero_grad()
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
            "skipped_steps": self.skipped_steps,
            "rollbacks": len(self.rollbacks),
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
        if self.flops is None:
            del row["flops"], row["flops_per_second"]
        elif self.peak is not None:
            row["mfu"] = round(flops / seconds / (self.peak * self.dist.world), 4)
        if (memory := self.meter.memory()) is not None:
            row["memory_bytes"] = memory
        if joules:
            row["energy_joules"] = round(joules, 2)
        if stood_still := self.saver.seconds():
            row["time_checkpoint"] = round(stood_still, 5)
        return row

    def _begin(self, loader: Loader) -> Begun:
        """The next step. Where its pictures hang on nothing that is learnt, those of its first batch are encoded."""
        with self.meter.phase("data"):
            step = loader.next_step()
            begun = Begun(step, step.batches())
            if not self.encodes_ahead:
                return begun
            begun.first = next(begun.batches, None)
        if begun.first is not None and begun.first.pixels is not None:
            begun.encoded = len(begun.first.images)
            with self.meter.phase("forward"), self._autocast():
                begun.first = first = self.upload(begun.first)
                assert first.pixels is not None
                first.features, first.pixels = self.model.encode(first.pixels), None
        return begun

    def _backward(self, begun: Begun) -> tuple[torch.Tensor, int, float]:
        """Gradients of the own share of the step's mean loss; loss, targets and operations, summed over own bins."""
        loaded, targets = begun.step, begun.step.plan.targets
        total, learnt, flops = torch.zeros((), device=self.dist.device), 0, 0.0
        batch, encoded, done = begun.first, begun.encoded, 0
        while True:
            if batch is None:
                before = self._encoded()
                with self.meter.phase("data"):
                    batch = next(begun.batches, None)
                if batch is None:
                    with self._autocast():
                        self.parallel.keep_up(loaded.most - done)
                    return total, learnt, flops
                encoded = len(batch.images) if batch.features is None else self._encoded() - before
            done += 1
            learnt += batch.target_rows.numel()
            if self.flops is not None:
                flops += self.flops(batch, encoded)
            with self.meter.phase("forward"), self._autocast():
                nll = self.parallel.loss(self.upload(batch))
            if nll.requires_grad:  # not so when only the vision path trains and no sample of the bin has a picture
                with self.meter.phase("backward"):
                    self.parallel.backward(nll / targets, last=not loaded.left)
            total += nll.detach()
            batch = None

    def _encoded(self) -> int:
        """Pictures that the encoder has seen for the sake of the feature cache."""
        return 0 if self.collator.cache is None else self.collator.cache.encoded

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.context.values.get("dtype", "auto"), self.dist.device)

    def _note(self, bad: list[BadSample], step: int) -> None:
        located = [
            replace(entry, shard=entry.shard or shard_of(self.stream.datasets[entry.source], entry.index))
            for entry in bad
        ]
        self.ledger.add({entry for entries in self.dist.gather(located) for entry in entries}, step)

    def _skip(self, step: int, loss: float, norm: float, plan: StepPlan) -> None:
        """Leave the weights as they are, and write down why; go back to a checkpoint when the budget is used up."""
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        names = [drawn.rendered.id for drawn in plan.samples]
        self.incidents.add({"step": step, "loss": str(loss), "grad_norm": str(norm), "samples": names})
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        said = f"step {step}: loss {loss}, gradient norm {norm}; its {len(names)} samples: {shown}"
        if self.skipped_in_a_row > self.config.max_skipped_steps:
            self._roll_back(step, said)
        else:
            self._alarm(f"{said}; the step is left out")

    def _roll_back(self, step: int, said: str) -> None:
        """Take weights and optimizer from the newest checkpoint before the bad steps; the data goes on behind them.

        What was learnt since that checkpoint is lost. The order of the data and the schedule are those of a run without
        an incident. To go back and pass over the batches is what PaLM's training did (Chowdhery et al. 2022, §5.1).
        Raises GhostVisError when there is no such checkpoint, or none that was written since the run last went back.
        """
        self._settle()
        first = step - self.skipped_in_a_row + 1
        searches = self.dist.is_main and self.parallel.whole
        found = self.dist.gather(self.saver.before(first) if searches else None)[0]
        earlier = self.rollbacks[-1] if self.rollbacks else None
        if found is None or (earlier and found.step <= earlier["last"]):
            said += f"\n{self.skipped_in_a_row} such steps in a row, and {self.config.max_skipped_steps} are allowed"
            if earlier:
                said += (
                    f"\nbad are steps {first} to {step}; after steps {earlier['first']} to {earlier['last']} the run "
                    f"went back to checkpoint {earlier['to']}, and nothing was saved since"
                )
            advice = "lower stage.train, or look at these samples"
            if not self.parallel.whole:
                advice += "; --resume goes on from the last checkpoint"
            elif not found:
                advice += "; with stage.checkpoint_every a run goes back to a checkpoint by itself, once"
            raise GhostVisError(said, hint=f"all of their samples are in {self.context.run_dir / INCIDENTS}; {advice}")
        found.load_model(self.model)
        found.load_optimizer(self.parallel.optimizer, self.parallel.names)
        self.skipped_in_a_row = 0
        self.rollbacks.append({"first": first, "last": step, "to": found.step})
        self.incidents.add({"step": step, "rolled_back_to": found.step, "bad_steps": [first, step]})
        self._alarm(f"{said}\nsteps {first} to {step} are left out: WENT BACK to the weights of step {found.step}")

    def _log(self, row: Mapping[str, Any]) -> None:
        for tracker in self.trackers:
            try:
                tracker.log(self.step, row)
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise
                self._alarm(f"step {self.step}: its metrics cannot be written now, the disk is full")

    def _alarm(self, text: str) -> None:
        if self.dist.is_main:
            self.progress.say(f"ghostvis: warning: {text}")

    def _validate(self, row: dict[str, Any]) -> bool:
        """Add validation figures to ``row``; True when they are the best so far."""
        if self.validation is None:
            return False
        metrics, bad = self.validation(self.parallel, self.collator, self._autocast)
        found = self.dist.gather(bad)
        if any(found):
            self.ledger.add({entry for entries in found for entry in entries}, self.step)
        row |= metrics
        if self.best is not None and metrics["val_loss"] >= self.best["val_loss"]:
            return False
        self._best_before = self.best
        self.best = {"step": self.step, "val_loss": metrics["val_loss"]}
        return True

    def _save(self, *, must: bool) -> None:
        """Take a checkpoint, and see it written if that is a ``must``. Raises UnavailableError when it cannot be, but a
        full disk keeps one out that is not a ``must``, and the run goes on."""
        self.ledger.journal.flush()
        self.incidents.flush()
        state = {
            "stream": self.state.to_json(),
            "best": self.best,
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
            "rollbacks": self.rollbacks,
            "identity": identity(self.context, self.config, self.stream.datasets),
        }
        best, before = (int(best["step"]) if best else None for best in (self.best, self._best_before))
        good = self.step - self.skipped_in_a_row if self.skipped_in_a_row else None
        self.saver.save(self.step, self.parallel, state, must=must, spared=Spared(best, before, good))
        if must or not self.saver.asynchronous:
            self._settle()

    def _settle(self) -> None:
        """Wait until no checkpoint is being written, and act on what became of it."""
        lost = self.saver.settle()
        if self.best and self.best["step"] == lost:
            self.best = self._best_before  # the best of those that can be exported


def identity(context: RunContext, config: TrainConfig, datasets: Mapping[str, Any]) -> dict[str, Any]:
    """What must not change when a run is resumed: it decides which samples come next."""
    return {
        "stage": (context.values.get("stage") or {}).get("name"),
        "seed": context.seed,
        "dataset": context.values.get("dataset"),
        "samples": {name: len(dataset) for name, dataset in datasets.items()},  # the order is one of their numbers
        "too_long": config.too_long,
        "word_dropout": config.word_dropout,
        "batch_tokens": config.batch_tokens,
        "pack_tokens": config.row_tokens,
    }
