"""What a stage is called with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghostvis_plugins.manager import Registry

if TYPE_CHECKING:
    from .distributed import Distributed


@dataclass(frozen=True, slots=True)
class RunContext:
    """One run in one process: the resolved values, who provides components, where to write, and the peers."""

    values: dict[str, Any]
    registry: Registry
    run_dir: Path
    dist: Distributed
    resume: bool = False

    @property
    def seed(self) -> int:
        return int(self.values.get("seed", 0))

    def table(self, kind: str, default: str) -> dict[str, Any]:
        """The chosen component of a kind, or the built-in default when nothing chose one."""
        return dict(self.values.get(kind) or {"name": default})

    def build(self, kind: str, table: dict[str, Any], **known: Any) -> Any:
        """Validate a component's options and build it with what only the run knows."""
        spec = self.registry.get(kind, table["name"])
        return spec.load_build()(self.registry.make_config(kind, table["name"], table), **known)

    def datasets(self, split: str) -> dict[str, tuple[Any, float]]:
        """Name → (data set of ``split``, weight), for the data sets of the mixture with a weight above 0."""
        return {
            name: (self.build("dataset", {**options, "name": name}, split=split), float(options.get("weight", 1)))
            for name, options in (self.values.get("dataset") or {}).items()
            if float(options.get("weight", 1)) > 0
        }
