"""``ghostvis eval``: held-out scores with intervals and controls, for people or as JSON."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o
from .completion import complete_component
from .models import Model
from .output import emit_json, examples, note, short_path

if TYPE_CHECKING:
    from ghostvis_plugins.manager import Registry
    from stages.eval import Progress

ALIAS = "vqa"
FALLBACK = "vqav2"  # what the alias means when a model names nothing


def register(parent: typer.Typer) -> None:
    parent.command(
        "eval",
        epilog=examples("ghostvis eval easy_vqa --limit 50", "ghostvis eval vqa --blind --limit 50 --json"),
        rich_help_panel="Models",
    )(eval_)


def eval_(
    tasks: Annotated[
        list[str],
        typer.Argument(
            help="Tasks, or 'vqa' for the one that the model is meant for.",
            metavar="TASK...",
            autocompletion=complete_component("task"),
        ),
    ],
    model: Model = None,
    blind: Annotated[bool, typer.Option("--blind", help="Also ask without the pictures.")] = False,
    control: Annotated[
        list[str] | None,
        typer.Option("--control", help="blind, blank or permuted pictures; may be repeated.", metavar="NAME"),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Documents per task.", metavar="N")] = None,
    control_limit: Annotated[
        int | None, typer.Option("--control-limit", help="Documents per control.", metavar="N")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="An option of a task, such as scenes.size=200.", metavar="TASK.KEY=VALUE"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for samples.jsonl and results.json.", metavar="DIR")
    ] = None,
    engine: o.Engine = None,
    device: o.Device = None,
    seed: o.Seed = None,
    json: o.Json = False,
) -> None:
    """Score a model on held-out questions.

    The majority's answer stands beside it and, on request, what it answers without its eyes.
    Answers already in samples.jsonl are not asked again: a stopped evaluation goes on where it was.
    """
    from .models import resolve_model, setup, shown
    from .session import registry

    found = registry()
    model_dir = resolve_model(model)
    names, aliases = task_names(tasks, model_dir, found)
    for alias, name in aliases.items():
        note(f"{alias}: {name}")
    choice = setup(found, engine=engine, device=device)
    folder = out or default_out(model_dir)
    controls = list(dict.fromkeys(["majority", *(["blind"] if blind else []), *(control or [])]))

    from stages.eval import evaluate

    with _progress() as progress:
        results = evaluate(
            model_dir,
            names,
            found,
            folder,
            limit=limit,
            control_limit=control_limit,
            controls=controls,
            seed=seed or 0,
            device=choice.device,
            engine=choice.engine,
            task_options=task_options(set or [], names),
            progress=progress,
        )
    results["model"] = shown(model_dir)
    if json:
        emit_json(**results, aliases=aliases, out=str(folder))
        return
    from stages.eval_report import table

    print(table(results))
    note(f"\nanswers and results: {short_path(folder)}")


def task_names(given: list[str], model_dir: Path, registry: Registry) -> tuple[list[str], dict[str, str]]:
    """The tasks meant, in order and without repeats, and what the alias stands for. Raises MissingError."""
    from ghostvis_plugins.errors import MissingError

    from .models import eval_targets

    known = registry.names("task")
    names, aliases = [], {}
    for name in given:
        if name == ALIAS and ALIAS not in known:
            target = next(iter(eval_targets(model_dir)), FALLBACK if FALLBACK in known else None)
            if target is None:
                raise MissingError(
                    f"'{ALIAS}' stands for the task a model is meant for, and {model_dir} names none",
                    hint=f"Name one: {', '.join(known)}.",
                )
            aliases[name] = name = target
        registry.get("task", name)
        names.append(name)
    return list(dict.fromkeys(names)), aliases


def task_options(assignments: list[str], names: list[str]) -> dict[str, dict[str, Any]]:
    """``["scenes.size=200"]`` → ``{"scenes": {"size": 200}}``. Raises ConfigError."""
    from ghostvis_plugins.errors import ConfigError
    from ghostvis_plugins.layers import literal

    tables: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        task, dot, option = key.strip().partition(".")
        if not (equals and dot and option):
            raise ConfigError(f"--set {assignment}: expected TASK.KEY=VALUE, such as scenes.size=200")
        if task not in names:
            raise ConfigError(f"--set {assignment}: '{task}' is not evaluated here", hint=f"Tasks: {', '.join(names)}.")
        tables.setdefault(task, {})[option] = literal(value)
    return tables


def default_out(model_dir: Path) -> Path:
    """``runs/NAME/eval`` for the model of a run; ``runs/eval/FOLDER`` for any other model."""
    real = model_dir.resolve()
    if real.name == "model" and (real.parent / "resolved.json").is_file():
        return real.parent / "eval"
    return Path("runs") / "eval" / real.name


def _progress() -> AbstractContextManager[Progress]:
    """Bars on stderr when it is a terminal; silence otherwise."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    @contextmanager
    def bars() -> Any:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as display:
            lines: dict[str, Any] = {}

            def report(task: str, condition: str, done: int, total: int) -> None:
                label = task if condition == "model" else f"{task}, {condition}"
                if label not in lines:
                    lines[label] = display.add_task(label, total=total)
                display.update(lines[label], completed=done)

            yield report

    return bars()
