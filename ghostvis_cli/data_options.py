"""What the commands of ``ghostvis data`` share: their options, and how they open a data set and a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .completion import complete_component
from .models import complete_model
from .options import given_options

if TYPE_CHECKING:
    from components.tokenizers import Tokenizer
    from ghostvis_plugins.protocols import Dataset

SPLITS = ("train", "validation", "test")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Data set.", autocompletion=complete_component("dataset"))]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", help="An option of the data set, such as views=4; may be repeated.", metavar="KEY=VALUE"
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        help="Directory or run with the tokenizer that counts and cuts texts.",
        metavar="DIR",
        autocompletion=complete_model,
    ),
]


def check_split(split: str) -> str:
    """A split by name. Raises ConfigError."""
    from ghostvis_plugins import ConfigError
    from ghostvis_plugins.errors import did_you_mean

    if split not in SPLITS:
        raise ConfigError(
            f"--split {split}: unknown.{did_you_mean(split, SPLITS)}", hint=f"One of {', '.join(SPLITS)}."
        )
    return split


def build(name: str, split: str, sets: list[str] | None) -> Dataset:
    """The data set with its options. Raises ConfigError for an option or a split that does not exist."""
    from .session import registry

    check_split(split)
    options = options_of(name, sets)
    found = registry()
    origins = {f"dataset.{name}.{key}": "--set" for key in options}
    config = found.make_config("dataset", name, options, origins)
    return found.get("dataset", name).load_build()(config, split=split)  # type: ignore[no-any-return]


def options_of(name: str, sets: list[str] | None) -> dict[str, Any]:
    """The ``--set`` values of a data set; ``dataset.OTHER.key`` is about another one."""
    others = [text for text in sets or [] if text.startswith("dataset.") and not text.startswith(f"dataset.{name}.")]
    return given_options([text for text in sets or [] if text not in others], f"dataset.{name}.")


def tokenizer_folder(given: str) -> Path:
    """The folder that ``--tokenizer`` means: a folder with one, a run, or a run's name. Raises MissingError."""
    from .models import resolve_model

    path = Path(given).expanduser()
    if any((path / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return path
    return resolve_model(given)


def open_tokenizer(given: str | None) -> Tokenizer | None:
    """The tokenizer that ``--tokenizer`` names. Raises MissingError, DataError."""
    from components.tokenizers import Tokenizer

    return Tokenizer.load(tokenizer_folder(given)) if given else None
