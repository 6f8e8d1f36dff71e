"""``ghostvis train``: one stage of a model's life. Everything a user can get wrong ends here, in the parent."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o
from .output import emit_json, examples, note, note_left_out, table
from .session import registry

if TYPE_CHECKING:
    from ghostvis_plugins.resolved import Resolved

EPILOG = examples(
    "ghostvis train --recipe cpu/1-tokenizer --name words --dry-run",
    "ghostvis train --stage align --encoder efficientnet_lite --dataset openmoji --set stage.steps=100 "
    "--from runs/cpu-2-pretrain/model --name first --dry-run",
)


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Models", epilog=EPILOG)(train)


def train(
    stage: o.Stage = None,
    depth: o.Depth = None,
    recipe: o.Recipe = None,
    set: o.Set = None,
    encoder: o.Encoder = None,
    resampler: o.Resampler = None,
    projector: o.Projector = None,
    backbone: o.Backbone = None,
    dataset: o.Datasets = None,
    optimizer: o.Optimizer = None,
    tracker: o.Trackers = None,
    from_: o.From = None,
    name: o.Name = None,
    seed: o.Seed = None,
    device: o.Device = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run of this --name.", rich_help_panel="Run")
    ] = False,
    nproc: Annotated[
        str,
        typer.Option(
            "--nproc", help="Processes on this machine; gpu: one for each GPU.", metavar="N", rich_help_panel="Run"
        ),
    ] = "1",
    max_restarts: Annotated[
        int,
        typer.Option(
            "--max-restarts",
            help="Restart all processes from the newest checkpoint, at most N times, after one is lost.",
            metavar="N",
            min=0,
            rich_help_panel="Run",
        ),
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Resolve, check shapes, estimate; start nothing.", rich_help_panel="Run")
    ] = False,
    print_launch: Annotated[
        bool, typer.Option("--print-launch", help="Print the torchrun command; start nothing.", rich_help_panel="Run")
    ] = False,
    json: o.Json = False,
) -> None:
    """Run one stage: tokenizer, pretrain, mid, align or sft.

    Writes runs/NAME/ with the model in runs/NAME/model, which the next stage takes with --from.
    """
    from .launch import count_processes, launch_text, start

    flags: dict[str, Any] = {
        "stage": stage,
        "depth": depth,
        "encoder": encoder,
        "resampler": resampler,
        "projector": projector,
        "backbone": backbone,
        "dataset": dataset,
        "optimizer": optimizer,
        "tracker": tracker,
        "from": from_,
        "name": name,
        "seed": seed,
        "device": device,
    }
    processes = count_processes(nproc)
    run_dir = ready(
        flags, set or (), recipe or (), resume=resume, processes=_world(processes), dry_run=dry_run, json=json
    )
    if run_dir is None:
        return
    if print_launch:
        print(launch_text(run_dir, processes, resume, max_restarts))
        return
    start(run_dir, nproc=processes, resume=resume, max_restarts=max_restarts)


def _world(processes: int) -> int:
    """How many will share the run: as many as are started here, or as another launcher has started."""
    from stages.slurm import join_step

    join_step()
    return max(processes, int(os.environ.get("WORLD_SIZE", "1")))


def ready(
    flags: Mapping[str, Any],
    sets: Sequence[str],
    recipes: Sequence[str],
    *,
    resume: bool,
    processes: int = 1,
    dry_run: bool = False,
    json: bool = False,
) -> Path | None:
    """Resolve a run, check it, make its folder. Returns the folder; None after a dry run."""
    from ghostvis_plugins.config import resolve
    from ghostvis_plugins.errors import ConfigError

    from .launch import prepare

    resolved = resolve(registry=registry(), flags=dict(flags), sets=sets, recipes=recipes, argv=sys.argv)
    if "stage" not in resolved.values:
        raise ConfigError("no stage is chosen", hint=f"--stage with one of: {', '.join(registry().names('stage'))}")
    note_left_out(resolved)
    derived = derived_rows(resolved)
    if derived and not json:
        table(("key", "value", "from"), derived)
    estimate = check(resolved, _vocab_size(resolved, dry_run), processes)
    if json:
        emit_json(run=resolved.values, plan=estimate)
    if dry_run:
        if not json and estimate:
            print(plan_text(estimate))
        note("dry run: nothing was started")
        return None
    return prepare(resolved, resume=resume)


def derived_rows(resolved: Resolved) -> list[tuple[str, str, str]]:
    """Key, value and origin of all that the stage's dial implies; what was said otherwise has an origin of its own."""
    from ghostvis_plugins.explain import show
    from ghostvis_plugins.layers import flatten

    dial = f"stage.depth = {resolved.values['stage'].get('depth')} "
    rows = [key for key, said in resolved.history.items() if any(origin.startswith(dial) for origin, _ in said)]
    values = dict(flatten(resolved.values))
    return [(key, show(values[key]), resolved.origins[key]) for key in rows if key in values]


