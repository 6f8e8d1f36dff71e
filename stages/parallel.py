"""How the ranks of a run share one model: who keeps what, and how their gradients become one.

    Alone      one process, which keeps everything
    Dealt      every rank holds the model; the optimizer state of a parameter is kept by one rank (ZeRO-1, Rajbhandari
               et al. 2020)
    Sharded    every rank keeps a part of each tensor, weights, gradients and optimizer state alike (FSDP2)

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
from components.rendering import Rendered
from components.vlm import VLM
from ghostvis_plugins.errors import ConfigError

from .config import TrainConfig
from .distributed import Distributed, compute_dtype
from .optim import gradient_norm, parameter_groups
from .packing import deal

Groups = list[dict[str, Any]]
Build = Callable[[Groups], Any]
"""Makes the optimizer of some groups of parameters."""

BUCKET_BYTES = 2**25  # tensors go over the wire together up to this, and alone above it
IN_FLIGHT = 4  # buckets of updated parameters: each is a copy
EMPTY = Batch.pack([Rendered([0], [False], [], (), "nothing")])


def shards_weights(model: VLM, config: TrainConfig, ranks: Distributed) -> bool:
    """Whether no rank is to hold all of the model: ``stage.fsdp_above``."""
    size = sum(parameter.numel() for parameter in model.parameters())
    return ranks.world > 1 and config.fsdp_above is not None and size > config.fsdp_above


def share_model(model: VLM, ranks: Distributed, config: TrainConfig, build: Build, dtype: str = "float32") -> Alone:
    """``build`` makes an optimizer; ``dtype`` is what is computed in. Raises ConfigError where they do not go together.

    The model is on the device already, unless its weights are to be sharded (:func:`shards_weights`).
    """
    if shards_weights(model, config, ranks):
        return Sharded(model, ranks, config, build, dtype)
    return Alone(model, ranks, config, build) if ranks.world == 1 else Dealt(model, ranks, config, build)


class Alone:
    """One process: the gradients are its own, and so are all parameters.

    ``parameters`` are those that this rank's ``optimizer`` steps, ``names`` their names in the order of its groups.
    ``whole`` says that a rank has all of the model, so that a checkpoint can be read into it at any time.
    """

    whole = True

    def __init__(self, model: VLM, ranks: Distributed, config: TrainConfig, build: Build) -> None:
        self.model, self.ranks = model, ranks
        self.optimizer = self._optimizer(parameter_groups(model, config.train), build)
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

    def logits(self, batch: Batch) -> Tensor:
        """Float32 logits ``[S, V]`` of the rows before a target."""
        return self.model.backbone.logits(self.model.hidden(batch, rows=batch.target_rows))  # type: ignore[no-any-return]

    def keep_up(self, passes: int) -> None:
        """Join in what other ranks compute in so many more batches, where it needs all of them."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add to the gradients. After the ``last`` micro-batch of a step they are complete, and may start to travel."""
        loss.backward()

    def sum_gradients(self) -> None:
        """Every own parameter has the gradient of the whole step, over all ranks."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def scale(self, factor: float) -> None:
        """Multiply the gradients of the coming step: an optimizer with ``scale_gradients`` does so while it steps."""
        if hasattr(self.optimizer, "scale_gradients"):
            self.optimizer.scale_gradients(factor)
            return
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for parameter in self.parameters:
            assert parameter.grad is not None
            by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_type.values():
            torch._foreach_mul_(gradients, factor)

    def norm(self) -> Tensor:
        """The norm of all gradients, the same scalar on every rank's device."""
        return gradient_norm(self.parameters)

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

    def __init__(self, model: VLM, ranks: Distributed, config: TrainConfig, build: Build) -> None:
        super().__init__(model, ranks, config, build)
        owners = {id(p): rank for rank, hand in enumerate(self._hands) for p in hand}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.buckets = _buckets(trained[::-1], owners)  # a backward pass ends where the forward pass began
        self._bucket_of = {id(p): bucket for bucket in self.buckets for p in bucket.parameters}
        self._sent, self._last = 0, False
        self._hooks = [p.register_post_accumulate_grad_hook(self._complete) for p in trained]

    def _optimizer(self, groups: Groups, build: Build) -> Any:
        self.groups = groups
        self._hands = hands(groups, build, self.ranks.world)
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

    def norm(self) -> Tensor:
        return self.ranks.sum_(super().norm().to(self.ranks.device).square()).sqrt()

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


