"""Runs a stage in this process: what the command line's worker calls, once per rank."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ghostvis_plugins.errors import ConfigError
from ghostvis_plugins.manager import Registry

from .context import RunContext
from .distributed import Distributed


def run(values: Mapping[str, Any], registry: Registry, run_dir: str | Path, resume: bool = False) -> Path:
    """Run the stage that ``values`` (a resolved run) names; returns the model directory it leaves.

    Raises GhostVisError for what a person can do wrong.
    """
    values = dict(values)
    stage = values.get("stage")
    stage = {"name": stage} if isinstance(stage, str) else dict(stage or {})
    if "name" not in stage:
        raise ConfigError("no stage is chosen", hint=f"one of: {', '.join(registry.names('stage'))}")
    values["stage"] = stage
    dist = Distributed.start(str(values.get("device") or "auto"), int(values.get("threads") or 0))
    try:
        context = RunContext(values, registry, Path(run_dir), dist, resume)
        return Path(context.build("stage", stage)(context))
    finally:
        dist.stop()
