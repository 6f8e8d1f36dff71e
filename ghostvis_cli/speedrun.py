"""``ghostvis speedrun``: from nothing to a model that answers questions about pictures, by one command.

A preset is a folder of recipes that run in the order of their names, each starting from the model of the one
before. A stage that has finished with the same values is not run again, so an interrupted speedrun goes on where it
was. At the end the model is evaluated with the tasks that its last recipe names, and everything is written down.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o
from .output import emit_json, examples, note, table
from .session import registry

if TYPE_CHECKING:
    from ghostvis_plugins.resolved import Resolved
    from ghostvis_plugins.types import WeightsSource


CONTROL_LIMIT = 2000
"""Documents of each task that are asked with a wrong, a white or no picture."""


def register(app: typer.Typer) -> None:
    epilog = examples("ghostvis speedrun --preset cpu --dry-run", "ghostvis speedrun --preset tiny --eval-limit 40")
    app.command(rich_help_panel="Models", epilog=epilog)(speedrun)


def _complete_preset(incomplete: str) -> list[tuple[str, str]]:
    return [(name, "") for name in presets() if name.startswith(incomplete)]


def presets() -> dict[str, list[str]]:
    """Preset → its recipes in order."""
    from ghostvis_plugins.layers import recipe_names

    found: dict[str, list[str]] = {}
    for name in recipe_names():
        preset, slash, recipe = name.partition("/")
        if slash and recipe[:1].isdigit():
            found.setdefault(preset, []).append(name)
    return found


def speedrun(
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            help="Folder of recipes to run, such as cpu or smol; see ghostvis recipes list.",
            metavar="NAME",
            autocompletion=_complete_preset,
        ),
    ] = "cpu",
    name: Annotated[
        str | None, typer.Option("--name", help="Prefix of the run directories; default: the preset.", metavar="NAME")
    ] = None,
    seed: o.Seed = None,
    device: o.Device = None,
    nproc: Annotated[
        str, typer.Option("--nproc", help="Processes on this machine; gpu: one for each GPU.", metavar="N")
    ] = "1",
    eval_limit: Annotated[
        int | None,
        typer.Option("--eval-limit", help="Documents per task evaluated; default: all.", metavar="N"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show and check the stages; start nothing.")] = False,
    json: o.Json = False,
) -> None:
    """From nothing to a model that answers, and its report.

    Tokenizer, text pretraining, alignment, instruction tuning, evaluation: stages that are done are not run again.
    """
    from ghostvis_plugins import MissingError
    from ghostvis_plugins.errors import did_you_mean

    known = presets()
    if preset not in known:
        raise MissingError(
            f"no preset '{preset}'.{did_you_mean(preset, known)} Available: {', '.join(sorted(known))}",
            hint="a preset is a folder of recipes; see ghostvis recipes list",
        )
    prefix = name or preset
    if dry_run:
        _show(preset, prefix, known[preset], json)
        return
    result = _run(prefix, known[preset], {"seed": seed, "device": device}, nproc, eval_limit)
    if json:
        emit_json(**result)


def _show(preset: str, prefix: str, recipes: list[str], json: bool) -> None:
    """The stages in order, each resolved and its model put together; no data is needed."""
    from .rehearsal import HEADERS, UTILISATION, cards_of, cells, rehearse

    cards = cards_of(preset)
    rows = rehearse(recipes, cards)
    if json:
        emit_json(preset=preset, stages=recipes, plan=rows)
        return
    table(HEADERS, [cells(row, _run_name(prefix, row["recipe"])) for row in rows])
    if cards:
        note(
            f"time: {cards} × H100 at {UTILISATION:.0%} of its peak, which is assumed; without tokenizer, data, "
            "validation, checkpoints and evaluation"
        )


def _run_name(prefix: str, recipe: str) -> str:
    return f"{prefix}-{recipe.rpartition('/')[2]}"


def _run(prefix: str, recipes: list[str], flags: dict[str, Any], nproc: str, eval_limit: int | None) -> dict[str, Any]:
    from .launch import RUNS, count_processes

    processes = count_processes(nproc)
    begin = time.monotonic()
    seconds: dict[str, float] = {}
    seconds["download"] = _timed(lambda: _download(recipes, flags))
    model: Path | None = None
    for recipe in recipes:
        run_name = _run_name(prefix, recipe)
        note(f"\n== {recipe} → runs/{run_name}")
        given = {**flags, "name": run_name, "from": str(model) if model else None}
        seconds[recipe] = _timed(lambda given=given, recipe=recipe: _stage(recipe, given, processes))
        model = RUNS / run_name / "model"
    assert model is not None
    out = RUNS / prefix
    note(f"\n== evaluation of {model}")
    results: dict[str, Any] = {}
    seconds["evaluation"] = _timed(lambda: results.update(_evaluate(model, out, eval_limit, flags["device"])))
    total = time.monotonic() - begin
    from stages.summary import write_summary

    report = write_summary(
        out,
        runs=[RUNS / _run_name(prefix, recipe) for recipe in recipes],
        model=model,
        registry=registry(),
        seconds=seconds,
        total=total,
        results=results,
        processes=processes,
        argv=sys.argv,
    )
    note(f"\n{report}: {total:.0f} s in all. Now talk to it: ghostvis chat --image PICTURE")
    return {"model": str(model), "report": str(report), "seconds": seconds, "total": total, "results": results}


def _timed(call: Any) -> float:
    begin = time.monotonic()
    call()
    return round(time.monotonic() - begin, 1)


def _resolve(recipe: str, flags: dict[str, Any]) -> Resolved:
    from ghostvis_plugins.config import resolve

    return resolve(registry=registry(), flags=flags, recipes=[recipe], argv=sys.argv)


def _stage(recipe: str, flags: dict[str, Any], processes: int) -> None:
    """Run one recipe, or go on with it, or leave it when it is done."""
    from stages.rundir import products

    from .launch import RUNS, prepare, start

    resolved = _resolve(recipe, flags)
    run_dir = RUNS / flags["name"]
    resume = bool(products(run_dir))
    prepare(resolved, resume=resume)
    if resume and (run_dir / "model" / "config.json").exists():
        note(f"{run_dir} is complete")
        return
    start(run_dir, nproc=processes, resume=resume)


def _download(recipes: list[str], flags: dict[str, Any]) -> None:
    """Fetch what any stage needs, so that a missing network is found before the first one.

    Data sets are built once for that, so their drawings are rendered and their captions read, too.
    """
    from components.packages import fetch

    for recipe in recipes:
        values = _resolve(recipe, flags).values
        for kind in ("encoder", "backbone"):
            table = values.get(kind)
            if table and (package := _package(kind, table)):
                fetch(package)
        for name, table in values["dataset"].items():
            config = registry().make_config("dataset", name, {**table, "name": name})
            registry().get("dataset", name).load_build()(config, split="train")


def _package(kind: str, table: dict[str, Any]) -> str | None:
    """The package that a component's pretrained weights come from, if they come from one."""
    if table.get("weights") != "package":
        return None
    checkpoints: dict[str, WeightsSource] = registry().get(kind, table["name"]).load_config().checkpoints
    return checkpoints[table["checkpoint"]].package


def _evaluate(model: Path, out: Path, limit: int | None, device: str | None) -> dict[str, Any]:
    import json

    from stages.eval import evaluate

    tasks = json.loads((model / "config.json").read_text(encoding="utf-8"))["eval"]
    where = device or "auto"
    return evaluate(model, tasks, registry(), out, limit=limit, control_limit=CONTROL_LIMIT, device=where)
