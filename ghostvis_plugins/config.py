"""From flags, environment, recipes and ``plugins.toml`` to one resolved run, with the origin of every value.

Two phases. First the layers are merged by ``pydantic-settings``, one source per layer, into the small top-level
model :class:`Run`; it knows no component's options. Then each chosen component validates its own table with its own
model. A discriminated union over all plugins would import every plugin's model and keep stale keys.

Precedence, highest first: flags and ``--set``, environment, recipes (the last ``--recipe`` first, each before what it
extends), the model given by ``from``, ``plugins.toml`` (project, user, packaged), defaults of the component's model.
A stage may have a dial: right beneath the layer that turns it stands a layer of what the stage derives from it.
**Choosing another component drops what lower layers say about the former one**, since it was said about that one.

This module imports ``pydantic_settings`` (hundreds of milliseconds): import it inside commands only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from .api import ComponentSpec, Kind
from .errors import ConfigError, MissingError
from .explain import describe, origin_of
from .layers import (
    ALSO,
    CHOICES,
    NONE,
    Layer,
    command_line_layer,
    defaults_layer,
    environment_layer,
    flatten,
    model_layer,
    recipe_layers,
)
from .manager import Registry
from .resolved import Resolved, relative_values
from .settings import PluginSettings

__all__ = ["Resolved", "Run", "resolve", "resolve_components"]


class Choice(BaseModel):
    """A component by name; its options stay open until its own model sees them."""

    model_config = ConfigDict(extra="allow")
    name: str


class Run(BaseSettings):
    """The keys of a run that belong to no component."""

    model_config = SettingsConfigDict(extra="forbid", populate_by_name=True)

    stage: Choice | None = None
    name: str | None = Field(default=None, description="Name of the run: its folder under runs/.")
    from_: str | None = Field(default=None, alias="from", description="Model directory to start from.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of initialisation, data order and sampling.")
    device: str = Field(default="auto", description="auto, cpu, mps, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Type of activations; auto is bfloat16 on a CUDA device that has it, else float32."
    )
    threads: int = Field(
        default=0,
        ge=0,
        description="CPU threads of torch per process; 0 is one beside a CUDA device, else torch decides.",
    )
    encoder: Choice | None = None
    resampler: Choice | None = None
    projector: Choice | None = None
    backbone: Choice | None = None
    optimizer: Choice | None = None
    engine: Choice | None = None
    tracker: Choice | None = None
    dataset: dict[str, dict[str, Any]] = Field(default={}, description="The mixture: one table per data set.")

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, name: str | None) -> str | None:
        if name is not None and (not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name == "latest"):
            raise ValueError("must be letters, digits, '.', '_' and '-', and not 'latest': it names a folder")
        return name

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise ValueError("must be auto, cpu, mps, cuda or cuda:N")
        return device


class Weight(BaseModel):
    """What is ours in the table of a data set."""

    weight: float = Field(default=1.0, ge=0, description="Share of answer tokens; 0 leaves the data set out.")


class LayerSource(PydanticBaseSettingsSource):
    """One layer as a source of ``pydantic-settings``, which merges the tables and validates the result."""

    def __init__(self, settings: type[BaseSettings], data: dict[str, Any]) -> None:
        super().__init__(settings)
        self.data = data

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self.data.get(field.alias or field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self.data


def resolve(
    *,
    registry: Registry,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
    recipes: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    kinds: Iterable[Kind | str] | None = None,
    argv: Sequence[str] = (),
    cwd: Path | None = None,
) -> Resolved:
    """Resolve a run: merge the layers, then validate the options of its components.

    ``flags`` has dotted keys of the run (``"encoder"``, ``"dataset"``, ``"stage.steps"``); None means not given.
    ``kinds`` are the kinds to keep and validate: by default those that the stage's config model lists as ``kinds``,
    else every kind that is set; ``()`` stops after the first phase. Raises ConfigError, MissingError, UnavailableError.
    """
    cwd = Path.cwd() if cwd is None else cwd
    env = os.environ if env is None else env
    registry.check_required()
    layers = [
        command_line_layer(flags or {}, sets),
        environment_layer(env, registry.names("dataset")),
    ]
    for reference in reversed(list(recipes)):
        layers += recipe_layers(reference, cwd)
    layers += _model_layers(layers, cwd)
    layers += [defaults_layer(layer.origin, layer.defaults) for layer in registry.settings.layers]

    layers = _drop_other_choices(layers)
    layers = _derive(layers, registry, cwd)
    layers = _insert_options(layers, registry.settings)
    run = _merge(layers)
    resolved = _collect(run, layers, registry, argv, cwd)
    if kinds is None:
        kinds = _stage_kinds(resolved, registry)
    kinds = [Kind(kind) for kind in kinds]
    return resolve_components(resolved, registry, kinds) if kinds else resolved


def resolve_components(resolved: Resolved, registry: Registry, kinds: Iterable[Kind | str]) -> Resolved:
    """Validate and complete the tables of ``kinds``; tables of other kinds leave the run.

    Choosing a component on the command line that the run has no use for is an error. Raises ConfigError,
    MissingError (unknown name), UnavailableError (its dependencies are not installed).
    """
    wanted = {str(kind) for kind in kinds}
    _check_names(resolved, registry, wanted)
    for kind in (*CHOICES, "dataset"):
        if kind in wanted:
            _complete(resolved, registry, kind)
        else:
            _leave_out(resolved, kind)
    _prune(resolved)
    return resolved


def _check_names(resolved: Resolved, registry: Registry, kinds: set[str]) -> None:
    """Every name before any option: a misspelt component is the more likely mistake."""
    for kind in CHOICES:
        table = resolved.values.get(kind)
        if kind in kinds and table is not None:
            for name in (table["name"], *_others(kind, table)):
                _get(resolved, registry, kind, name)
    for name in (*(resolved.values.get("dataset") or {}), *resolved.left_out) if "dataset" in kinds else ():
        _get(resolved, registry, "dataset", name)


def _complete(resolved: Resolved, registry: Registry, kind: str) -> None:
    table = resolved.values.get(kind)
    if kind == "stage" and table is None:
        raise ConfigError(f"no stage is chosen; use --stage with one of: {', '.join(registry.names(kind))}")
    if kind == "dataset":
        for name, options in dict(table or {}).items():
            values = _validated(resolved, registry, kind, name, options)
            resolved.values[kind][name] = {"weight": options["weight"], **values}
    elif table is not None:
        values = _validated(resolved, registry, kind, table["name"], table)
        others = {
            name: _validated(resolved, registry, kind, name, options, prefix=f"{kind}.{ALSO}.{name}")
            for name, options in _others(kind, table).items()
        }
        resolved.values[kind] = {"name": table["name"], **values, **({ALSO: others} if others else {})}


def _others(kind: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """The trackers beside the first one, each with its options. Of other kinds there is one."""
    return dict(table.get(ALSO, {})) if kind == "tracker" else {}


def _validated(
    resolved: Resolved,
    registry: Registry,
    kind: str,
    name: str,
    options: Mapping[str, Any],
    prefix: str = "",
) -> dict[str, Any]:
    """The component's options with its defaults filled in, as JSON values; notes origins and the provider."""
    prefix = prefix or (f"{kind}.{name}" if kind == "dataset" else kind)
    config = registry.make_config(kind, name, options, resolved.origins, prefix=prefix)
    values = config.model_dump(mode="json")
    prefix += "."
    for key, _ in flatten(values, prefix):
        parts = key.split(".")
        above = (".".join(parts[:end]) for end in range(len(parts), len(prefix.split(".")) - 1, -1))
        if not any(known in resolved.origins for known in above):
            resolved.origins[key] = "default"
    resolved.add_component(registry, kind, name)
    return values


