"""Which model a command means, and how it gets to run: shared by ``eval``, ``chat`` and whatever serves later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghostvis_plugins.errors import MissingError, did_you_mean

from .output import short_path

if TYPE_CHECKING:
    from ghostvis_plugins.manager import Registry

    from .chat_session import ChatModel

RUNS = Path("runs")
CONFIG = "config.json"


def complete_model(incomplete: str) -> list[str]:
    """Models of the runs in this folder."""
    return [str(path.parent) for path in sorted(RUNS.glob(f"*/model/{CONFIG}")) if str(path).startswith(incomplete)]


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Model directory, run directory or name of a run. Default: the newest finished one (runs/latest).",
        metavar="DIR",
        autocompletion=complete_model,
    ),
]


def resolve_model(given: str | None, runs: Path = RUNS) -> Path:
    """The model directory that ``--model`` names, or ``runs/latest`` without it. Raises MissingError.

    A run directory stands for its finished model, and so does the bare name of a run.
    """
    if given is None:
        return _newest(runs)
    path = Path(given).expanduser()
    for candidate in (path, path / "model", runs / given / "model"):
        if (candidate / CONFIG).is_file():
            return candidate
    if path.exists():
        what = "a file" if path.is_file() else f"a directory without {CONFIG}"
        hint = "A pickle or another project's checkpoint cannot be read; a model is a directory that training wrote."
        raise MissingError(f"no model at {given}: it is {what}", hint=hint)
    known = [found.parent.parent.name for found in runs.glob(f"*/model/{CONFIG}")]
    raise MissingError(
        f"no model at {given}: no such directory, and no run of that name.{did_you_mean(given, known)}",
        hint=f"Finished runs: {', '.join(sorted(known))}." if known else "`ghostvis speedrun` trains a first model.",
    )


def _newest(runs: Path) -> Path:
    from stages.rundir import read_latest

    newest = read_latest(runs)
    if newest is None or not (newest / CONFIG).is_file():
        raise MissingError(
            f"there is no trained model yet: {runs / 'latest'} points to none",
            hint="Train one with `ghostvis speedrun`, or name one with --model DIR.",
        )
    return newest


def shown(model_dir: Path) -> str:
    """A model's name for people: ``runs/latest`` is followed to the run it stands for."""
    return short_path(model_dir.resolve())


def eval_targets(model_dir: Path) -> list[str]:
    """The tasks that a model directory says it is meant for. Its full check is left to loading."""
    try:
        config = json.loads((model_dir / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []  # loading reports what is wrong, in one place
    targets = config.get("eval") if isinstance(config, dict) else None
    return [str(name) for name in targets] if isinstance(targets, list) else []


@dataclass(frozen=True, slots=True)
class Setup:
    """The engine with its options, and the device, after flags, environment and ``plugins.toml``."""

    engine: Mapping[str, Any]
    device: str


def setup(registry: Registry, *, engine: str | None, device: str | None) -> Setup:
    """Resolve engine and device through the layers that every run uses. Raises ConfigError, MissingError."""
    from ghostvis_plugins.config import resolve

    values = resolve(registry=registry, flags={"engine": engine, "device": device}, kinds=["engine"]).values
    return Setup(values.get("engine") or {"name": "native"}, values["device"])


def load_chat_model(model_dir: Path, registry: Registry, choice: Setup) -> ChatModel:
    """Load a model and its engine. Raises what loading raises: MissingError, DataError, UnavailableError."""
    from components.rendering import render_prompt
    from components.weights import load_model
    from ghostvis_plugins.types import Conversation
    from stages.distributed import choose_device

    from .chat_session import ChatModel

    loaded = load_model(model_dir, registry, device=choose_device(choice.device))
    name = choice.engine["name"]
    config = registry.make_config("engine", name, choice.engine)
    engine = registry.get("engine", name).load_build()(config, model=loaded.model, tokenizer=loaded.tokenizer)
    tokens_per_image = loaded.model.tokens_per_image

    def count(prompt: Conversation) -> int:
        return len(render_prompt(prompt, loaded.tokenizer, tokens_per_image).ids)

    return ChatModel(engine, shown(model_dir), count, int(loaded.model.backbone.max_positions))
