"""How the ranks of a run share one model: who keeps what, and how their gradients become one.

    Alone      one process, which keeps everything
    Dealt      every rank holds the model; the optimizer state of a parameter is kept by one rank (ZeRO-1, Rajbhandari
               et al. 2020)

The choice is made once, by :func:`share_model`; the loop calls the same methods of each. A parameter that no sample of
a rank used counts as zero there: an optimizer must not see a difference between a step without pictures here and one
whose pictures are on another rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from components.batch import Batch
from components.vlm import VLM

from .distributed import Distributed
from .optim import clip_gradients
from .packing import deal

Groups = list[dict[str, Any]]
Build = Callable[[Groups], Any]

BUCKET_BYTES = 2**25  # tensors go over the wire together up to this, and alone above it
IN_FLIGHT = 4  # buckets of updated parameters: each is a copy


def share_model(model: VLM, ranks: Distributed, groups: Groups, build: Build) -> Alone:
    """``build`` makes the optimizer of some ``groups`` (see :func:`stages.optim.parameter_groups`)."""
    return Alone(model, ranks, groups, build) if ranks.world == 1 else Dealt(model, ranks, groups, build)


class Alone:
    """One process: the gradients are its own, and so are all parameters.

    ``parameters`` are those that this rank's ``optimizer`` steps, ``names`` their names in the order of its groups.
    """

    def __init__(self, model: VLM, ranks: Distributed, groups: Groups, build: Build) -> None:
        self.model, self.ranks = model, ranks
        self.optimizer = self._optimizer(groups, build)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.names = [names[id(parameter)] for parameter in self.parameters]

    def _optimizer(self, groups: Groups, build: Build) -> Any:
        return build(groups)

    @property
    def param_groups(self) -> Groups:
        """What a schedule has to set."""
        return self.optimizer.param_groups  # type: ignore[no-any-return]

    def loss(self, batch: Batch) -> Tensor:
        """Summed negative log-likelihood of the batch's targets."""
        return self.model.loss(batch)[0]

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add to the gradients. After the ``last`` micro-batch of a step they are complete, and may start to travel."""
        loss.backward()

    def sum_gradients(self) -> None:
        """Every own parameter has the gradient of the whole step, over all ranks."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def scale(self, factor: float) -> None:
        """Multiply the gradients."""
        for parameter in self.parameters:
            assert parameter.grad is not None
            parameter.grad.mul_(factor)

    def clip(self, limit: float) -> float:
        """The norm of all gradients before clipping, the same on every rank; see ``stages.optim.clip_gradients``."""
        return clip_gradients(self.parameters, limit).item()

    def step(self) -> None:
        """Step the own parameters; afterwards every rank has all of them as they are now."""
        self.optimizer.step()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)


