"""Where configuration values come from: flags, ``--set``, environment, recipe files, a model, ``plugins.toml``.

Every source becomes a :class:`Layer`: one nested dict in the shape of a resolved run, and a name for each value's
origin. Nothing is validated here beyond what would make a value vanish in silence; one literal parser serves
``--set`` and the environment, so ``--set encoder.image_size=384`` and ``GHOSTVIS_ENCODER__IMAGE_SIZE=384`` are equal.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from .errors import ConfigError, MissingError, did_you_mean
from .explain import show
from .settings import CONTROL_ENV, ROOT, read_toml

CHOICES = ("stage", "encoder", "resampler", "projector", "backbone", "optimizer", "engine", "tracker")
"""Top-level keys that choose one component: a name, or a table with ``name`` and options."""

TEXT_KEYS = ("name", "from", "device", "dtype")
PLAIN_KEYS = (*TEXT_KEYS, "seed", "threads")
TOP_KEYS = (*CHOICES, *PLAIN_KEYS, "dataset")
FLAGS = {"depth": "stage.depth"}
"""Flags that are called otherwise than the key they set."""
NONE = "none"
"""The name that says: no component of this kind."""
ALSO = "also"
"""In the table of the tracker: those beside the first one, each with its options."""


@dataclass(slots=True)
class Layer:
    """Values of one source. ``origins`` names single keys, ``origin`` all others."""

    origin: str
    data: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)
    datasets: tuple[str, ...] | None = None  # a choice of data sets: lower layers' others are dropped

    def origin_of(self, key: str) -> str:
        return self.origins.get(key, self.origin)


def literal(text: str) -> Any:
    """``384``, ``3e-4``, ``true``, ``[1, 2]``, ``{a = 1}`` as TOML; ``null``; anything else is the text itself."""
    text = text.strip()
    if text in ("null", "None"):
        return None
    if "#" in text and text[:1] not in "\"'[{":
        return text  # TOML would read a comment
    try:
        table = tomllib.loads(f"v = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = table["v"]
    return text if len(table) > 1 or isinstance(value, date | time) else value


def command_line_layer(flags: Mapping[str, Any], sets: Sequence[str]) -> Layer:
    """Named flags (None: not given) and ``--set key=value``; among several ``--set`` of a key the last one wins.

    Raises ConfigError when a flag and a ``--set`` give one key different values.
    """
    dotted: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, value in flags.items():
        if value is not None and value != []:
            name = FLAGS.get(key) or _choice_key(key)
            dotted[name], origins[name] = value, f"--{key}"
    given = {key: show(value) for key, value in dotted.items()}
    for text in sets:
        key, equals, value_text = text.partition("=")
        key = _choice_key(key.strip())
        if not equals or not key or "" in key.split("."):
            raise ConfigError(f"--set {text}: write it as --set key=value, such as --set encoder.image_size=384")
        value = value_text.strip() if key in TEXT_KEYS and value_text.strip() != "null" else literal(value_text)
        if key in given and dotted[key] != value:
            raise ConfigError(f"{origins[key]} says {given[key]} and --set {key} says {show(value)}; give one of them")
        dotted[key] = value
        origins.setdefault(key, f"--set {key}")
    return _dotted_layer("command line", dotted, origins)


def environment_layer(env: Mapping[str, str], dataset_names: Sequence[str] = ()) -> Layer:
    """``GHOSTVIS_ENCODER__IMAGE_SIZE=384`` and the like. Raises ConfigError for a name that means nothing."""
    dotted: dict[str, Any] = {}
    origins: dict[str, str] = {}
    plain = {_plain(name): name for name in dataset_names}
    for variable in sorted(env):
        if not variable.startswith("GHOSTVIS_") or variable in CONTROL_ENV:
            continue
        parts = variable.removeprefix("GHOSTVIS_").lower().split("__")
        if parts[0] not in TOP_KEYS or "" in parts:
            known = [f"GHOSTVIS_{key.upper()}" for key in TOP_KEYS] + list(CONTROL_ENV)
            raise ConfigError(f"environment variable {variable}: unknown name.{did_you_mean(variable, known)}")
        if parts[0] == "dataset" and len(parts) > 1:
            parts[1] = plain.get(_plain(parts[1]), parts[1])
        key = _choice_key(".".join(parts))
        dotted[key] = env[variable] if key in TEXT_KEYS else literal(env[variable])
        origins[key] = f"environment {variable}"
    return _dotted_layer("environment", dotted, origins)


def recipe_layers(reference: str, cwd: Path, *, seen: tuple[Path, ...] = ()) -> list[Layer]:
    """A recipe and what it extends, nearest first. ``reference`` is a file or the name of a packaged recipe.

    A ``resolved.json`` of an earlier run is a recipe too. Raises MissingError, ConfigError.
    """
    path = find_recipe(reference, cwd)
    origin = recipe_label(path, cwd)
    if path in seen:
        raise ConfigError(f"{recipe_label(seen[-1], cwd)}: extends itself by way of {origin}")
    data = _read_resolved(path, origin) if path.suffix == ".json" else read_toml(path, label=origin)
    bases = data.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or any(not isinstance(base, str) for base in bases):
        raise ConfigError(f"{origin}: extends must be a file or a list of files")
    layers = [_layer(origin, data)]
    if path.suffix == ".json":
        layers[0].datasets = tuple(data["dataset"]) if "dataset" in data else None
    for base in reversed(bases):  # the last one wins, as with several --recipe
        layers += recipe_layers(base, path.parent, seen=(*seen, path))
    return layers


def find_recipe(reference: str, cwd: Path) -> Path:
    """A file if there is one, else a packaged recipe of that name. Raises MissingError with what exists."""
    path = (cwd / Path(reference).expanduser()).resolve()
    if path.is_file():
        return path
    for folder in recipe_folders():
        named = (folder / reference).with_suffix(".toml") if not reference.endswith(".toml") else folder / reference
        if named.is_file():
            return named.resolve()
    names = recipe_names()
    listing = f"Packaged recipes: {', '.join(names)}." if names else "There are no packaged recipes."
    raise MissingError(f"recipe '{reference}' does not exist.{did_you_mean(reference, names)} {listing}")


def recipe_folders() -> list[Path]:
    """Where packaged recipes are: in the wheel, or in the checkout."""
    return [folder for folder in (ROOT / "ghostvis_cli" / "recipes", ROOT / "recipes") if folder.is_dir()]


def recipe_names() -> list[str]:
    """Names that ``--recipe`` takes beside file names."""
    found = {
        path.relative_to(folder).with_suffix("").as_posix()
        for folder in recipe_folders()
        for path in folder.rglob("*.toml")
    }
    return sorted(found)


def recipe_label(path: Path, cwd: Path) -> str:
    """How a recipe is called in errors and in resolved.json: never by an absolute path."""
    for base in (cwd.resolve(), ROOT):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return path.name


def model_layer(origin: str, components: Mapping[str, Any]) -> Layer:
    """The components a model directory was made of; what it has none of is left open."""
    return _layer(origin, {kind: dict(table) for kind, table in components.items() if kind in CHOICES and table})


def defaults_layer(origin: str, defaults: Mapping[str, Any]) -> Layer:
    """``[defaults]`` of one ``plugins.toml``."""
    return _layer(origin, {key: value for key, value in defaults.items() if key in TOP_KEYS})


def flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``(dotted key, value)`` of every leaf; an empty table is a leaf."""
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _dotted_layer(origin: str, dotted: dict[str, Any], origins: dict[str, str]) -> Layer:
    """A layer of dotted keys. A choice of data sets and options of the chosen ones may be given together."""
    nothing = object()
    chosen = dotted.pop("dataset", nothing)
    data = _nest(dotted, origins)
    datasets = None
    if chosen is not nothing:
        tables, datasets = _mixture(chosen, Layer(origins["dataset"], {}))
        data["dataset"] = {**tables, **data.get("dataset", {})}
        origins |= {f"dataset.{name}": origins["dataset"] for name in tables}
    layer = _layer(origin, data, origins)
    layer.datasets = datasets
    return layer


