"""Validation errors in plain words: key, value, what is wrong, where the value came from.

pydantic's own text shows union tags in the path, a URL and no origin; this walks the input instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from .errors import did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


def describe(
    error: ValidationError,
    data: Mapping[str, Any],
    model: type[BaseModel],
    *,
    prefix: str = "",
    origins: Mapping[str, str] | None = None,
) -> list[str]:
    """One line per problem: ``encoder.image_sise = 3: unknown key; did you mean …?   [from align.toml]``."""
    origins = origins or {}
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        path = _path(problem["loc"], data, missing=problem["type"] == "missing")
        key = ".".join([prefix, *path] if prefix else path)
        origin = origin_of(key, origins)
        suffix = f"   [from {origin}]" if origin else ""
        if problem["type"] == "missing":
            lines.append(f"{key}: a value is required{suffix}")
        elif problem["type"] == "extra_forbidden":
            parent = ".".join(key.split(".")[:-1])
            known = _fields(model, path[:-1])
            hint = did_you_mean(path[-1], known).strip()
            if hint:
                name = hint.split("'")[1]
                text = f"unknown key; did you mean {f'{parent}.{name}' if parent else name}?"
            else:
                text = f"unknown key; known: {', '.join(known) or 'none'}"
            lines.append(f"{key} = {show(problem['input'])}: {text}{suffix}")
        else:
            message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            value = f" = {show(problem['input'])}" if path else ""
            lines.append(f"{key or 'values'}{value}: {message}{suffix}")
    return list(dict.fromkeys(lines))


def show(value: Any) -> str:
    """A value on one line, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def origin_of(key: str, origins: Mapping[str, str]) -> str:
    """The origin of a dotted key, or of the nearest table or the first value around it."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in origins:
            return origins[".".join(parts[:end])]
    inside = [origin for known, origin in origins.items() if key and known.startswith(f"{key}.")]
    return inside[0] if inside else ""


def _path(location: tuple[int | str, ...], data: Any, *, missing: bool) -> list[str]:
    """The location as keys of the input; what pydantic adds for unions and the like is left out."""
    path: list[str] = []
    for position, part in enumerate(location):
        inside = part in data if isinstance(data, Mapping) else isinstance(data, list) and isinstance(part, int)
        if inside:
            data = data[part]
        elif not (missing and position == len(location) - 1):
            continue
        path.append(str(part))
    return path


def _fields(model: Any, path: list[str]) -> list[str]:
    """Keys that are allowed at ``path`` inside a model; none when that is not known."""
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        nested = [] if field is None else [field.annotation, *get_args(field.annotation)]
        model = next((item for item in nested if hasattr(item, "model_fields")), None)
    fields = getattr(model, "model_fields", {})
    return [field.alias or name for name, field in fields.items()]
