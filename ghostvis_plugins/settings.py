"""Which plugins to load and what is chosen when nobody says: ``plugins.toml`` and a few environment variables.

Three files are read, the nearest wins: ``./plugins.toml`` (the project), ``plugins.toml`` in the user's
configuration folder, and the packaged one. This runs before ``ghostvis --help`` can be printed, so it uses
``tomllib`` and plain dataclasses; component options are validated later, by the component's own model.

    schema = 1
    [plugins]
    disabled = ["ghostvis-foo"]                  # distribution or entry-point names
    enabled  = ["ghostvis-dino"]                 # an allow-list; [] means built-ins only
    required = ["ghostvis-dino>=0.3"]            # checked before a run
    files    = ["my_encoder.py"]                 # one-off plugins, relative to this file
    prefer   = { "encoder:siglip" = "ghostvis" } # settles a name that two plugins provide
    [defaults]
    encoder = "efficientnet_lite"
    [options.encoder.efficientnet_lite]
    image_size = 224

Lists of one file replace those of a farther file, except ``disabled`` and ``files``, which add up. The
environment comes on top: ``GHOSTVIS_PLUGINS`` (allow-list, empty for built-ins only), ``GHOSTVIS_DISABLE_PLUGINS``
(both comma-separated), ``GHOSTVIS_PLUGIN_FILES`` (separated like ``PATH``) and ``GHOSTVIS_STRICT_PLUGINS=1``, which
raises what a plugin raises. The flags ``--no-plugins`` and
``--plugin`` set these variables, so that every worker process loads what its parent loaded.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .api import Kind
from .errors import ConfigError, did_you_mean

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds the four packages: a checkout, or site-packages."""

SCHEMA = 1
CONTROL_ENV = (
    "GHOSTVIS_CACHE",
    "GHOSTVIS_CONFIG_DIR",
    "GHOSTVIS_DEBUG",
    "GHOSTVIS_DISABLE_PLUGINS",
    "GHOSTVIS_PLUGINS",
    "GHOSTVIS_PLUGIN_FILES",
    "GHOSTVIS_STRICT_PLUGINS",
)
"""Environment variables that are not configuration values of a run."""

_LISTS = ("enabled", "disabled", "required", "files")


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """``[defaults]`` and ``[options]`` of one file; ``origin`` is what errors and ``config explain`` call it."""

    origin: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSettings:
    """Everything the plugin manager has to know before it imports a plugin."""

    enabled: tuple[str, ...] | None = None  # None: every installed plugin
    disabled: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    prefer: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False
    layers: tuple[Defaults, ...] = ()  # nearest first


def load_settings(
    env: Mapping[str, str] | None = None, *, cwd: Path | None = None, user_dir: Path | None = None
) -> PluginSettings:
    """Read the three files and the environment. Raises ConfigError with the file's name and the line."""
    env = os.environ if env is None else env
    cwd = Path.cwd() if cwd is None else cwd
    found = _files(cwd, user_dir or user_config_dir(env))
    tables = [(origin, path, read_toml(path, label=origin)) for origin, path in found]
    for origin, _, table in tables:
        _check(table, origin)
    plugins = [(path, table.get("plugins", {})) for _, path, table in tables]

    enabled = next((tuple(table["enabled"]) for _, table in plugins if "enabled" in table), None)
    disabled = [name for _, table in plugins for name in table.get("disabled", ())]
    files = [str((path.parent / name).resolve()) for path, table in plugins for name in table.get("files", ())]
    if "GHOSTVIS_PLUGINS" in env:
        enabled = _words(env["GHOSTVIS_PLUGINS"])
        files = [] if not enabled else files  # built-ins only: the safe mode
    disabled += _words(env.get("GHOSTVIS_DISABLE_PLUGINS", ""))
    files += [str((cwd / name).resolve()) for name in env.get("GHOSTVIS_PLUGIN_FILES", "").split(os.pathsep) if name]
    prefer: dict[str, str] = {}
    for _, table in reversed(plugins):
        prefer |= table.get("prefer", {})
    return PluginSettings(
        enabled=enabled,
        disabled=tuple(dict.fromkeys(disabled)),
        required=next((tuple(table["required"]) for _, table in plugins if "required" in table), ()),
        files=tuple(dict.fromkeys(files)),
        prefer=prefer,
        strict=env.get("GHOSTVIS_STRICT_PLUGINS", "") not in ("", "0"),
        layers=tuple(
            Defaults(origin=origin, defaults=table.get("defaults", {}), options=table.get("options", {}))
            for origin, _, table in tables
        ),
    )