def _layer(origin: str, data: dict[str, Any], origins: dict[str, str] | None = None) -> Layer:
    layer = Layer(origin, data, origins or {})
    for kind in CHOICES:
        if kind in data:
            data[kind] = _choice(kind, data[kind], layer)
    if "dataset" in data:
        data["dataset"], layer.datasets = _mixture(data["dataset"], layer)
    _plain_values(data, layer)
    return layer


def _choice(kind: str, value: Any, layer: Layer) -> dict[str, Any]:
    if kind == "tracker":
        value = _trackers(value, layer)
    if value is None or isinstance(value, str):
        return {"name": value or NONE}
    if not isinstance(value, dict):
        raise ConfigError(
            f"{kind} = {show(value)}: must be a name, or a table with a name   [from {layer.origin_of(kind)}]"
        )
    if "name" not in value:
        return value
    if not isinstance(value["name"], str | None):
        where = layer.origin_of(f"{kind}.name")
        raise ConfigError(f"{kind}.name = {show(value['name'])}: must be a name   [from {where}]")
    return {**value, "name": value["name"] or NONE}


def _trackers(value: Any, layer: Layer) -> Any:
    """Several trackers, as names or as tables with a name, become the table of the first one with the others in it."""
    options = value if isinstance(value, dict) else {}
    others = options.get(ALSO, {})
    if not isinstance(others, dict) or not all(isinstance(table, dict) for table in others.values()):
        where = layer.origin_of(f"tracker.{ALSO}")
        raise ConfigError(f"tracker.{ALSO} = {show(others)}: must have a table for each tracker   [from {where}]")
    given = options.get("name") if options else value
    if not isinstance(given, list):
        return value
    origin = layer.origin_of("tracker.name" if isinstance(value, dict) else "tracker")
    tables = [{"name": item} if isinstance(item, str) else item for item in given] or [{"name": NONE}]
    for table in tables:
        if not isinstance(table, dict) or not isinstance(table.get("name"), str):
            raise ConfigError(f"tracker = {show(given)}: must be names, or tables with a name   [from {origin}]")
    names = [table["name"] for table in tables]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"tracker names '{twice}' twice   [from {origin}]")
    named = {table["name"]: {k: v for k, v in table.items() if k != "name"} for table in tables[1:]}
    others = {name: {**named.get(name, {}), **others.get(name, {})} for name in (*named, *others)}
    layer.origins |= {f"tracker.{ALSO}.{name}": origin for name in names[1:]}
    return {**options, **tables[0], **({ALSO: others} if others else {})}


