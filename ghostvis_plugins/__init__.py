"""The contract between GhostVis and its plugins: the only package a plugin imports. It costs no torch."""

from .api import (
    API_VERSION,
    ComponentSpec,
    Kind,
    backbone,
    chat_command,
    dataset,
    encoder,
    engine,
    optimizer,
    projector,
    resampler,
    reward,
    rl,
    stage,
    task,
    tracker,
)
from .errors import ConfigError, DataError, ExitCode, GhostVisError, MissingError, UnavailableError
from .hookspecs import hookimpl

__all__ = [
    "API_VERSION",
    "ComponentSpec",
    "ConfigError",
    "DataError",
    "ExitCode",
    "GhostVisError",
    "Kind",
    "MissingError",
    "UnavailableError",
    "backbone",
    "chat_command",
    "dataset",
    "encoder",
    "engine",
    "hookimpl",
    "optimizer",
    "projector",
    "resampler",
    "reward",
    "rl",
    "stage",
    "task",
    "tracker",
]
