"""What a device has to hold while a model trains, beside what a pass keeps: found on the meta device.

The optimizer takes a step there, so its state is its own and no formula's; how ranks share it is what
:mod:`stages.parallel` would do. What a pass keeps is :mod:`components.planning`'s to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from components.vlm import VLM

from .config import TrainConfig
from .distributed import Distributed
from .optim import parameter_groups
from .parallel import Build, blocks_of, hands, shards_weights

ASSUMED = 8
"""Bytes of state for a number, of an optimizer that does not step on the meta device: two moments, as AdamW has."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of the rank that needs most. ``whole`` is what shards are put together in, for the passes."""

    weights: int
    gradients: int
    optimizer: int
    whole: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.whole

    def to_json(self) -> dict[str, int]:
        return asdict(self)


def footprint(
    model: VLM, config: TrainConfig, world: int, build: Build, warn: Callable[[str], object] = lambda _: None
) -> Footprint:
    """Of ``model`` on the meta device, where what trains has been set, on ``world`` ranks.

    Buffers are left out, and so are the copies that travel, each of at most a tensor or 32 MB. Weights that were put
    together have the type of those that they were taken from; computed in bfloat16, they need half of it.
    ``warn`` is told when the optimizer's state had to be guessed.
    """
    groups = parameter_groups(model, config.train)
    state = _state(build(groups), [parameter for group in groups for parameter in group["params"]], warn)
    everything = list(model.parameters())
    trained = [parameter for parameter in everything if parameter.requires_grad]
    if not shards_weights(model, config, Distributed(0, world)):
        largest = max(sum(_bytes(state[p]) for p in hand) for hand in hands(groups, build, world))
        return Footprint(_bytes(everything), _bytes(trained), largest)
    kept = set(model.encoder.parameters()) if model.encoder is not None and model.encoder_frozen else set()
    shared = [parameter for parameter in everything if parameter not in kept]
    blocks = [list(block.parameters()) for block in blocks_of(model)]
    apart = {parameter for block in blocks for parameter in block}
    root = [parameter for parameter in shared if parameter not in apart]
    layers = sorted(map(_bytes, blocks))[-2:]  # one is computed, and the next one is on its way
    return Footprint(
        weights=_bytes(kept) + _bytes(shared, world),
        gradients=_bytes(trained, world),
        optimizer=sum(_bytes(state[parameter], world) for parameter in trained),
        whole=_bytes(root) + _bytes(p for p in root if p.requires_grad) + sum(layers) + max(layers, default=0),
    )


def _state(
    optimizer: Any, parameters: Sequence[nn.Parameter], warn: Callable[[str], object]
) -> dict[nn.Parameter, list[Tensor]]:
    """The tensors that the optimizer keeps of each parameter, after a step."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    try:
        optimizer.step()
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:  # which no protocol forbids
        warn(f"the optimizer takes no step on the meta device ({error!r}): {ASSUMED} bytes a number are assumed for it")
        return {p: [torch.empty(ASSUMED * p.numel(), dtype=torch.uint8, device="meta")] for p in parameters}
    finally:
        for parameter in parameters:
            parameter.grad = None
    return {p: [value for value in optimizer.state[p].values() if torch.is_tensor(value)] for p in parameters}


def _bytes(tensors: Iterable[Tensor], world: int = 1) -> int:
    """Of the largest of ``world`` parts of each, cut along its first dimension; of numbers, every rank has its own."""
    return sum(t.nbytes // len(t) * math.ceil(len(t) / world) if t.ndim and len(t) else t.nbytes for t in tensors)
