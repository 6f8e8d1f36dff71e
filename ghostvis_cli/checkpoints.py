"""``ghostvis ckpt``: the checkpoints of a run, looked at, checked, thinned out, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ghostvis_plugins import ExitCode

from .options import Json
from .output import emit_json, examples, note, short_path, table

EXAMPLE = "runs/tiny-2-pretrain"
Run = Annotated[str, typer.Argument(help="Name of a run, or its folder.", metavar="RUN")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="List, verify, prune and compare the checkpoints of a run.", no_args_is_help=True)
    group.command("list", epilog=_examples("list", " --json"))(list_)
    group.command(epilog=_examples("verify", " --json"))(verify)
    group.command(epilog=_examples("prune --dry-run", " --keep 2"))(prune)
    group.command(epilog=_examples("diff", " --top 5"))(diff)
    app.add_typer(group, name="ckpt", rich_help_panel="Models")


def _examples(command: str, more: str) -> str:
    """One as it is, one with ``more`` behind it."""
    line = f"ghostvis ckpt {command} {EXAMPLE}"
    return examples(line, line + more)


def list_(run: Run, json: Json = False) -> None:
    """Steps, sizes and validation so far, without reading the tensors. The last one is what --resume looks at first."""
    from datetime import UTC, datetime

    from stages import checkpoint

    root = root_of(run)
    rows: list[dict[str, Any]] = []
    for step in checkpoint.steps(root):
        folder = root / f"step_{step}"
        files = [path for path in folder.iterdir() if path.is_file()]
        best = _best(folder)
        rows.append(
            {
                "step": step,
                "bytes": sum(path.stat().st_size for path in files),
                "written": datetime.fromtimestamp(folder.stat().st_mtime, UTC).isoformat(timespec="seconds"),
                "best_step": best and int(best["step"]),
                "best_val_loss": best and best["val_loss"],
            }
        )
    if json:
        emit_json(folder=str(root), checkpoints=rows)
        return
    cells = [
        (
            row["step"],
            f"{row['bytes'] / 1e6:.1f}",
            row["written"],
            "-" if row["best_step"] is None else f"{row['best_val_loss']:.4f} (step {row['best_step']})",
        )
        for row in rows
    ]
    table(("step", "MB", "written", "best validation loss so far"), cells)


def verify(run: Run, json: Json = False) -> None:
    """Read every byte and compare it with the manifests. Ends with 6 when a checkpoint is damaged."""
    from stages import checkpoint

    root = root_of(run)
    problems = {step: checkpoint.verify(root / f"step_{step}") for step in checkpoint.steps(root)}
    if json:
        emit_json(folder=str(root), checkpoints=[{"step": step, "damage": found} for step, found in problems.items()])
    else:
        table(("step", "state"), [(step, found or "whole") for step, found in problems.items()])
    if any(problems.values()):
        raise typer.Exit(int(ExitCode.DATA))


def prune(
    run: Run,
    keep: Annotated[int, typer.Option("--keep", help="Newest whole ones that stay.", metavar="N", min=1)] = 1,
    keep_every: Annotated[
        int,
        typer.Option("--keep-every", help="Those of steps that N divides stay, too; 0: no more.", metavar="N", min=0),
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; delete nothing.")] = False,
    json: Json = False,
) -> None:
    """Delete old checkpoints. The one with the best validation stays; damaged ones stay, and do not count."""
    import shutil

    from stages import checkpoint

    root = root_of(run)
    found = checkpoint.steps(root)
    damaged = [step for step in found if checkpoint.verify(root / f"step_{step}") is not None]
    whole = [step for step in found if step not in damaged]
    best = _best(root / f"step_{whole[-1]}") if whole else None
    protected = [int(best["step"])] if best else []
    going = checkpoint.to_prune(found, keep, protected, every=keep_every, ignored=damaged)
    size = sum(path.stat().st_size for step in going for path in (root / f"step_{step}").iterdir())
    if not dry_run:
        for step in going:
            shutil.rmtree(root / f"step_{step}")
    if json:
        kept = [step for step in found if step not in going]
        emit_json(folder=str(root), removed=going, kept=kept, damaged=damaged, bytes=size, dry_run=dry_run)
        return
    for step in damaged:
        note(f"step {step} is damaged and was left alone")
    note(f"{'would remove' if dry_run else 'removed'} {len(going)} of {len(found)} checkpoints, {size / 1e6:.1f} MB")
    table(("step",), [(step,) for step in going])


def diff(
    run: Run,
    steps: Annotated[list[int] | None, typer.Argument(help="Two steps. [default: the last two]", metavar="A B")] = None,
    top: Annotated[int, typer.Option("--top", help="Tensors shown, the most changed first.", metavar="N", min=1)] = 20,
    json: Json = False,
) -> None:
    """Which weights differ between two checkpoints.

    How much a tensor differs is the norm of the change over that of A.
    """
    from ghostvis_plugins import ConfigError
    from stages import checkpoint

    root = root_of(run)
    chosen = steps or checkpoint.steps(root)[-2:]
    if len(chosen) != 2:
        raise ConfigError(f"{short_path(root)}: a comparison needs two checkpoints", hint="see ghostvis ckpt list")
    first, second = (checkpoint.at_step(root, step) for step in chosen)
    changes = checkpoint.compare(first, second)
    changed = [change for change in changes if change.relative != 0]
    if json:
        emit_json(
            folder=str(root),
            steps=chosen,
            same=len(changes) - len(changed),
            changed=[
                {"tensor": c.name, "relative": c.relative, "norm": c.norm, "other_norm": c.other_norm} for c in changed
            ],
        )
        return
    note(f"steps {chosen[0]} → {chosen[1]}: {len(changed)} of {len(changes)} tensors differ")
    table(
        ("tensor", "change", "norm", "norm after"),
        [
            (
                c.name,
                "not in both" if c.relative is None else f"{c.relative:.2e}",
                _number(c.norm),
                _number(c.other_norm),
            )
            for c in changed[:top]
        ],
    )
    if len(changed) > top:
        note(f"{len(changed) - top} more; --top {len(changed)} shows them")


def root_of(run: str) -> Path:
    """The checkpoint folder of a run. Raises MissingError."""
    from ghostvis_plugins import MissingError

    from .launch import RUNS

    for folder in (Path(run), RUNS / run):
        if (folder / "checkpoints").is_dir():
            return folder / "checkpoints"
    raise MissingError(f"no run with checkpoints: {run}", hint=f"give a folder, or a name under {RUNS}/")


def _best(folder: Path) -> dict[str, Any] | None:
    """What a checkpoint says about the best validation so far; None also when it is damaged."""
    import json

    try:
        return json.loads((folder / "state.json").read_text(encoding="utf-8")).get("best")  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
