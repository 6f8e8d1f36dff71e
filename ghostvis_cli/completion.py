"""Shell completion that knows the registry. Imports no component, so it answers as fast as ``--help``."""

from __future__ import annotations

from collections.abc import Callable

Completer = Callable[[str], list[tuple[str, str]]]


def complete_component(kind: str) -> Completer:
    """Names of a kind with their summaries; the completer for ``--encoder`` and the like."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        from .session import registry

        return [(spec.name, spec.summary) for spec in registry().specs(kind) if spec.name.startswith(incomplete)]

    return complete


def complete_kind(incomplete: str) -> list[tuple[str, str]]:
    """Kinds of component."""
    from ghostvis_plugins import Kind

    return [(str(kind), "") for kind in Kind if kind.startswith(incomplete)]


def complete_plugin(incomplete: str) -> list[tuple[str, str]]:
    """Distributions that provide plugins."""
    from .session import registry

    return [(info.dist, info.status) for info in registry().plugins if info.dist.startswith(incomplete)]


def complete_recipe(incomplete: str) -> list[tuple[str, str]]:
    """Packaged recipes."""
    from ghostvis_plugins.layers import recipe_names

    return [(name, "") for name in recipe_names() if name.startswith(incomplete)]