def _get(resolved: Resolved, registry: Registry, kind: str, name: str) -> ComponentSpec[Any, Any]:
    """``registry.get``, whose error says where the name came from."""
    try:
        return registry.get(kind, name)
    except (MissingError, ConfigError) as error:
        key = f"{kind}.{name}" if kind == "dataset" else f"{kind}.name"
        origin = resolved.origins[key] if key in resolved.origins else resolved.left_out[name]
        raise type(error)(f"{error.message}   [from {origin}]", hint=error.hint) from None


def _leave_out(resolved: Resolved, kind: str) -> None:
    said = [origin for key, origin in resolved.origins.items() if key == kind or key.startswith(f"{kind}.")]
    if resolved.values.get(kind) and any(origin.startswith("--") for origin in said):
        stage = (resolved.values.get("stage") or {}).get("name")
        raise ConfigError(f"stage '{stage}' uses no {kind}, but {said[0]} sets one")
    resolved.values.pop(kind, None)


def _stage_kinds(resolved: Resolved, registry: Registry) -> tuple[Any, ...]:
    """``kinds`` of the stage's config model; every kind when there is no stage or it does not say."""
    stage = resolved.values.get("stage")
    everything = (*CHOICES, "dataset") if stage else (*CHOICES[1:], "dataset")
    if not stage:
        return everything
    kinds = getattr(_get(resolved, registry, "stage", stage["name"]).load_config(), "kinds", None)
    return everything if kinds is None else ("stage", *kinds)


