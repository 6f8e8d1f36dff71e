"""How a component is declared: one record, lazy targets, a typed factory per kind.

    from ghostvis_plugins import encoder, hookimpl

    @hookimpl
    def ghostvis_components():
        yield encoder("dinov3", config="my_package.config:Config", build="my_package.model:build")

``config`` names a pydantic model with ``extra="forbid"`` in a module that does not import torch;
``build`` names a callable. Both may be the objects themselves, but strings keep ``ghostvis --help`` fast:
a target is imported when the component is chosen, and not before. What ``build`` is called with, and what
it has to return, is written in :mod:`ghostvis_plugins.protocols`, one Protocol per kind.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from .errors import MissingError, UnavailableError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from . import protocols as p

    C = TypeVar("C", bound=BaseModel)
else:
    C = TypeVar("C")
T = TypeVar("T")

API_VERSION = 1
"""Raised when a plugin written for an older version could break. Plugins state theirs as ``GHOSTVIS_API``."""


class Kind(StrEnum):
    """What can be swapped. The kind's name is the flag, the TOML key and the environment name."""

    encoder = "encoder"
    resampler = "resampler"
    projector = "projector"
    backbone = "backbone"
    dataset = "dataset"
    rl = "rl"
    stage = "stage"
    task = "task"
    reward = "reward"
    optimizer = "optimizer"
    engine = "engine"
    tracker = "tracker"
    chat_command = "chat_command"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentSpec(Generic[C, T]):
    """One component. Equal ``(kind, name)`` from two plugins is a conflict that the user decides."""

    kind: Kind
    name: str
    config: str | type[C]
    build: str | Callable[..., T]
    summary: str = ""
    license: str = ""
    tokenizer: str | Callable[..., Path | None] | None = None
    """Of a pretrained backbone: config → folder of the tokenizer its weights know, None where they know none."""

    def load_config(self) -> type[C]:
        """Import and return the pydantic model of this component's options."""
        return _load(self, self.config)  # type: ignore[no-any-return]

    def load_build(self) -> Callable[..., T]:
        """Import and return the builder."""
        return _load(self, self.build)  # type: ignore[no-any-return]

    def load_tokenizer(self) -> Callable[..., Path | None]:
        """Import and return what finds the tokenizer; of a component without one, a function that finds none."""
        return (lambda config: None) if self.tokenizer is None else _load(self, self.tokenizer)


def _load(spec: ComponentSpec[Any, Any], target: Any) -> Any:
    """Import a target. Raises UnavailableError for a missing dependency, MissingError for a wrong target."""
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    if not module or not attribute:
        raise MissingError(f"{spec.kind} '{spec.name}': '{target}' is not of the form 'package.module:attribute'")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        missing = error.name or str(error)
        if f"{module}.".startswith(f"{missing}."):
            raise MissingError(
                f"{spec.kind} '{spec.name}': there is no module '{missing}' (from '{target}')"
            ) from error
        raise UnavailableError(
            f"{spec.kind} '{spec.name}' needs the Python package '{missing}', which is not installed"
        ) from error
    except (ImportError, AttributeError) as error:
        raise MissingError(f"{spec.kind} '{spec.name}': '{target}' cannot be imported: {error}") from error


# One factory per kind. The overloads let a type checker see that `build` accepts what `config` makes and
# returns what the kind's Protocol asks for; string targets are verified by `ghostvis plugins check`.
# fmt: off

@overload
def encoder(name: str, *, config: type[C], build: Callable[..., p.Encoder], summary: str = "", license: str = "") -> ComponentSpec[C, p.Encoder]: ...
@overload
def encoder(name: str, *, config: str, build: str, summary: str = "", license: str = "") -> ComponentSpec[Any, p.Encoder]: ...
def encoder(name: str, *, config: Any, build: Any, summary: str = "", license: str = "") -> ComponentSpec[Any, Any]:
    """Declare a vision encoder (:class:`~ghostvis_plugins.protocols.Encoder`)."""
    return ComponentSpec(kind=Kind.encoder, name=name, config=config, build=build, summary=summary, license=license)


