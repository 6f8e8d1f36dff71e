"""``ghostvis data``: which data there is, fetch it before going offline, look at it, count it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .completion import complete_component
from .options import Json, given_options
from .output import emit_json, examples, note, short_path, table

if TYPE_CHECKING:
    from ghostvis_plugins.protocols import Dataset

app = typer.Typer(help="Data sets and the packages they come in.", no_args_is_help=True)
SPLITS = ("train", "validation", "test")

Name = Annotated[str, typer.Argument(help="Data set.", autocompletion=complete_component("dataset"))]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", help="An option of the data set, such as views=4; may be repeated.", metavar="KEY=VALUE"
    ),
]


def register(parent: typer.Typer) -> None:
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
    """Fetch packages into the cache, so that everything afterwards works offline. Ends with 5 without network."""
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


@app.command(epilog=examples("ghostvis data preview scenes --out scenes.png", "ghostvis data preview chitchat --json"))
def preview(
    name: Name,
    out: Annotated[
        Path | None, typer.Option("--out", help="Contact sheet to write: a .png file, or a folder for NAME-SPLIT.png.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")] = "train",
    count: Annotated[int, typer.Option("--count", help="Samples, spread over the data set.", min=1, max=200)] = 24,
    sets: Options = None,
    json: Json = False,
) -> None:
    """Show samples: their text on stdout, their pictures on a contact sheet."""
    from components.preview import contact_sheet, spread, text_of
    from ghostvis_plugins import DataError

    dataset = _build(name, split, sets)
    samples = [dataset[index] for index in spread(len(dataset), count)]
    sheet = None
    if out is not None:
        image = contact_sheet(samples)
        if image is None:
            raise DataError(f"data set '{name}' has no pictures to put on a contact sheet", hint="Leave out --out.")
        sheet = out if out.suffix.lower() == ".png" else out / f"{name}-{split}.png"
        try:
            sheet.parent.mkdir(parents=True, exist_ok=True)
            image.save(sheet)
        except OSError as error:
            raise DataError(f"--out {out}: cannot be written: {error.strerror or error}") from error
    if json:
        rows = [{"id": sample.id, "text": text_of(sample), "metadata": _metadata(sample)} for sample in samples]
        emit_json(dataset=name, split=split, samples=rows, sheet=str(sheet) if sheet else None)
        return
    for sample in samples:
        print(f"# {sample.id}\n{text_of(sample)}\n")
    if sheet is not None:
        note(f"pictures: {short_path(sheet)}")


@app.command(epilog=examples("ghostvis data stats easy_vqa", "ghostvis data stats openmoji --set views=4 --json"))
def stats(name: Name, sets: Options = None, json: Json = False) -> None:
    """Count samples, pictures and bytes of text in each split. Decodes nothing."""
    from ghostvis_plugins import MissingError

    from .session import registry

    registry().get("dataset", name)  # an unknown name is a mistake; a split that is not published is not
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for split in SPLITS:
        try:
            rows.append(_count(_build(name, split, sets), split))
        except MissingError as error:
            missing[split] = error.message
    if json:
        emit_json(dataset=name, splits=rows, missing=missing)
        return
    headers = ("split", "samples", "pictures", "text bytes", "mean", "longest", "dropped", "unusable")
    table(headers, [list(row.values()) for row in rows])
    for reason in missing.values():
        note(reason)


def _count(dataset: Dataset, split: str) -> dict[str, Any]:
    from ghostvis_plugins import DataError

    lengths = []
    unusable = 0
    for index in range(len(dataset)):
        try:
            lengths.append(dataset.length(index))
        except DataError:
            unusable += 1
    total = sum(length.text_bytes for length in lengths)
    return {
        "split": split,
        "samples": len(dataset),
        "images": sum(length.images for length in lengths),
        "text_bytes": total,
        "mean_text_bytes": round(total / max(len(lengths), 1), 1),
        "max_text_bytes": max((length.text_bytes for length in lengths), default=0),
        "dropped": getattr(dataset, "dropped", 0),
        "unusable": unusable,
    }


def _build(name: str, split: str, sets: list[str] | None) -> Dataset:
    """The data set with its options. Raises ConfigError for an option or a split that does not exist."""
    from ghostvis_plugins import ConfigError
    from ghostvis_plugins.errors import did_you_mean

    from .session import registry

    if split not in SPLITS:
        raise ConfigError(
            f"--split {split}: unknown.{did_you_mean(split, SPLITS)}", hint=f"One of {', '.join(SPLITS)}."
        )
    options = given_options(sets or [], f"dataset.{name}.")
    found = registry()
    origins = {f"dataset.{name}.{key}": "--set" for key in options}
    config = found.make_config("dataset", name, options, origins)
    return found.get("dataset", name).load_build()(config, split=split)  # type: ignore[no-any-return]


def _metadata(sample: Any) -> dict[str, Any]:
    return dict(getattr(sample, "metadata", {}))