def _model_layers(layers: list[Layer], cwd: Path) -> list[Layer]:
    """The components of the model that ``from`` names; a directory that is no model is its reader's error."""
    start = next((layer.data["from"] for layer in layers if layer.data.get("from")), None)
    if not isinstance(start, str):
        return []
    path = cwd / start / "config.json"
    try:
        components = json.loads(path.read_text(encoding="utf-8")).get("components", {})
    except (OSError, ValueError, AttributeError):
        return []  # reported with its reason where the model is loaded, before anything runs
    return [model_layer(f"{start.rstrip('/')}/config.json", components)] if isinstance(components, dict) else []


def _drop_other_choices(layers: list[Layer]) -> list[Layer]:
    """Remove from each layer what it says about a component that a higher layer replaced."""
    kept = [Layer(layer.origin, dict(layer.data), layer.origins, layer.datasets) for layer in layers]
    for kind in CHOICES:
        names = [layer.data.get(kind, {}).get("name") for layer in layers]
        chosen = next((name for name in names if name is not None), None)
        chooser = names.index(chosen) if chosen is not None else len(layers)
        for index in range(chooser + 1, len(layers)):
            # A table without a name is about the component that the next lower layer names.
            meant = next((name for name in names[index:] if name is not None), chosen)
            if meant != chosen:
                kept[index].data.pop(kind, None)
            elif kind == "tracker" and kind in kept[index].data:  # a choice of trackers replaces all of them
                kept[index].data[kind] = {key: value for key, value in kept[index].data[kind].items() if key != ALSO}
    allowed: set[str] | None = None
    for layer in kept:
        tables = layer.data.get("dataset")
        if allowed is not None and tables is not None:
            layer.data["dataset"] = {name: table for name, table in tables.items() if name in allowed}
        elif layer.datasets is not None:
            allowed = set(tables or ())
    return kept


def _derive(layers: list[Layer], registry: Registry, cwd: Path) -> list[Layer]:
    """Insert what the stage's dial implies, where its config model has one.

    That is an attribute ``dial``, the name of an option of the stage, and a method ``derive(run, above, cwd)``, which
    returns an origin and values in the shape of a recipe, or None. ``run`` is what all layers say, ``above`` what the
    dial's layer and higher ones say.
    """
    name = next((stage for layer in layers if (stage := layer.data.get("stage", {}).get("name"))), None)
    if name not in registry.names("stage"):
        return layers  # missing or unknown, which is said later
    config = registry.get("stage", name).load_config()
    dial = getattr(config, "dial", None)
    places = (n for n, layer in enumerate(layers) if layer.data.get("stage", {}).get(dial) is not None)
    place = next(places, None) if dial else None
    if place is None:
        return layers
    run: dict[str, Any] = {}
    above: dict[str, Any] = {}
    for layer in reversed(layers):
        _update(run, layer.data)
    for layer in reversed(layers[: place + 1]):
        _update(above, layer.data)
    derived = config.derive(run, above, cwd)  # type: ignore[attr-defined]  # where there is a dial, there is this
    if derived is None:
        return layers
    return _drop_other_choices([*layers[: place + 1], Layer(*derived), *layers[place + 1 :]])


def _insert_options(layers: list[Layer], settings: PluginSettings) -> list[Layer]:
    """Add ``[options.KIND.NAME]`` of the components that were chosen, each above its file's ``[defaults]``."""
    chosen: dict[str, str] = {}
    for layer in reversed(layers):
        chosen |= {kind: layer.data[kind]["name"] for kind in CHOICES if layer.data.get(kind, {}).get("name")}
    datasets = {name for layer in layers for name in layer.data.get("dataset", {})}
    trackers = {name for layer in layers for name in layer.data.get("tracker", {}).get(ALSO, {})}
    first = len(layers) - len(settings.layers)
    result = layers[:first]
    for layer, given in zip(layers[first:], settings.layers, strict=True):
        data: dict[str, Any] = {}
        for kind, name in chosen.items():
            table = _options(given.options, kind, name)
            if table:
                data[kind] = table
        tables = {name: _options(given.options, "dataset", name) for name in sorted(datasets)}
        tables = {name: table for name, table in tables.items() if table}
        if tables:
            data["dataset"] = tables
        others = {name: table for name in sorted(trackers) if (table := _options(given.options, "tracker", name))}
        if others:
            data["tracker"] = {**data.get("tracker", {}), ALSO: others}
        result += [Layer(given.origin, data), layer] if data else [layer]
    return result