@overload
def resampler(name: str, *, config: type[C], build: Callable[..., p.Resampler], summary: str = "", license: str = "") -> ComponentSpec[C, p.Resampler]: ...
@overload
def resampler(name: str, *, config: str, build: str, summary: str = "", license: str = "") -> ComponentSpec[Any, p.Resampler]: ...
def resampler(name: str, *, config: Any, build: Any, summary: str = "", license: str = "") -> ComponentSpec[Any, Any]:
    """Declare a resampler (:class:`~ghostvis_plugins.protocols.Resampler`)."""
    return ComponentSpec(kind=Kind.resampler, name=name, config=config, build=build, summary=summary, license=license)

@overload
def projector(name: str, *, config: type[C], build: Callable[..., p.Projector], summary: str = "", license: str = "") -> ComponentSpec[C, p.Projector]: ...
@overload
def projector(name: str, *, config: str, build: str, summary: str = "", license: str = "") -> ComponentSpec[Any, p.Projector]: ...
def projector(name: str, *, config: Any, build: Any, summary: str = "", license: str = "") -> ComponentSpec[Any, Any]:
    """Declare a projector (:class:`~ghostvis_plugins.protocols.Projector`)."""
    return ComponentSpec(kind=Kind.projector, name=name, config=config, build=build, summary=summary, license=license)

@overload
def backbone(name: str, *, config: type[C], build: Callable[..., p.Backbone], summary: str = "", license: str = "", tokenizer: Any = None) -> ComponentSpec[C, p.Backbone]: ...
@overload
def backbone(name: str, *, config: str, build: str, summary: str = "", license: str = "", tokenizer: Any = None) -> ComponentSpec[Any, p.Backbone]: ...
def backbone(name: str, *, config: Any, build: Any, summary: str = "", license: str = "", tokenizer: Any = None) -> ComponentSpec[Any, Any]:
    """Declare a language-model backbone (:class:`~ghostvis_plugins.protocols.Backbone`).

    ``tokenizer`` names, for a pretrained one, a callable from its config to the folder of its tokenizer's files.
    """
    return ComponentSpec(kind=Kind.backbone, name=name, config=config, build=build, summary=summary, license=license, tokenizer=tokenizer)

@overload
def dataset(name: str, *, config: type[C], build: Callable[..., p.Dataset], summary: str = "", license: str = "") -> ComponentSpec[C, p.Dataset]: ...
@overload
def dataset(name: str, *, config: str, build: str, summary: str = "", license: str = "") -> ComponentSpec[Any, p.Dataset]: ...
def dataset(name: str, *, config: Any, build: Any, summary: str = "", license: str = "") -> ComponentSpec[Any, Any]:
    """Declare a data set (:class:`~ghostvis_plugins.protocols.Dataset`)."""
    return ComponentSpec(kind=Kind.dataset, name=name, config=config, build=build, summary=summary, license=license)

@overload
def rl(name: str, *, config: type[C], build: Callable[..., p.RLAlgorithm], summary: str = "", license: str = "") -> ComponentSpec[C, p.RLAlgorithm]: ...
@overload
def rl(name: str, *, config: str, build: str, summary: str = "", license: str = "") -> ComponentSpec[Any, p.RLAlgorithm]: ...
def rl(name: str, *, config: Any, build: Any, summary: str = "", license: str = "") -> ComponentSpec[Any, Any]:
    """Declare a reinforcement-learning algorithm (:class:`~ghostvis_plugins.protocols.RLAlgorithm`)."""
    return ComponentSpec(kind=Kind.rl, name=name, config=config, build=build, summary=summary, license=license)

@overload
def stage(name: str, *, config: type[C], build: Callable[..., p.Stage], summary: str = "", license: str = "") -> ComponentSpec[C, p.Stage]: ...
@overload
def stage(name: str, *, config: str, build: str, summary: str = "", license: str = "") -> ComponentSpec[Any, p.Stage]: ...
def stage(name: str, *, config: Any, build: Any, summary: str = "", license: str = "") -> ComponentSpec[Any, Any]:
    """Declare a stage (:class:`~ghostvis_plugins.protocols.Stage`)."""
    return ComponentSpec(kind=Kind.stage, name=name, config=config, build=build, summary=summary, license=license)

