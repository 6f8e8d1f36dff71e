"""Finding plugins and loading each one so that it can only hurt itself.

``pluggy``'s own entry-point loader imports every installed plugin without a ``try``: one package with a missing
dependency then takes down every command, including the one that would remove it. Here names are filtered
*before* import, whatever a plugin raises (``SystemExit`` too) becomes its recorded error, and a plugin whose
declaration is wrong in any part contributes nothing at all.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pluggy

from .api import API_VERSION, ComponentSpec, Kind
from .errors import did_you_mean
from .settings import ROOT, PluginSettings

GROUP = "ghostvis"
OWN_DIST = "ghostvis"
BUILTINS = {"components": "components.builtin", "stages": "stages.builtin"}
"""What our own entry points say. Used by name when the distribution is not installed (a plain checkout)."""

HOOKS = ("ghostvis_components", "ghostvis_commands")
# fmt: off
HEAVY = frozenset((
    "torch", "torchvision", "numpy", "scipy", "pandas", "matplotlib", "PIL", "timm", "transformers", "tensorflow",
    "jax", "pydantic_settings", "textual", "webdataset", "datasets", "cv2",
))
# fmt: on
"""Modules that a plugin must not import before its component is chosen; reported, not forbidden."""

Status = Literal["active", "broken", "disabled"]


@dataclass(slots=True, kw_only=True)
class PluginInfo:
    """What ``ghostvis plugins list`` shows of one plugin."""

    name: str  # of the entry point, or of the file
    dist: str  # distribution, or the file's name
    version: str = ""
    target: str = ""  # module the entry point names, or the file's path
    builtin: bool = False
    status: Status = "active"
    error: str = ""
    import_ms: float = 0.0
    heavy: tuple[str, ...] = ()
    components: tuple[str, ...] = ()  # "kind:name"
    commands: bool = False

    def answers_to(self, word: str) -> bool:
        """Whether a list in plugins.toml that says ``word`` means this plugin."""
        return normalise(word) in (normalise(self.name), normalise(self.dist))


class PluginError(Exception):
    """A plugin that declares itself wrongly."""


@dataclass(slots=True)
class Candidate:
    """A plugin that was found and not yet imported."""

    info: PluginInfo
    load: Callable[[], Any]


def normalise(name: str) -> str:
    """Distribution names compare without case, and ``-``, ``_`` and ``.`` are the same (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def discover(settings: PluginSettings) -> Iterator[Candidate]:
    """Built-ins, then installed third parties by name, then one-off files. Imports none of them."""
    own, others = [], []
    for point in metadata.entry_points(group=GROUP):
        dist = point.dist
        info = PluginInfo(
            name=point.name,
            dist=dist.name if dist else "(unknown)",
            version=dist.version if dist else "",
            target=point.value,
        )
        info.builtin = normalise(info.dist) == OWN_DIST and BUILTINS.get(point.name) == point.value
        if info.builtin:
            own.append(Candidate(info, _builtin(point.value)))
        else:
            others.append(Candidate(info, point.load))
    for name in sorted(BUILTINS.keys() - {candidate.info.name for candidate in own}):
        info = PluginInfo(name=name, dist=OWN_DIST, version=_own_version(), target=BUILTINS[name], builtin=True)
        own.append(Candidate(info, _builtin(BUILTINS[name])))
    yield from sorted(own, key=lambda candidate: candidate.info.name)
    yield from sorted(others, key=lambda candidate: (normalise(candidate.info.dist), candidate.info.name))
    for text in settings.files:
        path = Path(text)
        info = PluginInfo(name=path.stem, dist=path.name, target=text, version=_file_version(path))
        yield Candidate(info, partial(_load_file, path))


def is_disabled(info: PluginInfo, settings: PluginSettings) -> str:
    """Why a plugin is not to be imported; an empty string when it is. Built-ins always are."""
    if info.builtin:
        return ""
    if any(info.answers_to(word) for word in settings.disabled):
        return "named in 'disabled'"
    given_as_file = info.target in settings.files
    if settings.enabled is not None and not given_as_file and not any(map(info.answers_to, settings.enabled)):
        return "not named in 'enabled'" if settings.enabled else "third-party plugins are switched off"
    return ""


def load(candidate: Candidate, hooks: pluggy.PluginManager, *, strict: bool) -> list[ComponentSpec[Any, Any]]:
    """Import one plugin and collect its components. On any failure it is recorded as broken and gives none.

    ``strict`` raises the failure instead, for plugin authors and continuous integration.
    """
    info = candidate.info
    key = f"{info.dist}:{info.name}"
    before = set(sys.modules)
    start = time.perf_counter()
    try:
        # A plugin that prints while it is imported must not end up in somebody's --json.
        with contextlib.redirect_stdout(sys.stderr):
            plugin = candidate.load()
            _check_api(plugin)
            info.commands = "ghostvis_commands" in _implemented(plugin, hooks)
            hooks.register(plugin, key)
            specs = _collect(plugin, hooks)
    except (Exception, SystemExit) as error:
        if hooks.has_plugin(key):
            hooks.unregister(name=key)
        if strict:
            raise
        info.status, info.error, info.commands = "broken", one_line(error), False
        specs = []
    info.import_ms = round((time.perf_counter() - start) * 1000, 1)
    info.heavy = tuple(sorted((set(sys.modules) - before) & HEAVY))
    info.components = tuple(f"{spec.kind}:{spec.name}" for spec in specs)
    return specs


def one_line(error: BaseException) -> str:
    """``ModuleNotFoundError: No module named 'x'``: what is shown of an error in a table."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    if isinstance(error, SystemExit):
        return f"SystemExit: it called exit({error.code!r}) while it was imported"
    return text if isinstance(error, PluginError) else f"{name}: {text}" if text else name


def _check_api(plugin: Any) -> None:
    wanted = getattr(plugin, "GHOSTVIS_API", API_VERSION)
    if wanted != API_VERSION:
        raise PluginError(f"it is written for plugin API {wanted!r}, this ghostvis has {API_VERSION}")


def _implemented(plugin: Any, hooks: pluggy.PluginManager) -> set[str]:
    """The hooks a plugin implements. pluggy ignores a misspelt one until it fails every plugin at once."""
    found = set()
    for attribute in dir(plugin):
        options = hooks.parse_hookimpl_opts(plugin, attribute)
        if options is None:
            continue
        name = options.get("specname") or attribute
        if name not in HOOKS:
            raise PluginError(f"unknown hook '{name}'.{did_you_mean(name, HOOKS)} Known: {', '.join(HOOKS)}")
        found.add(name)
    if not found:
        bare = [name for name in HOOKS if callable(getattr(plugin, name, None))]
        raise PluginError(f"'{bare[0]}' lacks @hookimpl" if bare else f"it implements none of {', '.join(HOOKS)}")
    return found


def _collect(plugin: Any, hooks: pluggy.PluginManager) -> list[ComponentSpec[Any, Any]]:
    others = [other for other in hooks.get_plugins() if other is not plugin]
    specs: list[ComponentSpec[Any, Any]] = []
    for result in hooks.subset_hook_caller("ghostvis_components", others)():
        if isinstance(result, ComponentSpec) or not hasattr(result, "__iter__"):
            raise PluginError(f"ghostvis_components must yield ComponentSpec, it returned {type(result).__name__}")
        for spec in result:
            check_spec(spec)
            if any((spec.kind, spec.name) == (other.kind, other.name) for other in specs):
                raise PluginError(f"it provides {spec.kind} '{spec.name}' twice")
            specs.append(spec)
    return specs


def check_spec(spec: Any) -> None:
    """Raises PluginError for anything that is not a usable ComponentSpec. Imports no target."""
    if not isinstance(spec, ComponentSpec):
        raise PluginError(f"ghostvis_components must yield ComponentSpec, not {type(spec).__name__} ({spec!r})")
    if spec.kind not in list(Kind):
        raise PluginError(f"component '{spec.name}' has the unknown kind {spec.kind!r}")
    if not isinstance(spec.name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", spec.name):
        raise PluginError(f"{spec.kind} {spec.name!r}: a name is letters, digits, '_', '-' and '.'")
    if spec.kind == Kind.dataset and "." in spec.name:
        raise PluginError(f"dataset '{spec.name}': a data set's name is part of dotted keys and cannot hold a '.'")
    if spec.name == "none":
        raise PluginError(f"{spec.kind} 'none': this name means that there is no {spec.kind}")
    for role, target in (("config", spec.config), ("build", spec.build)):
        if isinstance(target, str) and not re.fullmatch(r"[\w.]+:\w+", target):
            raise PluginError(f"{spec.kind} '{spec.name}': {role} {target!r} is not 'package.module:attribute'")


def _builtin(module: str) -> Callable[[], ModuleType]:
    """Import a built-in by name and make sure that it is ours: its package has a very common name."""

    def load() -> ModuleType:
        package = module.partition(".")[0]
        if package not in sys.modules and str(ROOT) not in sys.path:
            sys.path.append(str(ROOT))  # a checkout that is neither installed nor the working directory
        found = importlib.import_module(module)
        if not Path(found.__file__ or "").resolve().is_relative_to(ROOT):
            raise PluginError(f"'{module}' is {found.__file__}, which is not part of ghostvis")
        return found

    return load


def _load_file(path: Path) -> ModuleType:
    """Import ``path`` as the module named like the file, so that ``"my_encoder:build"`` is a valid target."""
    if not path.is_file():
        raise PluginError(f"there is no file '{path.name}'")
    name = path.stem
    if not name.isidentifier():
        raise PluginError(f"'{path.name}' must be named like a Python module")
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    if known is not None or importlib.util.find_spec(name) is not None:
        raise PluginError(f"'{path.name}' has the name of an installed module; rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"'{path.name}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _file_version(path: Path) -> str:
    import hashlib

    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}" if path.is_file() else ""


def _own_version() -> str:
    from .versions import ghostvis_version

    return ghostvis_version()
