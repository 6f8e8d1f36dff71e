"""What a training run starts from: a tokenizer, and a model that is new, loaded, or a loaded one made to see."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from components.compose import build_model, components_of, pretrained_tokenizer
from components.tokenizers import Tokenizer
from components.vlm import VLM
from components.weights import load_model
from ghostvis_plugins.errors import ConfigError
from ghostvis_plugins.manager import Registry

from .context import RunContext

PARTS = ("encoder", "resampler", "projector", "backbone")
TOKENIZER_ARCHITECTURE = "ghostvis-tokenizer"


@dataclass(frozen=True, slots=True)
class Start:
    """Model and tokenizer on the CPU, and the table of each part (None: absent), as ``config.json`` keeps them."""

    model: VLM
    tokenizer: Tokenizer
    components: dict[str, dict[str, Any] | None]
    eval_tasks: tuple[str, ...] = ()


def is_tokenizer(folder: Path) -> bool:
    """Whether a directory holds the result of the tokenizer stage, and no model."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # whatever is wrong with it, the reader of model directories says it
    return isinstance(config, dict) and config.get("architecture") == TOKENIZER_ARCHITECTURE


def components_at(folder: Path) -> dict[str, Any]:
    """The table of each part of the model in a directory, without loading it; nothing where there is no model."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return {part: config["components"][part] for part in PARTS if config["components"].get(part)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}  # as above


def open_start(context: RunContext, *, vision: bool) -> Start:
    """The model of a run, as its ``from`` and its components say.

    From a tokenizer directory everything is new, and so without ``from`` where the backbone is a pretrained one, which
    brings its tokenizer. From a model directory its weights are kept; a language model in a stage with ``vision`` gets
    a new encoder, resampler and projector. Raises ConfigError when components are chosen that the model in ``from``
    does not have.
    """
    values, registry = context.values, context.registry
    torch.manual_seed(context.seed)
    if not values.get("from") or is_tokenizer(Path(values["from"])):
        return _new(values, registry, first_tokenizer(values, registry), vision)
    folder = Path(values["from"])
    loaded = load_model(folder, registry)
    components = {part: loaded.config["components"].get(part) for part in PARTS}
    tasks = tuple(loaded.config.get("eval", ()))
    if not vision or components["encoder"] is not None:
        parts = PARTS if vision else ("backbone",)
        for part in parts:
            _check_same(part, values.get(part), components[part], folder, registry)
        return Start(loaded.model, loaded.tokenizer, components, tasks)
    _check_same("backbone", values.get("backbone"), components["backbone"], folder, registry)
    fresh = _new({**values, "backbone": components["backbone"]}, registry, loaded.tokenizer, vision)
    fresh.model.backbone.load_state_dict(loaded.model.backbone.state_dict())
    return Start(fresh.model, loaded.tokenizer, fresh.components, tasks)


def _new(values: Mapping[str, Any], registry: Registry, tokenizer: Tokenizer, vision: bool) -> Start:
    if vision and not values.get("encoder"):
        raise ConfigError(
            "no encoder is chosen, and this stage trains on pictures", hint="choose one with --encoder NAME"
        )
    parts = PARTS if vision else ("backbone",)
    chosen = {part: values.get(part) if part in parts else None for part in PARTS}
    model = build_model(chosen, registry, tokenizer.vocab_size)
    return Start(model, tokenizer, components_of(model, chosen, registry))


def first_tokenizer(values: Mapping[str, Any], registry: Registry) -> Tokenizer:
    """The tokenizer of a run: that of the directory it starts from, else the one its pretrained backbone knows.

    Raises ConfigError when there is neither, UnavailableError when the pretrained weights are out of reach.
    """
    folder = Path(values["from"]) if values.get("from") else pretrained_tokenizer(values, registry)
    if folder is None:
        raise ConfigError(
            f"stage '{(values.get('stage') or {}).get('name')}' starts from a directory with a tokenizer, and from is "
            "not set",
            hint="make one with `ghostvis train --stage tokenizer` and pass --from DIR, or choose a pretrained "
            "language model with --backbone decoder",
        )
    return Tokenizer.load(folder)


def _check_same(part: str, wanted: Any, own: dict[str, Any] | None, folder: Path, registry: Registry) -> None:
    """What the run says about a part must be what the model has; what it doesn't say is the model's own.

    Where the weights once came from is not compared.
    """
    if not wanted:
        return
    table = {"name": wanted} if isinstance(wanted, str) else dict(wanted)
    config = registry.make_config(part, table["name"], table).model_dump(mode="json")
    given = {key: config.get(key, value) for key, value in table.items() if key != "weights"}
    known = {key: value for key, value in (own or {}).items() if key != "weights"}
    differing = [key for key in given if given[key] != known.get(key)]
    if not differing:
        return
    key = "name" if "name" in differing else differing[0]
    name = part if key == "name" else f"{part}.{key}"
    raise ConfigError(
        f"{name} = {given[key]!r}, but the model in {folder} has {known.get(key, 'none')!r}",
        hint=f"leave {part} out to keep the model's own, or start from a language model to build new parts",
    )
