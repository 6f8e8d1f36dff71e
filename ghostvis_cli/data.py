"""``ghostvis data``: which data there is, and fetch it before going offline; what else it does is in ``data_*.py``."""

from __future__ import annotations

from typing import Annotated

import typer

from . import data_look, data_shards
from .options import Json
from .output import emit_json, examples, note, short_path, table

app = typer.Typer(help="Data sets: list, look into, write as shards.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    for part in (data_look, data_shards):
        part.register(app)
    parent.add_typer(app, name="data", rich_help_panel="Data")


@app.command("list", epilog=examples("ghostvis data list", "ghostvis data list --json"))
def list_(json: Json = False) -> None:
    """Data sets, and the pinned packages with their licences. Downloads nothing."""
    from components.datasets import debian
    from components.packages import PACKAGES, cache_dir, cached

    from .session import registry

    datasets = [
        {"name": spec.name, "license": spec.license, "summary": spec.summary} for spec in registry().specs("dataset")
    ]
    packages = [
        {
            "name": pin.name,
            "version": pin.version,
            "sha256": pin.sha256,
            "megabytes": pin.megabytes,
            "cached": cached(pin.name) is not None,
            "license": pin.license,
            "attribution": pin.attribution,
            "needed_by": list(pin.needed_by),
        }
        for pin in PACKAGES.values()
        if not pin.weights
    ]
    of_debian = [
        {
            "name": pin.name,
            "version": pin.version,
            "sha256": pin.sha256,
            "megabytes": pin.megabytes,
            "cached": debian.cached(pin.name) is not None,
            "installed": pin.installed.is_dir(),
            "license": pin.license,
            "attribution": pin.attribution,
            "needed_by": list(pin.needed_by),
        }
        for pin in debian.PACKAGES.values()
    ]
    if json:
        emit_json(datasets=datasets, packages=packages, debian=of_debian, cache=str(cache_dir()))
        return
    table(("data set", "licence", "summary"), [list(row.values()) for row in datasets])
    print()
    rows = [
        (p["name"], p["version"], f"{p['megabytes']:g}", "yes" if p["cached"] else "no", p["license"], p["attribution"])
        for p in packages
    ]
    table(("package", "version", "MB", "cached", "licence", "attribution"), rows)
    print()
    rows = [
        (
            p["name"],
            p["version"],
            f"{p['megabytes']:g}",
            "installed" if p["installed"] else "yes" if p["cached"] else "no",
            p["license"],
            p["attribution"],
        )
        for p in of_debian
    ]
    table(("debian package", "version", "MB", "cached", "licence", "attribution"), rows)
    note(f"\nCache: {short_path(cache_dir())} (GHOSTVIS_CACHE moves it)")


@app.command(epilog=examples("ghostvis data download", "ghostvis data download easy_vqa openmoji"))
def download(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Packages, or components that need them. Default: all but Debian's.", metavar="[NAME]..."),
    ] = None,
    json: Json = False,
) -> None:
    """Fetch packages into the cache, to work offline. Ends with 5 without network."""
    from components import packages
    from components.datasets import debian

    folders = {
        name: str((debian if name in debian.PACKAGES else packages).fetch(name))
        for name in wanted_packages(names or [])
    }
    if json:
        emit_json(packages=folders)
        return
    for name, folder in folders.items():
        print(f"{name}: {short_path(folder)}")


def wanted_packages(names: list[str]) -> list[str]:
    """The packages behind names of packages or data sets. Raises MissingError.

    For no name that is every package of data but Debian's, which are large and wanted by three data sets only.
    """
    from components.datasets import debian
    from components.packages import PACKAGES
    from ghostvis_plugins import MissingError
    from ghostvis_plugins.errors import did_you_mean

    from .session import registry

    pins = [pin for pin in PACKAGES.values() if not pin.weights]
    users = {pin.name: pin.needed_by for pin in pins}
    users |= {pin.name: pin.needed_by for pin in debian.PACKAGES.values()}
    known = [*users, *dict.fromkeys(user for needed_by in users.values() for user in needed_by)]
    published = {spec.name for spec in registry().specs("dataset")} - set(known)
    for name in names:
        if name in published:
            raise MissingError(
                f"data set '{name}' comes in no package",
                hint=f"It is read from dataset.{name}.path, or fetched from the hub when it is first used.",
            )
        if name not in known:
            message = f"no package and no data set with packages is called '{name}'.{did_you_mean(name, known)}"
            raise MissingError(message, hint=f"Known: {', '.join(known)}. Weights: `ghostvis weights download`.")
    if not names:
        return [pin.name for pin in pins]
    return [name for name, needed_by in users.items() if name in names or set(needed_by) & set(names)]
