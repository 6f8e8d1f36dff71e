"""A supervised training run from start to end: what `pretrain`, `mid`, `align` and `sft` share.

Open the starting point, freeze by the table, build the data, train, prove that frozen parts did not move, export.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components import lora
from components.compiled import decide
from components.flops import StepFlops
from components.images import decode
from components.samples import UNUSABLE, check_learnable
from components.trackers.jsonl import JsonlTracker, rewind
from components.vlm import VLM
from components.weights import save_model
from ghostvis_plugins.errors import ConfigError, GhostVisError, UnavailableError
from ghostvis_plugins.types import Conversation

from . import checkpoint
from .checkpoint import Checkpoint
from .config import TrainConfig
from .context import RunContext
from .data import Stream, StreamState
from .features import FeatureCache
from .journal import DISK_FULL
from .ledger import BadSample, Ledger, by_index
from .loader import Collator
from .loop import Loop, identity
from .optim import Row, apply_table, check_recomputes, check_types, format_table, frozen_hash, set_modes
from .order import Order
from .packing import Cost
from .parallel import shards_weights, share_model
from .progress import Progress
from .report import find_engine, write_report
from .rundir import claim, resolved_of, set_latest
from .shares import Share, format_shares, realised
from .start import Start, open_start
from .stopping import Stopping
from .validation import Validation
from .workers import Workers

VALIDATION_SEED = 0  # of every run, so that runs are compared on the same samples
PROBE_SAMPLES = 512


def train(context: RunContext, config: TrainConfig, *, vision: bool) -> Path:
    """Run a supervised stage; returns the model directory.

    Raises GhostVisError for everything that a person can do wrong, and when a frozen tensor changed; RequeueError when
    a signal asked it to stop.
    """
    with Stopping() as stopping:
        return _train(context, config, vision, stopping)


def _train(context: RunContext, config: TrainConfig, vision: bool, stopping: Stopping) -> Path:
    dist = context.dist
    decide(config.compile, dist.device.type, _warn if dist.is_main else None)  # before there is a folder
    if dist.is_main:
        claim(context.run_dir, context.resume)
    start = open_start(context, vision=vision)
    rows = apply_table(start.model, config.train, config.lora)
    if dist.is_main:
        print(format_table(rows), file=sys.stderr, flush=True)
    sharded = shards_weights(start.model, config, dist)
    if not sharded:
        start.model.to(dist.device)
    set_modes(start.model)
    frozen = frozen_hash(start.model)

    resumed = _find_checkpoint(context)
    with contextlib.closing(Workers(config.workers)) as workers:
        loop = _prepare(context, config, start, resumed, workers, stopping)
        try:
            loop.run()
        finally:
            loop.progress.close()
            _finish(loop.trackers)
    shares = realised(loop.stream, loop.state)
    if dist.is_main:
        print(format_shares(shares), file=sys.stderr, flush=True)
    best = loop.best if config.export == "best" else None
    step = int(best["step"]) if best else loop.step
    if sharded and dist.is_main:  # no rank has all of the trained model, but the checkpoint does
        start = open_start(context, vision=vision)
        apply_table(start.model, config.train, config.lora)
    moved = False
    if not sharded or dist.is_main:
        if sharded or step != loop.step:
            checkpoint.at_step(loop.checkpoints, step).load_model(start.model)
        set_modes(start.model)
        moved = frozen_hash(start.model) != frozen
    if any(dist.gather(moved)):
        raise GhostVisError("a frozen tensor changed during training; nothing is exported", hint="this is a defect")
    if dist.is_main:
        try:
            _export(context, config, start, rows, loop, shares)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise UnavailableError(
                f"the run is trained, but its model or report cannot be written to {context.run_dir}: {error.strerror}",
                hint="free some space; --resume then writes them without training again",
            ) from error
    dist.barrier()
    return context.run_dir / "model"


def _find_checkpoint(context: RunContext) -> Checkpoint | None:
    """The checkpoint to resume from: verified by the main rank, the same for all."""
    if not context.resume:
        return None
    found = None
    root = context.run_dir / "checkpoints"
    if context.dist.is_main:
        found = checkpoint.latest(root, _warn)
        if found is None:
            _warn(f"{root} holds no usable checkpoint; the run starts from its beginning")
    return context.dist.gather(found)[0]  # type: ignore[no-any-return]


def _warn(text: str) -> None:
    print(f"ghostvis: warning: {text}", file=sys.stderr, flush=True)


def _prepare(
    context: RunContext,
    config: TrainConfig,
    start: Start,
    resumed: Checkpoint | None,
    workers: Workers,
    stopping: Stopping,
) -> Loop:
    """Data, optimizer, trackers and the loop over them, as new or as the checkpoint left them."""
    dist, model = context.dist, start.model
    state = resumed.state() if resumed else {}
    limit = min(config.micro_tokens, model.backbone.max_positions)
    datasets = _training_data(context)
    if resumed:
        sets = {name: dataset for name, (dataset, _) in datasets.items()}
        _check_identity(state["identity"], identity(context, config, sets), resumed)
    ledger = Ledger(
        context.run_dir / "bad_samples.jsonl" if dist.is_main else None,
        config.max_bad_fraction,
        sum(len(dataset) for dataset, _ in datasets.values()),
    )
    if resumed:
        ledger.load(resumed.step)
    known: list[BadSample] = dist.gather(list(ledger.known.values()))[0]
    stream = Stream(
        datasets,
        start.tokenizer,
        model.tokens_per_image,
        seed=context.seed,
        limit=limit,
        too_long=config.too_long,
        word_dropout=config.word_dropout,
        state=StreamState.from_json(state["stream"]) if resumed else None,
        known_bad=by_index(bad for bad in known if not bad.picture),
        workers=workers,
    )
    if resumed:
        resumed.load_model(model)
    flops = _operations(context, model)
    chosen = context.table("optimizer", "adamw")
    parallel = share_model(
        model,
        dist,
        config,
        lambda groups: context.build("optimizer", chosen, groups=groups),
        context.values.get("dtype", "auto"),
    )
    check_types(model, parallel.optimizer, chosen["name"])
    check_recomputes(model, config.activation_checkpointing)
    if config.activation_checkpointing:
        model.backbone.activation_checkpointing = True
    if resumed:
        resumed.load_optimizer(parallel.optimizer, parallel.names)
    done = resumed.step if resumed else 0
    if dist.is_main:
        rewind(context.run_dir, done)
    steps = config.steps or _steps_of_epochs(context, config, start, limit, workers)
    validation = _validation(context, config, start, limit, workers)
    collator = Collator(
        model.encoder,
        _feature_cache(context, config, start),
        workers=workers,
        known_bad=by_index(bad for bad in known if bad.picture),
        device=dist.device,
    )
    return Loop(
        context=context,
        config=config,
        model=model,
        parallel=parallel,
        flops=flops,
        stream=stream,
        collator=collator,
        validation=validation,
        ledger=ledger,
        trackers=_trackers(context),
        progress=Progress(context.values["stage"]["name"], done, steps, talks=dist.is_main, every=config.log_seconds),
        steps=steps,
        stopping=stopping,
        step=done,
        best=state.get("best"),
        skipped_steps=state.get("skipped_steps", 0),
        skipped_in_a_row=state.get("skipped_in_a_row", 0),
        rollbacks=state.get("rollbacks", []),
    )


def _operations(context: RunContext, model: VLM) -> StepFlops | None:
    """The cost of a batch; None where a part cannot run on the meta device, which no protocol asks of one."""
    try:
        return StepFlops.measure(model)
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        if context.dist.is_main:
            reason = str(error).splitlines()[0]
            _warn(f"operations are not counted: the model does not run on torch's meta device: {reason}")
        return None


def _check_identity(saved: dict[str, Any], own: dict[str, Any], resumed: Checkpoint) -> None:
    for key, value in own.items():
        if saved.get(key) != value:
            raise ConfigError(
                f"cannot resume {resumed.folder}: {key} was {saved.get(key)!r}, and now is {value!r}",
                hint="resume with the run's own settings, or start a new run with --name",
            )


def _training_data(context: RunContext) -> dict[str, tuple[Any, float]]:
    datasets = context.datasets("train")
    if not datasets:
        raise ConfigError("no data set is chosen", hint="choose one with --dataset NAME")
    return datasets


def _steps_of_epochs(context: RunContext, config: TrainConfig, start: Start, limit: int, workers: Workers) -> int:
    """Steps that draw ``epochs`` times as many samples as there are, by the size of the first steps."""
    probe = Stream(
        context.datasets("train"),
        start.tokenizer,
        start.model.tokens_per_image,
        seed=context.seed,
        limit=limit,
        too_long=config.too_long,
        workers=workers,
    )
    drawn = taken = 0
    while drawn < PROBE_SAMPLES:
        drawn += len(probe.next_step(config.batch_tokens, config.row_tokens).samples)
        taken += 1
    return max(1, math.ceil((config.epochs or 1) * probe.size * taken / drawn))


def _validation(
    context: RunContext, config: TrainConfig, start: Start, limit: int, workers: Workers
) -> Validation | None:
    if not config.eval_samples:
        return None
    datasets = {name: pair for name, pair in context.datasets("validation").items() if len(pair[0])}
    if not datasets:
        if context.dist.is_main:
            _warn("no data set has a validation split; the run is not validated")
        return None
    stream = Stream(
        datasets,
        start.tokenizer,
        start.model.tokens_per_image,
        seed=VALIDATION_SEED,
        limit=limit,
        too_long=config.too_long,
        workers=workers,
    )
    plan = stream.first(config.eval_samples)
    if not plan.samples:
        if context.dist.is_main:
            reason = plan.bad[0].reason if plan.bad else "all are too long"
            _warn(f"none of {plan.skipped + len(plan.bad)} validation samples can be used; no validation: {reason}")
        return None
    cost = Cost.of(start.model, encodes=config.features == "none")
    return Validation(plan, config, context.dist, cost, start.tokenizer.token_bytes)


def _feature_cache(context: RunContext, config: TrainConfig, start: Start) -> FeatureCache | None:
    if config.features == "none" or start.model.encoder is None:
        return None
    return FeatureCache(
        start.model.encoder,
        start.components["encoder"] or {},
        on_disk=config.features == "disk",
        memory_bytes=config.feature_memory_mb * 2**20,
        encode_batch=config.encode_batch,
        device=context.dist.device,
    )


def _trackers(context: RunContext) -> list[Any]:
    """``metrics.jsonl`` always, and the chosen ones that are others."""
    if not context.dist.is_main:
        return []
    chosen = context.table("tracker", "jsonl")
    tables = [chosen, *({**options, "name": name} for name, options in chosen.get("also", {}).items())]
    others = [table for table in tables if table["name"] != "jsonl"]
    return [
        JsonlTracker(context.run_dir),
        *(context.build("tracker", table, run_dir=context.run_dir) for table in others),
    ]


def _finish(trackers: Sequence[Any]) -> None:
    """A full disk must not hide the error that ends the run."""
    for tracker in trackers:
        try:
            tracker.finish()
        except OSError as error:
            _warn(f"the last metrics could not be written: {error}")


def _export(
    context: RunContext, config: TrainConfig, start: Start, rows: Sequence[Row], loop: Loop, shares: Sequence[Share]
) -> None:
    """Model directory, ``latest``, report, in this order: the pointer moves when the model is there."""
    folder = context.run_dir / "model"
    start.model.eval()
    if config.lora is not None:
        lora.save(start.model.backbone, context.run_dir / "adapter", context.values["from"])
        lora.merge(start.model.backbone)
    config_json = {"components": start.components, "eval": config.eval or _eval_tasks(context, start)}
    save_model(folder, start.model, start.tokenizer, config_json, resolved_of(context.run_dir, context.values))
    samples = _samples_to_show(context, config.show_samples)
    engine = find_engine(context, start.model, start.tokenizer) if samples else None
    exported = int(loop.best["step"]) if config.export == "best" and loop.best else loop.step
    facts = {
        "model": f"{sum(p.numel() for p in start.model.parameters()):,} parameters, "
        f"{start.tokenizer.vocab_size} token ids",
        "from": context.values["from"] or "pretrained weights",
        "exported": f"step {exported}",
        "processes": context.dist.world,
    }
    set_latest(context.run_dir, folder)
    write_report(context, rows, facts, shares, samples, engine)


def _eval_tasks(context: RunContext, start: Start) -> list[str]:
    """Tasks named like a data set of the mixture, largest weight first, then those of the model it began from."""
    tasks = set(context.registry.names("task"))
    mixture = context.values.get("dataset") or {}
    own = sorted((name for name in mixture if name in tasks), key=lambda name: -float(mixture[name].get("weight", 1)))
    return list(dict.fromkeys([*own, *start.eval_tasks]))


def _samples_to_show(context: RunContext, count: int) -> list[Conversation]:
    """Held-out conversations for the report: data sets in turn, each in the order of validation."""
    if count == 0:
        return []
    datasets = {name: dataset for name, (dataset, _) in context.datasets("validation").items() if len(dataset)}
    shown: list[Conversation] = []
    for position in range(10 * count):  # not each of them can be shown
        for name, dataset in datasets.items():
            if len(shown) < count and position < len(dataset):
                sample = _showable(dataset, Order(VALIDATION_SEED, name, len(dataset))(position))
                shown += [sample] if sample is not None else []
    return shown


def _showable(dataset: Any, index: int) -> Conversation | None:
    """A conversation that can be answered; None for another, or a bad one, which training has on its ledger."""
    try:
        sample = dataset[index]
        check_learnable(sample)
        for image in getattr(sample, "images", ()):
            decode(image)
    except UNUSABLE:
        return None
    return sample if isinstance(sample, Conversation) else None
