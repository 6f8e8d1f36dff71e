"""``ghostvis recipes``: the TOML files that come with ghostvis, to run, to read and to copy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ghostvis_plugins import ConfigError

from .completion import complete_recipe
from .options import Json
from .output import emit_json, examples, note, table

app = typer.Typer(help="Packaged recipes: list, print, copy.", no_args_is_help=True)
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="A packaged recipe or a file.", autocompletion=complete_recipe)
]


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="recipes", rich_help_panel="Configuration")


@app.command("list", epilog=examples("ghostvis recipes list", "ghostvis recipes list --json"))
def list_(json: Json = False) -> None:
    """Every packaged recipe with its first comment line."""
    from ghostvis_plugins.layers import recipe_names

    rows = [{"name": name, "summary": _summary(name)} for name in recipe_names()]
    if json:
        emit_json(recipes=rows)
    else:
        table(("name", "summary"), [(row["name"], row["summary"]) for row in rows])


@app.command(epilog=examples("ghostvis recipes cat cpu/3-align", "ghostvis recipes cat tiny/4-sft"))
def cat(name: NameArgument) -> None:
    """Print a recipe."""
    print(_path(name).read_text(encoding="utf-8"), end="")


@app.command(epilog=examples("ghostvis recipes cp cpu/3-align mine.toml", "ghostvis recipes cp cpu/4-sft . --force"))
def cp(
    name: NameArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Copy a recipe, to change it."""
    text = _path(name).read_text(encoding="utf-8")
    target = file / f"{Path(name).stem}.toml" if file.is_dir() else file
    if target.exists() and not force:
        raise ConfigError(f"'{target}' exists; use --force to overwrite it")
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"'{target}' cannot be written: {error.strerror}") from error
    note(f"wrote {target}")


def _path(name: str) -> Path:
    from ghostvis_plugins.layers import find_recipe

    return find_recipe(name, Path.cwd())


def _summary(name: str) -> str:
    lines = _path(name).read_text(encoding="utf-8").splitlines()
    return lines[0].lstrip("# ").strip() if lines and lines[0].startswith("#") else ""