@dataclass(slots=True)
class Bucket:
    """Parameters of one owner whose tensors travel together."""

    owner: int
    parameters: list[nn.Parameter]
    missing: int = 0  # gradients that are not complete yet
    flat: Tensor | None = None
    work: Any = None

    def views(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter with its part of ``flat``."""
        assert self.flat is not None
        parts = self.flat.split([parameter.numel() for parameter in self.parameters])
        return ((p, part.view_as(p)) for p, part in zip(self.parameters, parts, strict=True))


class Dealt(Alone):
    """Whole tensors dealt to the ranks: the sum of a gradient goes to its owner, who steps and sends the parameter on.

    Whole, so any optimizer does: Muon orthogonalises matrices of one shape on different ranks. The dearest tensor left
    goes to the rank that has least to do. A gradient travels while the backward pass of the last micro-batch computes
    the next; buckets leave in one order everywhere, whatever a rank has to compute. Its own copy of a gradient is gone
    when it was sent, so no second one of all of them is ever made.
    """

    def __init__(self, model: VLM, ranks: Distributed, groups: Groups, build: Build) -> None:
        self.groups = groups
        super().__init__(model, ranks, groups, build)
        owners = {id(p): rank for rank, hand in enumerate(self._hands) for p in hand}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.buckets = _buckets(trained[::-1], owners)  # a backward pass ends where the forward pass began
        self._bucket_of = {id(p): bucket for bucket in self.buckets for p in bucket.parameters}
        self._sent, self._last = 0, False
        self._hooks = [p.register_post_accumulate_grad_hook(self._complete) for p in trained]

    def _optimizer(self, groups: Groups, build: Build) -> Any:
        parameters = [parameter for group in groups for parameter in group["params"]]
        cost = getattr(build(groups), "cost", torch.numel)
        hands = deal([float(cost(parameter)) for parameter in parameters], self.ranks.world)
        self._hands = [[parameters[number] for number in hand] for hand in hands]
        own = {id(parameter) for parameter in self._hands[self.ranks.rank]}
        mine = [_part(group, own) for group in groups]
        return build([group for group in mine if group["params"]]) if own else _Nothing()

    @property
    def param_groups(self) -> Groups:
        """Those of all ranks behind the own: every rank knows the largest learning rate."""
        return [*self.optimizer.param_groups, *self.groups]

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._last = last
        loss.backward()

    def _complete(self, parameter: Tensor) -> None:
        if self._last:
            self._bucket_of[id(parameter)].missing -= 1
            while self._sent < len(self.buckets) and not self.buckets[self._sent].missing:
                self._send()

    def _send(self) -> None:
        """Let the next bucket's gradients travel to its owner."""
        bucket = self.buckets[self._sent]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket.parameters]
        for parameter in bucket.parameters:
            parameter.grad = None
        bucket.flat = _flat(gradients)
        bucket.work = dist.reduce(bucket.flat, bucket.owner, async_op=True)
        self._sent += 1

    def sum_gradients(self) -> None:
        while self._sent < len(self.buckets):
            self._send()
        for bucket in self.buckets:
            bucket.work.wait()
            if bucket.owner == self.ranks.rank:
                for parameter, total in bucket.views():
                    parameter.grad = total
            bucket.flat, bucket.work, bucket.missing = None, None, len(bucket.parameters)
        self._sent, self._last = 0, False

    def clip(self, limit: float) -> float:
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        own = torch.nn.utils.get_total_norm(gradients).to(self.ranks.device)
        return clip_gradients(self.parameters, limit, self.ranks.sum_(own.square()).sqrt()).item()

    def step(self) -> None:
        super().step()
        travelling: list[Bucket] = []
        for bucket in self.buckets:
            if len(travelling) == IN_FLIGHT:
                self._receive(travelling.pop(0))
            bucket.flat = _flat([parameter.detach() for parameter in bucket.parameters])
            bucket.work = dist.broadcast(bucket.flat, bucket.owner, async_op=True)
            travelling.append(bucket)
        for bucket in travelling:
            self._receive(bucket)

    @torch.no_grad()
    def _receive(self, bucket: Bucket) -> None:
        bucket.work.wait()
        if bucket.owner != self.ranks.rank:
            for parameter, new in bucket.views():
                if parameter.data_ptr() != new.data_ptr():
                    parameter.copy_(new)
        bucket.flat, bucket.work = None, None


class _Nothing:
    """The optimizer of a rank that no parameter was left for."""

    param_groups: Sequence[Any] = ()

    def step(self) -> None: ...

    def zero_grad(self, *, set_to_none: bool = True) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {"state": {}, "param_groups": []}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def _part(group: dict[str, Any], own: set[int]) -> dict[str, Any]:
    """The group with those of its parameters that are in ``own``."""
    kept = [(p, name) for p, name in zip(group["params"], group["names"], strict=True) if id(p) in own]
    return {**group, "params": [p for p, _ in kept], "names": [name for _, name in kept]}


def _buckets(parameters: Sequence[nn.Parameter], owners: dict[int, int]) -> list[Bucket]:
    """Parameters in their order, those of an owner together up to the size; in the order in which they are complete."""
    done: list[Bucket] = []
    filling: dict[int, Bucket] = {}
    for parameter in parameters:
        owner, size = owners[id(parameter)], parameter.nbytes
        bucket = filling.get(owner)
        if bucket is None or sum(p.nbytes for p in bucket.parameters) + size > BUCKET_BYTES:
            if bucket is not None:
                done.append(bucket)
            bucket = filling[owner] = Bucket(owner, [])
        bucket.parameters.append(parameter)
        bucket.missing += 1
    done += filling.values()
    place = {id(parameter): number for number, parameter in enumerate(parameters)}
    return sorted(done, key=lambda bucket: place[id(bucket.parameters[-1])])


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """One row of all their numbers: a copy, except of a single tensor."""
    return torch.cat([t.flatten() for t in tensors]) if len(tensors) > 1 else tensors[0].contiguous().view(-1)
