"""What a model would cost, found on the meta device: no weight is allocated, no number is guessed.

The parts run once on tensors without data. torch's counter adds up the floating-point operations of matrix
products and convolutions, and a hook sees what autograd would keep for the backward pass, so a third party's
part is counted like a built-in one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from components.compose import PARTS, build_model, component_options
from components.vlm import VLM
from ghostvis_plugins import ConfigError

if TYPE_CHECKING:
    from ghostvis_plugins.manager import Registry

CONTEXT = 256  # tokens of the document the backbone is counted on


@dataclass(frozen=True, slots=True)
class Part:
    """One module: what it holds, what it turns into what, and what one unit of work costs.

    ``flops`` and ``activation_bytes`` are per image, for the backbone per token and for the head per target;
    ``flops`` of the forward pass alone (a multiply-add counts 2), ``activation_bytes`` what training keeps.
    """

    kind: str
    name: str
    parameters: int
    shape: str
    unit: str
    flops: int
    activation_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything ``--dry-run`` shows about a model."""

    parts: tuple[Part, ...]
    tokens_per_image: int
    vocab_size: int
    context: int  # tokens of the document that the backbone's figures hold for

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    def training_flops(self, *, tokens: int, images: int, targets: int, trained: Collection[str]) -> int:
        """Forward and backward pass of one step.

        A frozen part costs its forward pass, and as much again for the gradient of its input if something before
        it is trained. The encoder counts for every image; with cached features it is free.
        """
        units = {"image": images, "token": tokens, "target": targets}
        total, upstream = 0, False
        for part in self.parts:
            own = part.kind.replace("head", "backbone") in trained
            upstream = upstream or own
            total += (1 + own + upstream) * part.flops * units[part.unit]
        return total

    def training_bytes(self, *, tokens: int, images: int, targets: int, trained: Collection[str]) -> int:
        """Memory of a float32 step with AdamW: weights, gradients, two moments, activations; no more of the process."""
        units = {"image": images, "token": tokens, "target": targets}
        total, upstream = 0, False
        for part in self.parts:
            own = part.kind.replace("head", "backbone") in trained
            upstream = upstream or own
            total += part.parameters * (16 if own else 4)
            total += part.activation_bytes * units[part.unit] * upstream
        return total

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "parameters": self.parameters}


def plan(
    values: Mapping[str, Any], registry: Registry, vocab_size: int, *, origins: Mapping[str, str] | None = None
) -> Plan:
    """The plan of the model that ``values`` describe. Raises what :func:`components.compose.build_model` raises."""
    model = build_model(values, registry, vocab_size, meta=True, origins=origins)
    names = {kind: (component_options(values, kind) or {}).get("name", "") for kind in PARTS}
    return _measure(model, names)


def _measure(model: VLM, names: Mapping[str, str]) -> Plan:
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    parts = []

    def add(kind: str, shape: str, unit: str, units: int, run: Callable[[], Tensor]) -> None:
        flops, kept = _count(run, weights)
        # The head's weights are the backbone's, and are counted there.
        module = getattr(model, kind, None)
        count = 0 if module is None else sum(p.numel() for p in module.parameters())
        name = names["backbone" if kind == "head" else kind]
        parts.append(Part(kind, name, count, shape, unit, flops // units, kept // units))

    backbone = model.backbone
    if model.encoder is not None and model.resampler is not None and model.projector is not None:
        parts_of_image = (model.encoder, model.resampler, model.projector)
        sizes = [
            (3, *model.encoder.image_size),
            (model.encoder.tokens, model.encoder.out_dim),
            (model.resampler.tokens, model.resampler.out_dim),
            (model.resampler.tokens, backbone.dim),
        ]
        for kind, module, size, result in zip(PARTS, parts_of_image, sizes, sizes[1:], strict=False):
            x = torch.empty(1, *size, device="meta", requires_grad=True)
            shape = " → ".join(f"[I, {', '.join(map(str, s))}]" for s in (size, result))
            add(kind, shape, "image", 1, partial(_run_checked, module, x, result, kind))

    context = min(CONTEXT, backbone.max_positions)
    ids = torch.zeros(context, dtype=torch.long, device="meta")
    where = {
        "positions": torch.arange(context, device="meta"),
        "cu_seqlens": torch.tensor([0, context], dtype=torch.int32, device="cpu"),
    }
    add("backbone", f"[T] → [T, {backbone.dim}]", "token", context, lambda: backbone(backbone.embed(ids), **where))
    hidden = torch.empty(1, backbone.dim, device="meta", requires_grad=True)
    shape = f"[S, {backbone.dim}] → [S, {backbone.vocab_size}]"
    add("head", shape, "target", 1, lambda: backbone.logits(hidden))
    return Plan(tuple(parts), model.tokens_per_image, backbone.vocab_size, context)


def _run_checked(module: Any, x: Tensor, result: tuple[int, ...], kind: str) -> Tensor:
    out: Tensor = module(x)
    if tuple(out.shape) != (1, *result):
        raise ConfigError(
            f"{kind} returns {list(out.shape)} for one image, but its attributes promise {[1, *result]}",
            hint="its tokens and out_dim must be the shape of what forward returns",
        )
    return out


def _count(run: Callable[[], Tensor], weights: Collection[int]) -> tuple[int, int]:
    """Floating-point operations of a forward pass, and the bytes autograd keeps of it beside the weights."""
    kept: dict[int, int] = {}

    def see(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(see, lambda t: t):
        out = run()
    del out
    return counter.get_total_flops(), sum(kept.values())
