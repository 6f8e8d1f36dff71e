"""The registry: every component of every plugin, by kind and name.

Loading is eager but cheap: plugins yield strings. Third parties are imported even when only a built-in is asked
for, because two providers of one name must be reported whichever is asked first; ``--no-plugins`` avoids it.
A name that two plugins provide is an error only when it is used, and the user decides, never the import order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

from . import hookspecs
from .api import ComponentSpec, Kind
from .errors import ConfigError, MissingError, did_you_mean
from .isolation import PluginInfo, check_spec, discover, is_disabled, load, normalise, one_line
from .settings import PluginSettings, load_settings

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["PluginInfo", "Registry"]

RESERVED = {Kind.dataset: ("name", "weight"), Kind.tracker: ("name", "also")}
"""Keys of a component's table that are ours and not the component's."""


class Registry:
    """Components by ``(kind, name)``, the plugins they come from, and what went wrong while loading."""

    def __init__(self, settings: PluginSettings | None = None) -> None:
        self.settings = settings or PluginSettings()
        self.plugins: list[PluginInfo] = []
        self.warnings: list[str] = []
        self.hooks = pluggy.PluginManager("ghostvis")
        self.hooks.add_hookspecs(hookspecs)
        self._providers: dict[tuple[Kind, str], list[tuple[ComponentSpec[Any, Any], PluginInfo]]] = {}

    @classmethod
    def load(cls, settings: PluginSettings | None = None) -> Registry:
        """Discover and load every enabled plugin. Raises ConfigError only for a broken ``plugins.toml``."""
        registry = cls(load_settings() if settings is None else settings)
        for candidate in discover(registry.settings):
            info = candidate.info
            registry.plugins.append(info)
            reason = is_disabled(info, registry.settings)
            if reason:
                info.status, info.error = "disabled", reason
            else:
                registry._add(load(candidate, registry.hooks, strict=registry.settings.strict), info)
        registry._warn_of_unknown_names()
        return registry

    @classmethod
    def from_specs(cls, specs: Iterable[ComponentSpec[Any, Any]]) -> Registry:
        """A registry of exactly these components. Nothing is discovered."""
        registry = cls()
        specs = list(specs)
        for spec in specs:
            check_spec(spec)
        info = PluginInfo(name="given", dist="(given)", components=tuple(f"{s.kind}:{s.name}" for s in specs))
        registry.plugins.append(info)
        registry._add(specs, info)
        return registry

    def register(self, plugin: Any, *, name: str = "given", strict: bool = True) -> PluginInfo:
        """Add a plugin object that is already imported, under the same rules as an installed one."""
        from .isolation import Candidate

        info = PluginInfo(name=name, dist=name)
        self.plugins.append(info)
        self._add(load(Candidate(info, lambda: plugin), self.hooks, strict=strict), info)
        return info

    def get(self, kind: Kind | str, name: str) -> ComponentSpec[Any, Any]:
        """The component. ``name`` may be ``distribution/name`` to pick one of several providers.

        Raises MissingError when nothing provides it, ConfigError when several plugins do.
        """
        return self._pick(kind, name)[0]

    def provider(self, kind: Kind | str, name: str) -> PluginInfo:
        """The plugin that :meth:`get` takes the component from."""
        return self._pick(kind, name)[1]

    def names(self, kind: Kind | str) -> list[str]:
        """Names of a kind, sorted; a contested name is listed once."""
        wanted = to_kind(kind)
        return sorted({name for known, name in self._providers if known is wanted})

    def specs(self, kind: Kind | str | None = None) -> list[ComponentSpec[Any, Any]]:
        """Every component by kind and name; a contested name gives one entry per provider."""
        return [spec for spec, _ in self.providers(kind)]

    def providers(self, kind: Kind | str | None = None) -> list[tuple[ComponentSpec[Any, Any], PluginInfo]]:
        """:meth:`specs`, each with its plugin."""
        wanted = None if kind is None else to_kind(kind)
        order = list(Kind)
        keys = sorted(self._providers, key=lambda key: (order.index(key[0]), key[1]))
        return [entry for key in keys if wanted in (None, key[0]) for entry in self._providers[key]]

    def conflicts(self) -> list[str]:
        """One message per name that several plugins provide and no ``prefer`` settles."""
        return [
            self._conflict(kind, name, entries)
            for (kind, name), entries in self._providers.items()
            if len(self._preferred(kind, name, entries)) > 1
        ]

    def make_config(
        self,
        kind: Kind | str,
        name: str,
        options: Mapping[str, Any],
        origins: Mapping[str, str] | None = None,
        prefix: str = "",
    ) -> BaseModel:
        """Validate options with the component's own model.

        ``options`` may be a table of a resolved run: its ``name`` (and ``weight`` of a data set) is left out.
        ``origins`` maps dotted keys such as ``encoder.image_size`` to where the value came from; ``prefix`` is what
        the keys begin with, by default the kind, and the name of a data set.
        Raises ConfigError that lists every problem with its key, its value and its origin.
        """
        from pydantic import ValidationError

        from .explain import describe

        spec = self.get(kind, name)
        model = spec.load_config()
        own = {key: value for key, value in options.items() if key not in RESERVED.get(spec.kind, ("name",))}
        try:
            return model.model_validate(own)
        except ValidationError as error:
            prefix = prefix or (f"{spec.kind}.{spec.name}" if spec.kind is Kind.dataset else str(spec.kind))
            problems = describe(error, own, model, prefix=prefix, origins=origins or {})
            raise ConfigError(
                f"{len(problems)} problem(s) in {spec.kind} '{spec.name}':\n  " + "\n  ".join(problems)
            ) from None

    def mark_broken(self, info: PluginInfo, error: BaseException) -> None:
        """Take everything of a plugin back after a later failure. In strict mode raises it instead."""
        if self.settings.strict:
            raise error
        info.status, info.error, info.components, info.commands = "broken", one_line(error), (), False
        for key in list(self._providers):
            self._providers[key] = [entry for entry in self._providers[key] if entry[1] is not info]
            if not self._providers[key]:
                del self._providers[key]

    def call_commands_hook(self, info: PluginInfo, app: Any) -> None:
        """Let one plugin add its commands to ``app``. Whatever it raises is raised."""
        plugin = self.hooks.get_plugin(f"{info.dist}:{info.name}")
        others = [other for other in self.hooks.get_plugins() if other is not plugin]
        self.hooks.subset_hook_caller("ghostvis_commands", others)(app=app)

    def check_required(self) -> None:
        """Raises MissingError when a plugin named in ``required`` is absent, too old or broken."""
        for text in self.settings.required:
            self._check_requirement(text)

    def _check_requirement(self, text: str) -> None:
        from packaging.requirements import InvalidRequirement, Requirement

        try:
            wanted = Requirement(text)
        except InvalidRequirement as error:
            raise ConfigError(f"plugins.required: '{text}' is not a requirement such as 'name>=1.0'") from error
        found = [info for info in self.plugins if normalise(info.dist) == normalise(wanted.name)]
        hint = f"Install it with: pip install '{text}'"
        if not found:
            raise MissingError(f"plugin '{text}' is required by plugins.toml and not installed", hint=hint)
        info = found[0]
        if not wanted.specifier.contains(info.version, prereleases=True):
            raise MissingError(f"plugin '{text}' is required by plugins.toml; installed is {info.version}", hint=hint)
        if info.status != "active":
            raise MissingError(f"plugin '{text}' is required by plugins.toml and {info.status}: {info.error}")

    def _add(self, specs: Iterable[ComponentSpec[Any, Any]], info: PluginInfo) -> None:
        for spec in specs:
            self._providers.setdefault((Kind(spec.kind), spec.name), []).append((spec, info))

    def _pick(self, kind: Kind | str, name: str) -> tuple[ComponentSpec[Any, Any], PluginInfo]:
        wanted = to_kind(kind)
        dist, _, bare = str(name).rpartition("/")
        entries = self._providers.get((wanted, bare), [])
        if dist:
            entries = [entry for entry in entries if entry[1].answers_to(dist)]
        if not entries:
            raise self._missing(wanted, str(name))
        entries = self._preferred(wanted, bare, entries)
        if len(entries) > 1:
            raise ConfigError(self._conflict(wanted, bare, entries))
        return entries[0]

    def _preferred(self, kind: Kind, name: str, entries: list[Any]) -> list[Any]:
        prefer = self.settings.prefer.get(f"{kind}:{name}")
        return [entry for entry in entries if prefer and entry[1].answers_to(prefer)] or entries

    def _conflict(self, kind: Kind, name: str, entries: list[Any]) -> str:
        dists = [info.dist for _, info in entries]
        other = next((info.dist for _, info in entries if not info.builtin), dists[0])
        return (
            f"{len(dists)} plugins provide {kind} '{name}': {' and '.join(dists)}. Choose one:\n"
            f"  spell it out:       {' or '.join(f'{dist}/{name}' for dist in dists)}\n"
            f'  in plugins.toml:    [plugins] prefer = {{ "{kind}:{name}" = "{dists[0]}" }}\n'
            f'  or switch one off:  [plugins] disabled = ["{other}"]'
        )

    def _missing(self, kind: Kind, name: str) -> MissingError:
        names = self.names(kind)
        listing = f"Available: {', '.join(names)}." if names else f"No plugin provides any {kind}."
        broken = [info.name for info in self.plugins if info.status == "broken"]
        hint = ""
        if broken:
            hint = f"({len(broken)} plugin(s) failed to load: {', '.join(broken)}; see 'ghostvis plugins list'.)"
        off = [info.name for info in self.plugins if info.status == "disabled"]
        if off:
            hint += f"{' ' if hint else ''}({len(off)} plugin(s) are disabled: {', '.join(off)}.)"
        return MissingError(f"No {kind} named '{name}'.{did_you_mean(name, names)} {listing}", hint=hint)

    def _warn_of_unknown_names(self) -> None:
        everyone = sorted({word for info in self.plugins for word in (info.name, info.dist)})
        lists = {"enabled": self.settings.enabled or (), "disabled": self.settings.disabled}
        for key, words in lists.items():
            for word in words:
                matches = [info for info in self.plugins if info.answers_to(word)]
                if not matches:
                    hint = did_you_mean(word, everyone)
                    self.warnings.append(f"plugins.{key} names '{word}', but no such plugin is installed.{hint}")
                elif key == "disabled" and all(info.builtin for info in matches):
                    self.warnings.append(f"plugins.disabled names '{word}', but built-ins cannot be switched off")
        for key, word in self.settings.prefer.items():
            kind, _, name = key.partition(":")
            if not any(f"{known}:{other}" == key for known, other in self._providers):
                self.warnings.append(f"plugins.prefer names '{key}', but there is no {kind or 'kind'} '{name}'")
            elif not any(info.answers_to(word) for info in self.plugins):
                self.warnings.append(f"plugins.prefer gives '{key}' to '{word}', but no such plugin is installed")


def to_kind(kind: Kind | str) -> Kind:
    """Raises MissingError with did-you-mean for a word that is no kind."""
    try:
        return Kind(kind)
    except ValueError:
        known = [str(known) for known in Kind]
        raise MissingError(
            f"No kind named '{kind}'.{did_you_mean(str(kind), known)} Kinds: {', '.join(known)}."
        ) from None
