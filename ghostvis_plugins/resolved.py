"""A resolved run as a file: ``resolved.json``, the one thing a worker reads and a model directory keeps.

It holds every value with its origin, the distribution and version of each chosen component with its import targets,
the versions of ghostvis, Python and torch, the commit and the command line. It is meant to be handed on, so paths
inside the working directory are written relative to it and the home directory in the command line as ``~``; a path
elsewhere that the user gave as a value stays as given, because the run needs it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .api import Kind
from .errors import ConfigError, DataError
from .isolation import normalise
from .manager import Registry
from .settings import load_settings
from .versions import git_commit, versions

FORMAT_VERSION = 1
_KEYS = {
    "values": dict,
    "origins": dict,
    "components": dict,
    "plugins": dict,
    "plugin_files": list,
    "versions": dict,
    "argv": list,
}


@dataclass(slots=True, kw_only=True)
class Resolved:
    """One run, complete. ``values`` are plain JSON values; ``origins`` has their dotted keys."""

    values: dict[str, Any]
    origins: dict[str, str]
    components: dict[str, dict[str, str]] = field(default_factory=dict)  # "kind:name" → dist, version, targets
    plugins: dict[str, str] = field(default_factory=dict)  # distribution → version
    plugin_files: list[str] = field(default_factory=list)
    versions: dict[str, str | None] = field(default_factory=dict)
    git_commit: str | None = None
    argv: list[str] = field(default_factory=list)
    history: dict[str, list[tuple[str, Any]]] = field(default_factory=dict, compare=False)
    """Every layer's say on a key, highest first; for ``config explain``, not written to the file."""
    left_out: dict[str, str] = field(default_factory=dict, compare=False)
    """Data sets of weight 0, and where that was said; not written to the file."""

    @classmethod
    def new(
        cls, values: dict[str, Any], origins: dict[str, str], *, registry: Registry, argv: Sequence[str], cwd: Path
    ) -> Resolved:
        """A run of this process, with its versions and its command line."""
        return cls(
            values=values,
            origins=origins,
            plugin_files=[_relative(path, cwd) for path in registry.settings.files],
            versions=versions(),
            git_commit=git_commit(),
            argv=_argv(argv, cwd),
        )

    def add_component(self, registry: Registry, kind: Kind | str, name: str) -> None:
        """Note which plugin provides a chosen component."""
        spec, info = registry.get(kind, name), registry.provider(kind, name)
        self.components[f"{spec.kind}:{name}"] = {
            "dist": info.dist,
            "version": info.version,
            "config": _target(spec.config),
            "build": _target(spec.build),
        }
        self.plugins = dict(sorted({**self.plugins, info.dist: info.version}.items()))

    def to_json(self) -> str:
        """The text of ``resolved.json``. ``from_json`` and ``to_json`` give the same bytes back."""
        document = {"format_version": FORMAT_VERSION, **{key: getattr(self, key) for key in _KEYS}}
        document["git_commit"] = self.git_commit
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, label: str = "resolved.json") -> Resolved:
        """Raises DataError for anything that :meth:`to_json` did not write."""
        try:
            document = json.loads(text)
        except ValueError as error:
            raise DataError(f"{label}: not JSON: {error}") from error
        version = document.get("format_version") if isinstance(document, dict) else None
        if version != FORMAT_VERSION:
            raise DataError(f"{label}: format_version is {version!r}, this ghostvis reads {FORMAT_VERSION}")
        for key, wanted in _KEYS.items():
            if not isinstance(document.get(key), wanted):
                raise DataError(f"{label}: '{key}' is missing or not a {wanted.__name__}")
        return cls(**{key: document[key] for key in _KEYS}, git_commit=document.get("git_commit"))


def load_resolved(path: Path) -> Resolved:
    """Read a ``resolved.json``. Raises DataError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return Resolved.from_json(text, label=str(path))


def registry_for(resolved: Resolved) -> Registry:
    """The plugins a run was resolved with, for a worker: no others are imported.

    Raises MissingError when a component is gone, ConfigError when a plugin has another version now.
    """
    from dataclasses import replace

    settings = load_settings()
    files = [str(Path(name).resolve()) for name in resolved.plugin_files]
    used = tuple(name for name in resolved.plugins if normalise(name) != "ghostvis")
    registry = Registry.load(replace(settings, enabled=used, files=tuple(files)))
    for key, component in resolved.components.items():
        kind, _, name = key.partition(":")
        info = registry.provider(kind, name)
        if (info.dist, info.version) != (component["dist"], component["version"]):
            raise ConfigError(
                f"{kind} '{name}' was resolved with {component['dist']} {component['version']}, "
                f"but here it comes from {info.dist} {info.version}"
            )
    return registry


def relative_values(values: Any, cwd: Path) -> Any:
    """Every text that is an absolute path inside ``cwd``, relative to it."""
    if isinstance(values, Mapping):
        return {key: relative_values(value, cwd) for key, value in values.items()}
    if isinstance(values, list):
        return [relative_values(value, cwd) for value in values]
    return _relative(values, cwd) if isinstance(values, str) else values


def _relative(text: str, cwd: Path) -> str:
    inside = os.path.isabs(text) and Path(text).is_relative_to(cwd)
    return Path(text).relative_to(cwd).as_posix() if inside else text


def _argv(argv: Sequence[str], cwd: Path) -> list[str]:
    """The command line without this machine's folders."""
    if not argv:
        return []
    home = str(Path.home())
    shorter = [text.replace(f"{cwd}{os.sep}", "").replace(f"{home}{os.sep}", "~/") for text in argv[1:]]
    return [Path(argv[0]).name, *shorter]


def _target(target: Any) -> str:
    return target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"