@overload
def task(name: str, *, config: type[C], build: Callable[..., p.Task], summary: str = "", license: str = "") -> ComponentSpec[C, p.Task]: ...
@overload
def task(name: str, *, config: str, build: str, summary: str = "", license: str = "") -> ComponentSpec[Any, p.Task]: ...
def task(name: str, *, config: Any, build: Any, summary: str = "", license: str = "") -> ComponentSpec[Any, Any]:
    """Declare an evaluation task (:class:`~ghostvis_plugins.protocols.Task`)."""
    return ComponentSpec(kind=Kind.task, name=name, config=config, build=build, summary=summary, license=license)

@overload
def reward(name: str, *, config: type[C], build: Callable[..., p.Reward], summary: str = "", license: str = "") -> ComponentSpec[C, p.Reward]: ...
@overload
def reward(name: str, *, config: str, build: str, summary: str = "", license: str = "") -> ComponentSpec[Any, p.Reward]: ...
def reward(name: str, *, config: Any, build: Any, summary: str = "", license: str = "") -> ComponentSpec[Any, Any]:
    """Declare a reward (:class:`~ghostvis_plugins.protocols.Reward`)."""
    return ComponentSpec(kind=Kind.reward, name=name, config=config, build=build, summary=summary, license=license)

@overload
def optimizer(name: str, *, config: type[C], build: Callable[..., p.Optimizer], summary: str = "", license: str = "") -> ComponentSpec[C, p.Optimizer]: ...
@overload
def optimizer(name: str, *, config: str, build: str, summary: str = "", license: str = "") -> ComponentSpec[Any, p.Optimizer]: ...
def optimizer(name: str, *, config: Any, build: Any, summary: str = "", license: str = "") -> ComponentSpec[Any, Any]:
    """Declare an optimizer (:class:`~ghostvis_plugins.protocols.Optimizer`)."""
    return ComponentSpec(kind=Kind.optimizer, name=name, config=config, build=build, summary=summary, license=license)

@overload
def engine(name: str, *, config: type[C], build: Callable[..., p.Engine], summary: str = "", license: str = "") -> ComponentSpec[C, p.Engine]: ...
@overload
def engine(name: str, *, config: str, build: str, summary: str = "", license: str = "") -> ComponentSpec[Any, p.Engine]: ...
def engine(name: str, *, config: Any, build: Any, summary: str = "", license: str = "") -> ComponentSpec[Any, Any]:
    """Declare an inference engine (:class:`~ghostvis_plugins.protocols.Engine`)."""
    return ComponentSpec(kind=Kind.engine, name=name, config=config, build=build, summary=summary, license=license)

@overload
def tracker(name: str, *, config: type[C], build: Callable[..., p.Tracker], summary: str = "", license: str = "") -> ComponentSpec[C, p.Tracker]: ...
@overload
def tracker(name: str, *, config: str, build: str, summary: str = "", license: str = "") -> ComponentSpec[Any, p.Tracker]: ...
def tracker(name: str, *, config: Any, build: Any, summary: str = "", license: str = "") -> ComponentSpec[Any, Any]:
    """Declare a metrics tracker (:class:`~ghostvis_plugins.protocols.Tracker`)."""
    return ComponentSpec(kind=Kind.tracker, name=name, config=config, build=build, summary=summary, license=license)

@overload
def chat_command(name: str, *, config: type[C], build: Callable[..., p.ChatCommand], summary: str = "", license: str = "") -> ComponentSpec[C, p.ChatCommand]: ...
@overload
def chat_command(name: str, *, config: str, build: str, summary: str = "", license: str = "") -> ComponentSpec[Any, p.ChatCommand]: ...
def chat_command(name: str, *, config: Any, build: Any, summary: str = "", license: str = "") -> ComponentSpec[Any, Any]:
    """Declare a slash command of the chat (:class:`~ghostvis_plugins.protocols.ChatCommand`)."""
    return ComponentSpec(kind=Kind.chat_command, name=name, config=config, build=build, summary=summary, license=license)