def user_config_dir(env: Mapping[str, str] | None = None) -> Path:
    """``GHOSTVIS_CONFIG_DIR``, else the platform's folder for user configuration."""
    env = os.environ if env is None else env
    if env.get("GHOSTVIS_CONFIG_DIR"):
        return Path(env["GHOSTVIS_CONFIG_DIR"])
    import platformdirs

    return Path(platformdirs.user_config_dir("ghostvis"))


def packaged_file() -> Path:
    """The packaged ``plugins.toml``: inside the package in a wheel, at the root in a checkout."""
    inside = ROOT / "ghostvis_plugins" / "plugins.toml"
    return inside if inside.is_file() else ROOT / "plugins.toml"


def read_toml(path: Path, *, label: str = "") -> dict[str, Any]:
    """Parse one TOML file; the error names the file, which ``tomllib`` alone does not."""
    label = label or path.name
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{label}: not valid TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{label}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ConfigError(f"{label}: cannot be read: {error.strerror}") from error


def _files(cwd: Path, user_dir: Path) -> list[tuple[str, Path]]:
    """``(origin, path)`` of the files that exist, nearest first; a file is never read twice."""
    packaged = packaged_file()
    candidates = [
        ("plugins.toml", cwd / "plugins.toml"),
        ("user plugins.toml", user_dir / "plugins.toml"),
        ("packaged plugins.toml", packaged),
    ]
    seen: dict[Path, str] = {}
    for origin, path in candidates:
        if path.is_file():
            seen.setdefault(path.resolve(), origin)
    return [(origin, path) for path, origin in seen.items()]


def _check(table: Mapping[str, Any], origin: str) -> None:
    """Shape of one file, so that nothing in it is ignored in silence."""
    known: dict[str, type] = {"schema": int, "plugins": dict, "defaults": dict, "options": dict}
    _keys(table, known, origin, "")
    if table.get("schema", SCHEMA) != SCHEMA:
        raise ConfigError(f"{origin}: schema = {table['schema']}, but this ghostvis reads schema {SCHEMA}")
    plugins = table.get("plugins", {})
    _keys(plugins, {**dict.fromkeys(_LISTS, list), "prefer": dict}, origin, "plugins.")
    for key in _LISTS:
        if any(not isinstance(item, str) for item in plugins.get(key, ())):
            raise ConfigError(f"{origin}: plugins.{key} must be a list of names")
    kinds: dict[str, type] = {kind.value: object for kind in Kind}
    _keys(table.get("defaults", {}), kinds, origin, "defaults.")
    _keys(table.get("options", {}), dict.fromkeys(kinds, dict), origin, "options.")
    for kind, components in table.get("options", {}).items():
        _keys(components, dict.fromkeys(components, dict), origin, f"options.{kind}.")


def _keys(table: Mapping[str, Any], known: Mapping[str, type], origin: str, prefix: str) -> None:
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{origin}: {prefix}{key}: unknown key.{did_you_mean(key, known)}")
        if not isinstance(value, known[key]):
            wanted = {list: "a list", dict: "a table", int: "a number"}[known[key]]
            raise ConfigError(f"{origin}: {prefix}{key} must be {wanted}, not {value!r}")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def warn(message: str) -> None:
    """One line for people, on stderr."""
    print(f"ghostvis: warning: {message}", file=sys.stderr)
