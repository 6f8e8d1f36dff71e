"""``ghostvis runs``: what was trained here, how it went, and how two runs differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json
from .output import emit_json, examples, note, short_path, table

if TYPE_CHECKING:
    from stages.runs import Run

RUNS = Path("runs")
COLOURS = ("cyan", "yellow", "magenta", "green", "red", "blue")
SIZES = {"memory_bytes": "B", "flops": "FLOP", "flops_per_second": "FLOP/s", "energy_joules": "J"}

app = typer.Typer(help="Runs: list, show, compare.", no_args_is_help=True)


def complete_run(incomplete: str) -> list[str]:
    """Names of the runs in this folder."""
    return [path.parent.name for path in sorted(RUNS.glob(f"{incomplete}*/resolved.json"))]


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="runs", rich_help_panel="Models")


@app.command("list", epilog=examples("ghostvis runs list", "ghostvis runs list --json"))
def list_(json: Json = False) -> None:
    """Every run in this folder's runs/, the newest first."""
    from stages.runs import list_runs

    rows = [run.summary() for run in list_runs(RUNS)]
    if json:
        emit_json(runs=rows)
        return
    if not rows:
        note("no runs yet: `ghostvis speedrun` makes some")
        return
    table(
        ("name", "stage", "step", "state", "loss", "val loss", "age"),
        [
            (
                row["name"],
                row["stage"],
                f"{row['step']}/{row['steps']}" if row["steps"] else row["step"] or "-",
                row["state"],
                _shown("loss", row["loss"]),
                _shown("val_loss", row["val_loss"]),
                _age(row["age_seconds"]),
            )
            for row in rows
        ],
    )


@app.command(epilog=examples("ghostvis runs show cpu-4-sft", "ghostvis runs show cpu-4-sft --json"))
def show(
    run: Annotated[str, typer.Argument(help="Name or folder of a run.", metavar="RUN", autocompletion=complete_run)],
    json: Json = False,
) -> None:
    """One run: what trained, its figures, its loss over steps."""
    from stages.runs import find_run

    found = find_run(run, RUNS)
    summary, figures, origin = found.summary(), found.figures(), _provenance(found)
    trained = (found.values.get("stage") or {}).get("train") or {}
    if json:
        emit_json(run=summary, trained=trained, figures=figures, provenance=origin, values=found.values)
        return
    state = f"{summary['state']}, {_age(summary['age_seconds'])} ago"
    print(f"{found.name}: {summary['stage']}, {state}   {short_path(found.path)}")
    if trained:
        print("\nlearning rates\n" + "\n".join(f"  {path:24} {rate:g}" for path, rate in trained.items()))
    if figures:
        print("\nfigures\n" + "\n".join(f"  {name:24} {_shown(name, value)}" for name, value in figures.items()))
    print("\nwhere they come from\n" + "\n".join(f"  {name:24} {value}" for name, value in origin.items()))
    _plot([found])


@app.command(
    epilog=examples(
        "ghostvis runs compare cpu-2-pretrain cpu-4-sft", "ghostvis runs compare cpu-3-align cpu-4-sft --out loss.png"
    )
)
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Names or folders of runs.", autocompletion=complete_run)
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Write the curves as a PNG.", metavar="FILE")] = None,
    json: Json = False,
) -> None:
    """Runs side by side: values that differ, figures, curves."""
    from stages.runs import differences, find_run

    found = [find_run(run, RUNS) for run in runs]
    differs, figures = differences(found), [run.figures() for run in found]
    names = [run.name for run in found]
    if out is not None:
        _write_png(found, out)
    if json:
        sides = [{"name": name, "figures": own} for name, own in zip(names, figures, strict=True)]
        emit_json(runs=sides, differences=differs)
        return
    keys = list(dict.fromkeys(key for own in figures for key in own))
    table(("figure", *names), [(key, *(_shown(key, own.get(key)) for own in figures)) for key in keys])
    print()
    if differs:
        table(("value", *names), [(key, *map(_value, values)) for key, values in differs.items()])
    else:
        print("all values are the same")
    _plot(found)


def _provenance(run: Run) -> dict[str, str]:
    """Command, plugins and commit as the run wrote them down."""
    resolved = run.resolved
    argv = resolved.get("argv") or []
    plugins = (f"{name} {version}" for name, version in (resolved.get("plugins") or {}).items())
    return {
        "command": " ".join([Path(argv[0]).name, *argv[1:]]) if argv else "unknown",
        "from": str(run.values.get("from") or "-"),
        "plugins": ", ".join(plugins) or "-",
        "commit": str(resolved.get("git_commit") or "unknown"),
    }


def _plot(runs: Sequence[Run]) -> None:
    """Training loss in the terminal, a colour per run; nothing for runs without a step."""
    from rich.console import Console
    from rich.text import Text

    from stages.curves import text_plot

    console = Console(highlight=False)
    width = max(20, min(console.width - 12, 72))
    curves = [[(row["step"], row["loss"]) for row in run.metrics] for run in runs]
    lines = text_plot(curves, width=width)
    if not lines:
        return
    losses = [loss for curve in curves for _, loss in curve]
    last = max(step for curve in curves for step, _ in curve)
    print()
    for number, cells in enumerate(lines):
        edge = {0: f"{max(losses):.3f}", len(lines) - 1: f"{min(losses):.3f}"}.get(number, "")
        line = Text(f"{edge:>8} │")
        for character, who in cells:
            line.append(character, style="" if who is None else COLOURS[who % len(COLOURS)])
        console.print(line, no_wrap=True)
    console.print(Text(f"{'':8} └{'─' * width}"))
    console.print(Text(f"{'':10}step 1{f'step {last}':>{width - 6}}"))
    legend = Text(" " * 10)
    for number, run in enumerate(runs):
        legend.append(f"■ {run.name}  ", style=COLOURS[number % len(COLOURS)])
    console.print(legend)


def _write_png(runs: Sequence[Run], out: Path) -> None:
    from ghostvis_plugins import ConfigError
    from stages.curves import draw

    training = {f"{run.name}, training": [(row["step"], row["loss"]) for row in run.metrics] for run in runs}
    validation = {
        f"{run.name}, validation": [(row["step"], row["val_loss"]) for row in run.metrics if "val_loss" in row]
        for run in runs
    }
    dotted = {name: points for name, points in validation.items() if points}
    try:
        draw(training, out, title="loss", dotted=dotted)
    except (OSError, ValueError) as error:  # ValueError: matplotlib does not know the suffix
        raise ConfigError(f"--out {out}: cannot be written: {error}", hint="for example --out loss.png") from error
    note(f"wrote {out}")


def _shown(name: str, value: Any) -> str:
    """A figure for people."""
    from stages.progress import clock, si

    if value is None:
        return "-"
    if name in SIZES:
        return f"{si(value)}{SIZES[name]}"
    if name == "seconds":
        return clock(value)
    if name == "mfu" or "accuracy" in name:
        return f"{value:.1%}"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if name.endswith("_per_second") else f"{value:.4f}"


def _value(value: Any) -> str:
    return "-" if value is None else str(value)


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
