"""The two hooks of the project. A new kind of component needs no new hook: ``kind`` is a field."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import typer

    from .api import ComponentSpec

hookspec = pluggy.HookspecMarker("ghostvis")
hookimpl = pluggy.HookimplMarker("ghostvis")


@hookspec
def ghostvis_components() -> Iterable[ComponentSpec]:  # type: ignore[empty-body]
    """Yield the components this plugin provides. Called once per process; must not import torch."""


@hookspec
def ghostvis_commands(app: typer.Typer) -> None:
    """Add commands with ``app.command()`` or ``app.add_typer()``; import what they need in their bodies."""
