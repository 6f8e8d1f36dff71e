"""``ghostvis data prepare``, ``verify`` and ``repair``: tar shards to train on, and their health."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ghostvis_plugins import ExitCode

from .completion import complete_component
from .data_options import Options, TokenizerOption, check_split, open_tokenizer, options_of, tokenizer_folder
from .options import Json
from .output import emit_json, examples, note, short_path, table

Folder = Annotated[Path, typer.Argument(help="Folder that `data prepare` wrote, or one above several.", metavar="DIR")]


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "ghostvis data prepare chatterbot easy_vqa --split test --out shards",
            "ghostvis data prepare openmoji --set views=2 --split validation --out shards --workers 2 --shard-size 1",
        )
    )(prepare)
    app.command(epilog=examples("ghostvis data verify shards", "ghostvis data verify shards/easy_vqa --json"))(verify)
    app.command(epilog=examples("ghostvis data repair shards", "ghostvis data repair shards/easy_vqa --json"))(repair)


def prepare(
    names: Annotated[
        list[str],
        typer.Argument(help="Data sets.", metavar="NAME...", autocompletion=complete_component("dataset")),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder; the shards go into DIR/NAME/SPLIT.", metavar="DIR")],
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="train, validation or test; may be repeated. [default: train]", metavar="NAME"),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", help="Processes.", metavar="N", min=1)] = 1,
    tokenizer: TokenizerOption = None,
    shard_size: Annotated[
        float, typer.Option("--shard-size", help="About how large a shard is.", metavar="MB", min=0.01)
    ] = 256,
    max_bad_fraction: Annotated[
        float,
        typer.Option(
            "--max-bad-fraction", help="Share of unusable samples above which it stops.", metavar="X", min=0, max=1
        ),
    ] = 0.001,
    sets: Options = None,
    json: Json = False,
) -> None:
    """Write data sets as tar shards with an index. Interrupted, the same command goes on; done, it does nothing.

    Samples that cannot be used are left out and listed with their reasons in bad_samples.jsonl beside the shards.
    """
    from stages.prepare import Job
    from stages.prepare import prepare as run
    from stages.progress import Progress

    from .session import registry

    words = tokenizer_folder(tokenizer) if tokenizer else None
    done = []
    for name in names:
        registry().get("dataset", name)  # every name before any work
    for name in names:
        for part in dict.fromkeys(split or ["train"]):
            folder = out / name.replace("/", "-") / check_split(part)
            job = Job(name, options_of(name, sets), part, folder, words, shard_size, max_bad_fraction)
            progress = Progress(f"{name} {part}", 0, 1, talks=True, every=10)

            def show(count: int, total: int, figures: str, progress: Progress = progress) -> None:
                progress.total = total
                progress.show(count, figures)

            try:
                made = run(job, registry(), workers=workers, show=show)
            finally:
                progress.close()
            if not made.new:
                note(f"{short_path(folder)} is complete")
            done.append((name, part, made))
    if json:
        rows = [
            {
                "dataset": name,
                "split": part,
                "folder": str(made.folder),
                "samples": made.samples,
                "shards": made.shards,
                "bytes": made.bytes,
                "bad": made.bad,
                "new": made.new,
            }
            for name, part, made in done
        ]
        emit_json(prepared=rows)
        return
    headers = ("data set", "split", "samples", "shards", "MB", "bad", "folder")
    table(
        headers,
        [
            (name, part, made.samples, made.shards, f"{made.bytes / 1e6:.1f}", made.bad, short_path(made.folder))
            for name, part, made in done
        ],
    )


def verify(folder: Folder, json: Json = False) -> None:
    """Read every byte of shards and index. Ends with 6, and a table of what is damaged, unless all is well."""
    from components.shards.verify import folders
    from components.shards.verify import verify as check

    checked = [check(found) for found in folders(folder)]
    damage = [(one, item) for one in checked for item in one.damage]
    if json:
        emit_json(
            folders=[
                {"folder": str(one.folder), "samples": one.samples, "shards": one.shards, "bytes": one.bytes}
                for one in checked
            ],
            damage=[
                {"folder": str(one.folder), "file": item.file, "id": item.id, "reason": item.reason}
                for one, item in damage
            ],
        )
    elif damage:
        found = [(short_path(one.folder / item.file), item.id or "-", item.reason) for one, item in damage]
        table(("file", "sample", "what is wrong"), found)
    else:
        rows = [(short_path(one.folder), one.samples, one.shards, f"{one.bytes / 1e6:.1f}") for one in checked]
        table(("folder", "samples", "shards", "MB"), rows)
    if damage:
        note(f"\n{len(damage)} damaged. `ghostvis data repair {short_path(folder)}` keeps what is whole.")
        raise typer.Exit(int(ExitCode.DATA))


def repair(folder: Folder, tokenizer: TokenizerOption = None, json: Json = False) -> None:
    """Rewrite damaged shards without their bad samples.

    Those go to bad_samples.jsonl, and the index is written anew.
    Intact shards are not touched. A damaged index is made anew; --tokenizer counts its tokens again.
    """
    from components.shards.verify import folders
    from components.shards.verify import repair as mend

    words = open_tokenizer(tokenizer)
    done = [(found, mend(found, words)) for found in folders(folder)]
    if json:
        emit_json(
            repaired=[
                {
                    "folder": str(found),
                    "rewritten": result.rewritten if result else [],
                    "lost": [{"file": bad.file, "id": bad.id, "reason": bad.reason} for bad in result.lost]
                    if result
                    else [],
                }
                for found, result in done
            ]
        )
        return
    rows = [
        (
            short_path(found),
            "nothing to do" if result is None else f"rewritten: {', '.join(result.rewritten)}",
            len(result.lost) if result else 0,
        )
        for found, result in done
    ]
    table(("folder", "repair", "samples lost"), rows)