def _options(options: Mapping[str, Any], kind: str, name: str) -> dict[str, Any]:
    tables = options.get(kind, {})
    return dict(tables.get(name) or tables.get(name.rpartition("/")[2]) or {})


def _merge(layers: list[Layer]) -> Run:
    """The first phase. Raises ConfigError with the origin of each wrong value."""

    class Merged(Run):
        @classmethod
        def settings_customise_sources(  # type: ignore[override]
            cls, settings_cls: type[BaseSettings], **_: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return tuple(LayerSource(settings_cls, layer.data) for layer in layers)

    try:
        return Merged()
    except ValidationError as error:
        values: dict[str, Any] = {}
        for layer in reversed(layers):
            _update(values, layer.data)
        lines = describe(error, values, Run, origins=_origins(layers))
        raise ConfigError(f"{len(lines)} problem(s) in the run:\n  " + "\n  ".join(lines)) from None


def _update(low: dict[str, Any], high: Mapping[str, Any]) -> None:
    """The merge that the sources make, for messages about values that do not validate."""
    for key, value in high.items():
        if isinstance(value, Mapping) and isinstance(low.get(key), dict):
            _update(low[key], value)
        else:
            low[key] = dict(value) if isinstance(value, Mapping) else value


def _origins(layers: list[Layer]) -> dict[str, str]:
    origins: dict[str, str] = {}
    for layer in reversed(layers):
        origins |= {key: layer.origin_of(key) for key, _ in flatten(layer.data)}
        origins |= {f"dataset.{name}": layer.origin_of(f"dataset.{name}") for name in layer.datasets or ()}
    return origins


def _collect(run: Run, layers: list[Layer], registry: Registry, argv: Sequence[str], cwd: Path) -> Resolved:
    values = run.model_dump(mode="json", by_alias=True)
    for kind in CHOICES:
        table = values[kind]
        if table is not None and table["name"] == NONE:
            extra = [key for key in table if key != "name"]
            if extra:
                raise ConfigError(f"{kind}.{extra[0]} = {table[extra[0]]!r}: there is no {kind} to set this for")
            values[kind] = None
    origins = _origins(layers)
    values["dataset"], left_out = _weights(values["dataset"], origins)
    for name in values["dataset"]:
        origins.setdefault(f"dataset.{name}", origin_of(f"dataset.{name}", origins))
    for kind in CHOICES:
        if values[kind] is None and f"{kind}.name" in origins:
            origins[kind] = origins.pop(f"{kind}.name")
    history: dict[str, list[tuple[str, Any]]] = {}
    for layer in layers:
        for key, value in flatten(layer.data):
            history.setdefault(key, []).append((layer.origin_of(key), value))
    for key, _ in flatten(values):
        origins.setdefault(key, "default")
    resolved = Resolved.new(relative_values(values, cwd), origins, registry=registry, argv=argv, cwd=cwd)
    resolved.history, resolved.left_out = history, left_out
    _prune(resolved)
    return resolved


def _prune(resolved: Resolved) -> None:
    """Forget origins of keys that are no longer in the run."""
    keys = {key for key, _ in flatten(resolved.values)}
    keys |= {f"dataset.{name}" for name in resolved.values.get("dataset") or {}}
    resolved.origins = {key: resolved.origins[key] for key in sorted(resolved.origins) if key in keys}


def _weights(
    tables: dict[str, dict[str, Any]], origins: Mapping[str, str]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Each data set with its weight first; beside them those that weight 0 leaves out, and where it was said."""
    result, left_out = {}, {}
    for name, table in tables.items():
        given = {key: table[key] for key in ("weight",) if key in table}
        try:
            weight = Weight.model_validate(given).weight
        except ValidationError as error:
            lines = describe(error, given, Weight, prefix=f"dataset.{name}", origins=origins)
            raise ConfigError("\n  ".join(lines)) from None
        if weight > 0:
            result[name] = {**table, "weight": weight}
        else:
            left_out[name] = origin_of(f"dataset.{name}.weight", origins)
    return result, left_out
