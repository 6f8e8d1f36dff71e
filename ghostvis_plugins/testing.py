"""For authors of plugins: one assertion, and two pytest fixtures that are there once ghostvis is installed.

    from ghostvis_plugins.testing import assert_component_ok

    def test_component():
        for spec in my_package.ghostvis_components():
            assert_component_ok(spec)

The fixtures start from an empty registry: nothing that happens to be installed can change a test's result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from .conformance import Problem, check_component

if TYPE_CHECKING:
    from .api import ComponentSpec
    from .manager import PluginInfo, Registry

__all__ = ["Problem", "assert_component_ok", "check_component", "ghostvis_register", "ghostvis_registry"]


def assert_component_ok(spec: ComponentSpec[Any, Any], *, options: Mapping[str, Any] | None = None) -> None:
    """Fail with every broken promise of a component (:func:`~ghostvis_plugins.conformance.check_component`)."""
    problems = check_component(spec, options=options)
    lines = "\n".join(f"  {problem.check}: {problem.message}" for problem in problems)
    assert not problems, f"{spec.kind} '{spec.name}' does not conform:\n{lines}"


@pytest.fixture
def ghostvis_registry() -> Registry:
    """A registry without any plugin, not even the built-ins."""
    from .manager import Registry

    return Registry.from_specs([])


@pytest.fixture
def ghostvis_register(ghostvis_registry: Registry) -> Callable[[Any], PluginInfo]:
    """Register a plugin module or object in ``ghostvis_registry``; whatever is wrong with it is raised."""

    def register(plugin: Any) -> PluginInfo:
        return ghostvis_registry.register(plugin, name=getattr(plugin, "__name__", type(plugin).__name__))

    return register
