"""Metrics for other people's dashboards. Each library is an extra, and is imported when a run wants it.

A resumed run goes on where it was: steps that its checkpoint does not know are replaced, where the library can.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ghostvis_plugins.errors import UnavailableError

from .config import TensorBoard as TensorBoardConfig
from .config import Trackio as TrackioConfig
from .config import Wandb as WandbConfig

Metrics = Mapping[str, float | int | str]


class TensorBoardTracker:
    """Scalars as TensorBoard's event files; text is left to ``metrics.jsonl``."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _not_installed("tensorboard") from error
        self._open, self._folder = SummaryWriter, folder
        self._writer: Any = None

    def log(self, step: int, metrics: Metrics) -> None:
        """Add the numbers of one step."""
        if self._writer is None:  # what an interrupted run wrote from here on is void
            self._writer = self._open(str(self._folder), purge_step=step)
        for name, value in numbers(metrics).items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


class WandbTracker:
    """One run of Weights & Biases; its id stays in the run directory, for a resumed run to find."""

    def __init__(self, config: WandbConfig, run_dir: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _not_installed("wandb") from error
        folder = run_dir / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        known = folder / "id"
        if not known.exists():
            known.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        try:
            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                mode=config.mode,
                dir=str(run_dir),
                id=known.read_text(encoding="utf-8"),
                name=run_dir.name,
                resume="allow" if config.mode == "online" else None,  # the service alone knows former steps
                config=settings_of(run_dir),
                settings=wandb.Settings(silent=True),
            )
        except wandb.errors.Error as error:
            raise UnavailableError(
                f"tracker wandb cannot start: {error}", hint="try tracker.mode=offline, or `wandb login`"
            ) from error

    def log(self, step: int, metrics: Metrics) -> None:
        """Add one step."""
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        """Write, or send, what is left."""
        self._run.finish()


class TrackioTracker:
    """One run of trackio: a local database, Weights & Biases' interface."""

    def __init__(self, config: TrackioConfig, run_dir: Path) -> None:
        try:
            import trackio
        except ImportError as error:
            raise _not_installed("trackio") from error
        self._run = trackio.init(
            project=config.project,
            name=run_dir.name,
            resume="allow",
            config=settings_of(run_dir),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, metrics: Metrics) -> None:
        """Add one step."""
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        """Write what is left."""
        self._run.finish()


def numbers(metrics: Metrics) -> dict[str, float]:
    """What can be drawn over steps."""
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def settings_of(run_dir: Path) -> dict[str, Any]:
    """The resolved values of the run, for a dashboard to show beside it."""
    path = run_dir / "resolved.json"
    if not path.is_file():
        return {}
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["values"]
    return values


def _not_installed(name: str) -> UnavailableError:
    return UnavailableError(
        f"tracker {name} needs a package that is not installed", hint=f"pip install 'ghostvis[{name}]'"
    )


def build_tensorboard(config: TensorBoardConfig, *, run_dir: Path) -> TensorBoardTracker:
    """The ``tensorboard`` component. Raises UnavailableError without its library."""
    return TensorBoardTracker(run_dir / "tensorboard")


def build_wandb(config: WandbConfig, *, run_dir: Path) -> WandbTracker:
    """The ``wandb`` component. Raises UnavailableError without its library, or when the service refuses."""
    return WandbTracker(config, run_dir)


def build_trackio(config: TrackioConfig, *, run_dir: Path) -> TrackioTracker:
    """The ``trackio`` component. Raises UnavailableError without its library."""
    return TrackioTracker(config, run_dir)