def _mixture(value: Any, layer: Layer) -> tuple[dict[str, Any], tuple[str, ...] | None]:
    """A name or a list is a choice; a table only adds to what lower layers choose."""
    origin = layer.origin_of("dataset")
    value = [] if value in (None, NONE, [NONE]) else value
    names = [value] if isinstance(value, str) else value
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ConfigError(f"dataset names '{twice}' twice; use dataset.{twice}.weight   [from {origin}]")
        return {name: {} for name in names}, tuple(names)
    if not isinstance(value, dict):
        raise ConfigError(f"dataset = {show(value)}: must be a name, a list of names or tables   [from {origin}]")
    for name, table in value.items():
        if not isinstance(table, dict):
            where = layer.origin_of(f"dataset.{name}")
            raise ConfigError(
                f"dataset.{name} = {show(table)}: must be a table such as {{ weight = 2 }}   [from {where}]"
            )
    return value, None


def _plain_values(data: Mapping[str, Any], layer: Layer) -> None:
    """Values must survive JSON. Raises ConfigError."""

    def check(value: Any, key: str) -> None:
        if isinstance(value, list):
            for item in value:
                check(item, key)
        elif isinstance(value, Mapping):
            for inner, item in value.items():
                check(item, f"{key}.{inner}" if key else str(inner))
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key} = {value}: must be a finite number   [from {layer.origin_of(key)}]")
        elif isinstance(value, date | datetime | time):
            raise ConfigError(f"{key} = {value}: put quotes around it   [from {layer.origin_of(key)}]")

    check(data, "")


def _choice_key(key: str) -> str:
    return f"{key}.name" if key in CHOICES else key


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _nest(dotted: Mapping[str, Any], origins: Mapping[str, str]) -> dict[str, Any]:
    """``{"a.b": 1}`` → ``{"a": {"b": 1}}``. Raises ConfigError when ``a`` is set to a value as well."""
    nested: dict[str, Any] = {}
    for key, value in sorted(dotted.items(), key=lambda item: item[0].count(".")):
        *tables, last = key.split(".")
        place = nested
        for depth, table in enumerate(tables):
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                above = ".".join(tables[: depth + 1])
                raise ConfigError(f"{key} is set, but {above} = {show(place)} is not a table   [from {origins[key]}]")
        place[last] = value
    return nested


def _read_resolved(path: Path, origin: str) -> dict[str, Any]:
    """The values of an earlier run as a recipe. Raises ConfigError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["values"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{origin}: not a resolved.json: {type(error).__name__}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: not a resolved.json: values is not a table")
    return values