class Sharded(Alone):
    """FSDP2 (``torch.distributed.fsdp.fully_shard``): a layer's weights are put together where it is computed.

    Layers of the backbone are shards of their own, and so are those of an encoder that trains; everything else is put
    together once a pass. A frozen encoder stays whole on every rank, which so can keep its features whenever it likes.
    For every other pass all ranks have to come together, in the same order: a rank with fewer batches computes empty
    ones (:meth:`keep_up`), and one whose batch has no picture ties its text to the vision path by a zero.
    """

    whole = False

    def __init__(self, model: VLM, ranks: Distributed, config: TrainConfig, build: Build, dtype: str) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        low = compute_dtype(dtype, ranks.device)
        mixed = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32) if low else MixedPrecisionPolicy()
        mesh = init_device_mesh(ranks.device.type, (ranks.world,))
        whole: set[nn.Parameter] = set()
        if model.encoder_frozen and model.encoder is not None:
            whole = set(model.encoder.to(ranks.device).parameters())
        blocks = blocks_of(model)
        self.root = _Root(model, _encoder_layers(model))
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=mixed)
        self._reshard = fully_shard(self.root, mesh=mesh, mp_policy=mixed, ignored_params=whole).reshard
        for module in self.root.modules():
            if isinstance(module, FSDPModule):  # sums, as everywhere here, and no means
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        super().__init__(model, ranks, config, build)
        if any(p.dtype == torch.bfloat16 for p in self.parameters):
            raise ConfigError(
                f"stage.fsdp_above = {config.fsdp_above:g} shares out float32 weights only, and some are bfloat16",
                hint='set backbone.dtype = "float32": what is computed in is another setting, dtype',
            )
        if getattr(self.optimizer, "whole_tensors", False):
            raise ConfigError(
                f"stage.fsdp_above = {config.fsdp_above:g} shares out tensors, and this optimizer needs them whole",
                hint="choose --optimizer adamw, or a stage.fsdp_above that is above the model's number of parameters",
            )

    def loss(self, batch: Batch) -> Tensor:
        return self.root(batch, logits=False)  # type: ignore[no-any-return]

    def logits(self, batch: Batch) -> Tensor:
        return self.root(batch, logits=True)  # type: ignore[no-any-return]

    def keep_up(self, passes: int) -> None:
        for _ in range(passes):
            loss = self.loss(EMPTY.to(self.ranks.device))
            if loss.requires_grad:
                loss.backward()
        self._reshard()  # after a pass without a backward one

    def norm(self) -> Tensor:
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        return norm.full_tensor()  # type: ignore[attr-defined, no-any-return]


class _Root(nn.Module):
    """What FSDP's hooks see called: one pass of the whole model."""

    tie: Tensor | None = None  # a zero through which a batch without pictures is tied to the vision path

    def __init__(self, model: VLM, encoder_layers: list[nn.Module]) -> None:
        super().__init__()
        self.model, self.encoder_layers = model, encoder_layers
        model.backbone.register_forward_pre_hook(self._tie)

    def forward(self, batch: Batch, logits: bool) -> Tensor:
        model = self.model
        self.tie = None if batch.images else self._zero()
        if logits:
            return model.backbone.logits(model.hidden(batch, rows=batch.target_rows))  # type: ignore[no-any-return]
        return model.loss(batch)[0]

    def _zero(self) -> Tensor | None:
        """0 · everything that would have made image vectors: its gradients are zeros, and the passes are the same."""
        model = self.model
        parts = [part for part in (model.encoder, model.resampler, model.projector) if part is not None]
        apart = {module for layer in self.encoder_layers for module in layer.modules()}
        modules = [module for part in parts for module in part.modules() if module not in apart]
        zero = [p.sum() * 0 for module in modules for p in module.parameters(recurse=False) if p.requires_grad]
        if self.encoder_layers and model.encoder is not None:
            zero.append(model.encode(torch.zeros(1, 3, *model.encoder.image_size, device=model.device)).sum() * 0)
        return torch.stack(zero).sum() if zero else None

    def _tie(self, backbone: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        return None if self.tie is None else (inputs[0] + self.tie.to(inputs[0].dtype),)


def hands(groups: Groups, build: Build, world: int) -> list[list[nn.Parameter]]:
    """The parameters of each of ``world`` ranks, by what the optimizer says that they cost, or by their size."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    cost = getattr(build(groups), "cost", torch.numel)
    dealt = deal([float(cost(parameter)) for parameter in parameters], world)
    return [[parameters[number] for number in hand] for hand in dealt]


def blocks_of(model: VLM) -> list[nn.Module]:
    """The layers that are shards of their own: the backbone's, and those of an encoder that trains."""
    return [*_encoder_layers(model), *_layers(model.backbone)]


def _encoder_layers(model: VLM) -> list[nn.Module]:
    return [] if model.encoder is None or model.encoder_frozen else _layers(model.encoder)


def _layers(part: nn.Module) -> list[nn.Module]:
    """The modules of the list that holds most of a part's weights: its layers, if they are all of a kind."""
    lists = [m for m in part.modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len({*map(type, m)}) == 1]
    return list(max(lists, key=lambda m: sum(p.numel() for p in m.parameters()), default=[]))


class _Nothing:
    """The optimizer of a rank that no parameter was left for."""

    param_groups: Sequence[Any] = ()
    trains_bfloat16 = True

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
    """Parameters of an owner and a type together up to the size, in the order in which they are complete."""
    done: list[Bucket] = []
    filling: dict[tuple[int, torch.dtype], Bucket] = {}
    for parameter in parameters:
        owner, size = owners[id(parameter)], parameter.nbytes
        bucket = filling.get((owner, parameter.dtype))
        if bucket is None or sum(p.nbytes for p in bucket.parameters) + size > BUCKET_BYTES:
            if bucket is not None:
                done.append(bucket)
            bucket = filling[owner, parameter.dtype] = Bucket(owner, [])
        bucket.parameters.append(parameter)
        bucket.missing += 1
    done += filling.values()
    place = {id(parameter): number for number, parameter in enumerate(parameters)}
    return sorted(done, key=lambda bucket: place[id(bucket.parameters[-1])])


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """One row of all their numbers: a copy, except of a single tensor."""
    return torch.cat([t.flatten() for t in tensors]) if len(tensors) > 1 else tensors[0].contiguous().view(-1)
