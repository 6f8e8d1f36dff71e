"""What a model would cost, found on the meta device: no weight is allocated, no number is guessed.

The parts run once on tensors without data. torch's counter adds up the floating-point operations of matrix
products and convolutions, and a hook sees what autograd would keep for the backward pass, so a third party's
part is counted like a built-in one. What a training step costs is :mod:`components.flops`'s to say.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from components.compose import PARTS, build_model, component_options
from components.flops import StepFlops
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
    step: StepFlops | None = None  # under the learning rates of a run

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    def training_flops(self, *, tokens: int, images: int, targets: int) -> int:
        """Forward and backward pass of one step of documents of ``context`` tokens; every picture is encoded.

        Raises ValueError when there are no learning rates to say what trains.
        """
        if self.step is None:
            raise ValueError("what a step costs hangs on what trains: give plan() a freeze")
        return round(self.step.of(tokens, tokens * self.context, targets, images, images))

    def activation_bytes(self, *, tokens: int, images: int, targets: int, trained: Collection[str]) -> int:
        """What a pass of so much work keeps for the backward pass, when parts of the kinds ``trained`` train.

        In the types that the parts have, so autocast to half of them needs less; nothing before the first part that
        trains is kept, and of that part and those behind it all.
        """
        units = {"image": images, "token": tokens, "target": targets}
        total, upstream = 0, False
        for part in self.parts:
            upstream = upstream or part.kind.replace("head", "backbone") in trained
            total += part.activation_bytes * units[part.unit] * upstream
        return total

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "parameters": self.parameters}


def plan(
    values: Mapping[str, Any],
    registry: Registry,
    vocab_size: int,
    *,
    origins: Mapping[str, str] | None = None,
    freeze: Callable[[VLM], object] | None = None,
    recomputes: bool = False,
) -> Plan:
    """The plan of the model that ``values`` describe. Raises what :func:`components.compose.build_model` raises.

    With ``freeze``, which sets what trains, the plan tells what a step costs, too. A backbone that ``recomputes``
    keeps as much less as its ``activation_checkpointing`` saves, where it has that.
    """
    model = build_model(values, registry, vocab_size, meta=True, origins=origins)
    if recomputes and hasattr(model.backbone, "activation_checkpointing"):
        model.backbone.activation_checkpointing = True
    names = {kind: (component_options(values, kind) or {}).get("name", "") for kind in PARTS}
    measured = _measure(model, names)
    if freeze is None:
        return measured
    freeze(model)
    return replace(measured, step=StepFlops.measure(model))


def _measure(model: VLM, names: Mapping[str, str]) -> Plan:
    parts: list[Part] = []
    backbone = model.backbone
    if model.encoder is not None and model.resampler is not None and model.projector is not None:
        features = (model.encoder.tokens, model.encoder.out_dim)
        resampled = (model.resampler.tokens, model.resampler.out_dim)
        parts.append(_of_image("encoder", names, model.encoder, (3, *model.encoder.image_size), features))
        parts.append(_of_image("resampler", names, model.resampler, features, resampled))
        parts.append(_of_image("projector", names, model.projector, resampled, (resampled[0], backbone.dim)))
    parts += _of_text(names["backbone"], backbone)
    context = min(CONTEXT, backbone.max_positions)
    return Plan(tuple(parts), model.tokens_per_image, backbone.vocab_size, context)


def measure_alone(kind: str, options: Mapping[str, Any], registry: Registry) -> tuple[Any, list[Part]]:
    """A part outside of any model, on the meta device, and what it costs; a backbone's head is a part of its own.

    What a model would decide is assumed: 256 features of width 1,024, a model of width 1,024, 32,768 token ids.
    """
    name = options["name"]
    config, build = registry.make_config(kind, name, options), registry.get(kind, name).load_build()
    known = {"in_dim": 1024, "in_tokens": 256, "model_dim": 1024, "out_dim": 1024, "vocab_size": 32_768}
    named = inspect.signature(build).parameters
    with torch.device("meta"):
        module = build(config, **{key: value for key, value in known.items() if key in named})
    if kind == "backbone":
        return module, _of_text(name, module)
    features, width = (known["in_tokens"], known["in_dim"]), module.out_dim
    if kind == "encoder":
        size, result = (3, *module.image_size), (module.tokens, width)
    else:
        size, result = features, (module.tokens if kind == "resampler" else features[0], width)
    return module, [_of_image(kind, {kind: name}, module, size, result)]


def _of_image(kind: str, names: Mapping[str, str], module: Any, size: tuple[int, ...], result: tuple[int, ...]) -> Part:
    x = torch.empty(1, *size, device="meta", requires_grad=True)
    shape = " → ".join(f"[I, {', '.join(map(str, s))}]" for s in (size, result))
    return _part(kind, names[kind], module, shape, "image", 1, partial(_run_checked, module, x, result, kind))


def _of_text(name: str, backbone: Any) -> list[Part]:
    context = min(CONTEXT, backbone.max_positions)
    ids = torch.zeros(context, dtype=torch.long, device="meta")
    where = {
        "positions": torch.arange(context, device="meta"),
        "cu_seqlens": torch.tensor([0, context], dtype=torch.int32, device="cpu"),
    }

    def run() -> Tensor:
        return backbone(backbone.embed(ids), **where)  # type: ignore[no-any-return]

    body = _part("backbone", name, backbone, f"[T] → [T, {backbone.dim}]", "token", context, run)
    if getattr(backbone, "activation_checkpointing", False):
        backbone.activation_checkpointing = False
        whole = _part("backbone", name, backbone, body.shape, "token", context, run).activation_bytes
        backbone.activation_checkpointing = True
        # Beside the inputs of all layers, what one of them keeps while it is computed again.
        one = max(0, whole - body.activation_bytes) // backbone.n_layers
        body = replace(body, activation_bytes=body.activation_bytes + one)
    dtype = next(backbone.parameters()).dtype
    hidden = torch.empty(1, backbone.dim, device="meta", dtype=dtype, requires_grad=True)
    shape = f"[S, {backbone.dim}] → [S, {backbone.vocab_size}]"
    # The head's weights are the backbone's, and are counted there.
    head = _part("head", name, backbone, shape, "target", 1, lambda: backbone.logits(hidden))
    return [body, replace(head, parameters=0)]


def _part(kind: str, name: str, module: Any, shape: str, unit: str, units: int, run: Callable[[], Tensor]) -> Part:
    flops, kept = _count(run, {p.untyped_storage()._cdata for p in module.parameters()})
    count = sum(p.numel() for p in module.parameters())
    return Part(kind, name, count, shape, unit, flops // units, kept // units)


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
