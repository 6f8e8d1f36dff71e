"""``ghostvis data preview``, ``stats`` and ``mix``: what is in data sets, and what a recipe makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .completion import complete_recipe
from .data_options import SPLITS, Name, Options, TokenizerOption, build, check_split, open_tokenizer
from .options import Json, Seed, Set
from .output import emit_json, examples, note, short_path, table, warn

if TYPE_CHECKING:
    from components.preview import View
    from components.tokenizers import Tokenizer
    from ghostvis_plugins.types import Sample

BYTES = "Every byte counts as a token here; --tokenizer DIR shows those of a model."


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "ghostvis data preview scenes --out scenes.html --count 6", "ghostvis data preview chitchat --json"
        )
    )(preview)
    app.command(
        epilog=examples(
            "ghostvis data stats easy_vqa --out easy_vqa.png", "ghostvis data stats openmoji --set views=4 --json"
        )
    )(stats)
    app.command(
        epilog=examples("ghostvis data mix cpu/4-sft", "ghostvis data mix cpu/2-pretrain --samples 200 --json")
    )(mix)


def preview(
    name: Name,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Page (.html) or contact sheet (.png) to write, or a folder for NAME-SPLIT.html.",
            metavar="FILE",
        ),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.", metavar="NAME")] = "train",
    count: Annotated[
        int, typer.Option("--count", help="Samples, spread over the data set.", metavar="N", min=1, max=200)
    ] = 24,
    tokenizer: TokenizerOption = None,
    sets: Options = None,
    json: Json = False,
) -> None:
    """Show samples.

    Their text goes to stdout; pictures and token masks (what is learnt, what is read) go on a page.
    """
    from components.preview import byte_tokenizer, spread, text_of, view
    from ghostvis_plugins import DataError

    dataset = build(name, split, sets)
    words = open_tokenizer(tokenizer) or byte_tokenizer()
    samples, views = [], []
    for index in spread(len(dataset), count):
        try:
            sample = dataset[index]
            views.append(view(sample, words))
        except DataError as error:  # a bad sample is for the ledger of a run, and no reason to see none of the others
            warn(f"{name}[{index}] cannot be used: {error.message}")
        else:
            samples.append(sample)
    if not samples:
        raise DataError(f"data set '{name}', {split}: none of the samples that were looked at can be used")
    file = None
    if out is not None:
        file = out if out.suffix.lower() in (".png", ".html", ".htm") else out / f"{name}-{split}.html"
        title = f"{name}, {split}: {len(samples)} of {len(dataset):,} samples"
        _draw(file, title, samples, views, words if tokenizer else None)
    if json:
        rows = [
            {"id": sample.id, "text": text_of(sample), "metadata": dict(getattr(sample, "metadata", {}))}
            for sample in samples
        ]
        emit_json(dataset=name, split=split, samples=rows, page=str(file) if file else None)
        return
    for sample in samples:
        print(f"# {sample.id}\n{text_of(sample)}\n")
    if file is not None:
        note(f"page: {short_path(file)}")


def _draw(file: Path, title: str, samples: list[Sample], views: list[View], tokenizer: Tokenizer | None) -> None:
    """Write a page or a sheet, by the suffix. Raises DataError."""
    from components.preview_page import page
    from components.preview_sheet import sheet
    from ghostvis_plugins import DataError

    about = BYTES if tokenizer is None else f"Tokenizer {tokenizer.fingerprint}."
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix.lower() == ".png":
            sheet(views).save(file)
        else:
            metadata = {sample.id: dict(getattr(sample, "metadata", {})) for sample in samples}
            file.write_text(page(views, title=title, note=about, metadata=metadata), encoding="utf-8")
    except OSError as error:
        raise DataError(f"--out {file}: cannot be written: {error.strerror or error}") from error


def stats(
    name: Name,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Picture of how lengths are spread: a .png, .svg or .pdf file.", metavar="FILE"),
    ] = None,
    tokenizer: TokenizerOption = None,
    count: Annotated[
        int,
        typer.Option(
            "--count", help="Samples of a split that are read for tokens and sizes of pictures.", metavar="N", min=1
        ),
    ] = 500,
    sets: Options = None,
    json: Json = False,
) -> None:
    """Count samples, pictures, texts and tokens in each split. Decodes nothing."""
    from components.dataset_stats import facts, histogram
    from ghostvis_plugins import ConfigError, DataError, MissingError

    from .session import registry

    registry().get("dataset", name)  # an unknown name is a mistake; a split that is not there is not
    words = open_tokenizer(tokenizer)
    found, rows, absent = {}, [], {}
    for split in SPLITS:
        try:
            dataset = build(name, split, sets)
        except MissingError as error:
            absent[split] = error
            continue
        found[split] = facts(dataset, words, count)
        rows.append({"split": split, **found[split].table(), "dropped": getattr(dataset, "dropped", 0)})
        for id, reason in found[split].unusable[:3]:
            warn(f"{split}: '{id}' cannot be used: {reason}")
    if not found:
        raise absent[SPLITS[0]]
    for missing in absent.values():
        warn(missing.message)
    if out is not None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            histogram(found, name).savefig(out, dpi=120)
        except ValueError as error:
            raise ConfigError(f"--out {out}: {error}") from error
        except OSError as error:
            raise DataError(f"--out {out}: cannot be written: {error.strerror or error}") from error
    if json:
        reasons = {split: error.message for split, error in absent.items()}
        emit_json(dataset=name, splits=rows, missing=reasons, picture=str(out) if out else None)
        return
    _print_stats(rows)
    if out is not None:
        note(f"picture: {short_path(out)}")


def _print_stats(rows: list[dict[str, Any]]) -> None:
    headers = ("split", "samples", "pictures", "text bytes", "mean", "longest", "dropped")
    keys = ("split", "samples", "images", "text_bytes", "mean_text_bytes", "max_text_bytes", "dropped")
    table(headers, [[row[key] for key in keys] for row in rows])
    print()
    headers = ("split", "read", "text tokens", "answer tokens", "median picture", "largest", "unusable")
    keys = ("split", "read", "mean_text_tokens", "mean_answer_tokens", "median_size", "largest_size", "unusable")
    table(headers, [[_cell(row[key]) for key in keys] for row in rows])
    if all(row["mean_text_tokens"] is None for row in rows):
        note("\nTokens are counted with --tokenizer DIR; they are means of the samples that were read.")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


def mix(
    recipe: Annotated[
        str, typer.Argument(help="TOML file or packaged recipe.", metavar="RECIPE", autocompletion=complete_recipe)
    ],
    samples: Annotated[int, typer.Option("--samples", help="Samples to draw.", metavar="N", min=1)] = 1000,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.", metavar="NAME")] = "train",
    tokenizer: TokenizerOption = None,
    set: Set = None,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Draw samples as a recipe's training would.

    Shows what each data set's share is of rows and answer tokens.
    """
    from components.preview import byte_tokenizer
    from ghostvis_plugins import ConfigError
    from ghostvis_plugins.config import resolve
    from stages.mixing import sample_mixture

    from .session import registry

    check_split(split)
    resolved = resolve(registry=registry(), flags={"seed": seed}, recipes=[recipe], sets=set or (), kinds=["dataset"])
    values = resolved.values
    if not values["dataset"]:
        raise ConfigError(f"recipe {recipe} names no data set")
    datasets = {}
    for name, table_of in values["dataset"].items():
        config = registry().make_config("dataset", name, {**table_of, "name": name}, resolved.origins)
        datasets[name] = registry().get("dataset", name).load_build()(config, split=split), float(table_of["weight"])
    words = open_tokenizer(tokenizer or values.get("from"))
    shares = sample_mixture(datasets, words or byte_tokenizer(), seed=values["seed"], samples=samples)
    if json:
        rows = [{field: getattr(share, field) for field in share.__slots__} for share in shares]
        emit_json(recipe=recipe, split=split, samples=samples, tokens=words is not None, sources=rows)
        return
    headers = ("data set", "weight", "wanted", "of tokens", "off", "of rows", "rows", "answer tokens", "epochs", "bad")
    rows_of_table = [
        (
            share.name,
            f"{share.weight:g}",
            f"{share.wanted:.2%}",
            f"{share.token_share:.2%}",
            f"{share.token_share - share.wanted:+.2%}",
            f"{share.row_share:.2%}",
            share.rows,
            share.tokens,
            f"{share.epochs:.3f}",
            share.bad,
        )
        for share in shares
    ]
    table(headers, rows_of_table)
    if words is None:
        note(f"\n{BYTES}")
