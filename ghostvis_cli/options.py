"""Options that several commands share. The flag is the key of the run: ``--encoder`` sets ``encoder``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .completion import complete_component, complete_recipe

_RECIPE, _COMPONENTS, _RUN = "Recipe", "Components", "Run"

Recipe = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe",
        "-r",
        help="TOML file or packaged recipe; may be repeated, the last one wins.",
        metavar="RECIPE",
        autocompletion=complete_recipe,
        rich_help_panel=_RECIPE,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        help="Any value by its dotted key, such as encoder.image_size=384; may be repeated.",
        metavar="KEY=VALUE",
        rich_help_panel=_RECIPE,
    ),
]


def _component(kind: str, text: str) -> Any:
    return typer.Option(
        f"--{kind}",
        help=text,
        metavar="NAME",
        autocompletion=complete_component(kind),
        rich_help_panel=_RECIPE if kind == "stage" else _COMPONENTS,
    )


Stage = Annotated[str | None, _component("stage", "What to run: tokenizer, pretrain, mid, align or sft.")]
Depth = Annotated[
    int | None,
    typer.Option(
        "--depth",
        help="Layers of a gpt to pretrain; width, batch, rates and steps follow.",
        metavar="N",
        rich_help_panel=_RECIPE,
    ),
]
Encoder = Annotated[str | None, _component("encoder", "Vision encoder; none for text only.")]
Resampler = Annotated[str | None, _component("resampler", "Turns image features into fewer vectors.")]
Projector = Annotated[str | None, _component("projector", "Maps image vectors to the backbone's width.")]
Backbone = Annotated[str | None, _component("backbone", "Language model.")]
Optimizer = Annotated[str | None, _component("optimizer", "Optimizer.")]
Engine = Annotated[str | None, _component("engine", "Runs the model for samples and evaluation.")]
Trackers = Annotated[list[str] | None, _component("tracker", "Receives the metrics of the run; may be repeated.")]
Datasets = Annotated[
    list[str] | None,
    _component("dataset", "Data set; may be repeated for a mixture."),
]
From = Annotated[
    str | None,
    typer.Option("--from", help="Model directory to start from.", metavar="DIR", rich_help_panel=_RUN),
]
Name = Annotated[
    str | None,
    typer.Option("--name", help="Name of the run: its folder under runs/.", metavar="NAME", rich_help_panel=_RUN),
]
Seed = Annotated[
    int | None, typer.Option("--seed", help="Seed of everything random.", metavar="N", rich_help_panel=_RUN)
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="auto, cpu, mps, cuda or cuda:N.", metavar="DEVICE", rich_help_panel=_RUN),
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else there.")]


def given_options(sets: list[str], prefix: str) -> dict[str, Any]:
    """The ``--set`` values of one component; its keys may carry the component's ``prefix``. Raises ConfigError."""
    from ghostvis_plugins import ConfigError
    from ghostvis_plugins.layers import literal

    options: dict[str, Any] = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {text}: is not of the form KEY=VALUE", hint="For example --set views=4.")
        options[key.removeprefix(prefix)] = literal(value)
    return options