def check(resolved: Resolved, vocab_size: int | None, processes: int = 1) -> dict[str, Any]:
    """Shapes and costs of the run's model on the meta device; empty for a stage without a model (no vocabulary).

    Of text every token is a target; of conversations about pictures a quarter is assumed to be. Memory is that of the
    device, of so many ``processes``, that needs most.
    """
    if vocab_size is None:
        return {}
    from components.lora import is_adapter
    from components.planning import plan
    from stages.footprint import Footprint, footprint
    from stages.optim import apply_table, check_recomputes, check_types, parameter_groups

    stage = resolved.values["stage"]
    config: Any = registry().make_config("stage", stage["name"], stage)
    chosen = dict(resolved.values.get("optimizer") or {"name": "adamw"})
    name = chosen.pop("name")
    options, build = registry().make_config("optimizer", name, chosen), registry().get("optimizer", name).load_build()
    added, needed = 0, Footprint(0, 0, 0)

    def build_optimizer(groups: list[dict[str, Any]]) -> Any:
        return build(options, groups=groups)

    def freeze(model: Any) -> None:
        nonlocal added, needed
        apply_table(model, config.train, config.lora)
        check_types(model, build_optimizer(parameter_groups(model, config.train)), name)
        check_recomputes(model, config.activation_checkpointing)
        needed = footprint(model, config, processes, build_optimizer, note)
        added = sum(parameter.numel() for name, parameter in model.named_parameters() if is_adapter(name))

    made = plan(
        {**resolved.values, **_kept_parts(resolved.values)},
        registry(),
        vocab_size,
        origins=resolved.origins,
        freeze=freeze,
        recomputes=config.activation_checkpointing,
    )
    trained = {path.split(".")[0] for path, rate in config.train.items() if rate > 0}
    trained = {part.kind for part in made.parts if part.kind != "head" and ("*" in trained or part.kind in trained)}
    images = config.batch_tokens // (2 * made.tokens_per_image) if made.tokens_per_image else 0
    targets = config.batch_tokens // 4 if images else config.batch_tokens
    work = {"tokens": config.batch_tokens, "images": images, "targets": targets}
    micro = min(1 / processes, config.micro_tokens / config.batch_tokens)
    kept = made.activation_bytes(**{key: int(value * micro) for key, value in work.items()}, trained=trained)
    return {
        **made.to_json(),
        "trained": sorted(trained),
        "step_flops": made.training_flops(**work),
        "processes": processes,
        "memory": {**needed.to_json(), "activations": kept},
        "peak_bytes": needed.total + kept,
        "adapters": added,
        "steps": config.steps,
        "seconds": _seconds(made.training_flops(**work), config.steps),
        "assumed": work,
    }


def _kept_parts(values: dict[str, Any]) -> dict[str, Any]:
    """The vision path of the model that a run of the stage ``mid`` starts from: it stays, and trains."""
    if values["stage"]["name"] != "mid" or not values.get("from"):
        return {}
    from stages.start import components_at

    return {kind: table for kind, table in components_at(Path(values["from"])).items() if kind != "backbone"}


def _vocab_size(resolved: Resolved, dry_run: bool) -> int | None:
    """The vocabulary that the run starts with, None for a stage without a model.

    A dry run from scratch does without a tokenizer. Raises ConfigError, MissingError, UnavailableError.
    """
    if "backbone" not in resolved.values:
        return None
    from stages.depth import VOCABULARY
    from stages.start import first_tokenizer

    if dry_run and not resolved.values["from"] and resolved.values["stage"].get("depth"):
        note(f"no tokenizer is given with --from: {VOCABULARY:,} token ids are assumed")
        return VOCABULARY
    return first_tokenizer(resolved.values, registry()).vocab_size


def _seconds(step_flops: int, steps: int | None) -> float | None:
    """A rough time: half of what this machine reaches in a matrix product of the size of a small model's."""
    if steps is None:
        return None
    import time

    import torch

    a, b = torch.randn(1024, 512), torch.randn(512, 1024)
    a @ b
    begin = time.perf_counter()
    for _ in range(8):
        a @ b
    rate = 8 * 2 * 1024 * 512 * 1024 / (time.perf_counter() - begin)
    return round(steps * step_flops / (rate / 2), 1)


def plan_text(estimate: dict[str, Any]) -> str:
    lines = []
    for part in estimate["parts"]:
        state = "trained" if part["kind"].replace("head", "backbone") in estimate["trained"] else "frozen"
        state = "adapted" if state == "trained" and estimate["adapters"] and part["kind"] == "backbone" else state
        lines.append(
            f"{part['kind']:10} {part['name']:18} {part['parameters'] / 1e6:8.2f} M  {state:8} "
            f"{part['flops'] / 1e6:9.1f} MFLOP/{part['unit']:6}  {part['shape']}"
        )
    if estimate["adapters"]:
        lines.append(f"adapters of the backbone {estimate['adapters'] / 1e6:.2f} M")
    lines.append(f"parameters {estimate['parameters'] / 1e6:.2f} M, {estimate['tokens_per_image']} tokens per image")
    time = "" if estimate["seconds"] is None else f", about {estimate['seconds']:.0f} s on this CPU with one process"
    lines.append(
        f"a step of {estimate['assumed']['tokens']} tokens with {estimate['assumed']['images']} images: "
        f"{estimate['step_flops'] / 1e9:.1f} GFLOP{time}"
    )
    names = {"whole": "weights put together"}
    parts = " + ".join(f"{size / 1e6:.0f} {names.get(k, k)}" for k, size in estimate["memory"].items() if size)
    many = f" of each of {estimate['processes']} processes" if estimate["processes"] > 1 else ""
    lines.append(f"memory{many}, in MB: {parts} = {estimate['peak_bytes'] / 1e6:.0f}, beside the process itself")
    return "\n".join(lines)
