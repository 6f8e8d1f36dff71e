"""What a training step costs in floating-point operations: those that the run needs, and no others.

Nothing is known here of any architecture. The parts run once, forward and backward, on the meta device with just the
gradients that the run wants, and torch's counter adds up matrix products and convolutions. So a linear layer that
trains costs three times its forward pass; a frozen one above something that trains costs twice, for the gradient of
its input; a frozen one above nothing that trains costs once. The counts are polynomials: a picture costs a constant, a
document of n tokens with s targets costs ``token · n + pair · n² + target · s``, where the last layer's output and the
head are in ``target``, and attention is in ``pair``.

Useful work only, so that a share of the device's peak means something. Counted are the halves of attention that causal
queries see. Not counted: padding inside kernels, what a kernel or a checkpoint computes twice, encoding that cached
features spared, element-wise operations, embedding look-ups, the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from components.batch import Batch
from components.vlm import VLM

LENGTH = 32  # tokens of the shorter of two documents that a backbone is counted on
IMAGES = 2  # pictures that vision parts are counted on: a batch norm in training mode wants more than one

# TFLOP/s, dense bfloat16 with float32 sums: published figures, not measured here. The first key within the name wins.
PEAKS = {
    "GB200": 2500.0,
    "B300": 2250.0,
    "B200": 2250.0,
    "GH200": 989.4,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "H800": 989.4,
    "A100": 311.9,
    "A800": 311.9,
    "A10G": 70.0,
    "A40": 149.7,
    "A30": 165.2,
    "A10": 125.0,
    "L40S": 362.1,
    "L40": 181.0,
    "L4": 121.0,
    "RTX PRO 6000": 503.8,
    "RTX 6000 Ada": 364.2,
    "RTX A6000": 154.8,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.2,
}


def peak_flops(device: torch.device) -> float | None:
    """Operations per second that ``device`` could do at most, dense in bfloat16; None where that isn't known."""
    if device.type != "cuda":
        return None
    return peak_of_name(torch.cuda.get_device_name(device))


def peak_of_name(name: str) -> float | None:
    """The same for a name that CUDA gives its device, such as "NVIDIA H100 80GB HBM3"."""
    words = f" {name.replace('-', ' ')} "  # "NVIDIA A100-SXM4-80GB"; and "L4" is no "L40"
    if " MIG " in words or " Laptop " in words:
        return None  # a slice of the card, or another chip under its name
    return next((1e12 * peak for card, peak in PEAKS.items() if f" {card} " in words), None)


@dataclass(frozen=True, slots=True)
class TextFlops:
    """Forward and backward pass of the language model with its head: per token, pair of tokens n², and target."""

    token: float
    pair: float
    target: float


@dataclass(frozen=True, slots=True)
class StepFlops:
    """What a batch costs. ``text`` is for batches without pictures, through which no gradient reaches the vision path.

    ``encoder`` is per picture that goes through it, ``connector`` (resampler and projector) per picture.
    """

    encoder: float
    connector: float
    text: TextFlops
    mixed: TextFlops

    def __call__(self, batch: Batch, encoded: int) -> float:
        """Operations of one batch, ``encoded`` of whose pictures went through the encoder."""
        pairs = float(batch.cu_seqlens.double().diff().square().sum())
        return self.of(len(batch), pairs, batch.target_rows.numel(), len(batch.images), encoded)

    def of(self, tokens: float, pairs: float, targets: float, images: float, encoded: float) -> float:
        """The same by numbers; ``pairs`` sums the squares of the documents' lengths."""
        text = self.mixed if images else self.text
        own = text.token * tokens + text.pair * pairs + text.target * targets
        return own + self.connector * images + self.encoder * encoded

    @classmethod
    def measure(cls, model: VLM) -> StepFlops:
        """Count ``model`` as its parameters' ``requires_grad`` and its parts' modes stand. Its tensors stay unread."""
        found: tuple[float, float, TextFlops, TextFlops] = functional_call(
            _Within(model), _on_meta(model), (lambda: _measure(model),)
        )
        return cls(*found)


class _Within(nn.Module):
    """Calls a function while ``functional_call`` has another set of tensors in the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


def _on_meta(model: nn.Module) -> dict[str, Tensor]:
    """Tensors without data for every parameter and buffer, which want gradients where the model's do."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {f"model.{name}": t.detach().to("meta").requires_grad_(t.requires_grad) for name, t in named}


def _measure(model: VLM) -> tuple[float, float, TextFlops, TextFlops]:
    encoder, connector, reaches = 0.0, 0.0, False
    if model.encoder is not None:
        pixels = torch.empty(IMAGES, 3, *model.encoder.image_size, device="meta")
        features = torch.empty(IMAGES, model.encoder.tokens, model.encoder.out_dim, device="meta")
        features.requires_grad_(not model.encoder_frozen)
        encoder = _count(lambda: model.encode(pixels)) / IMAGES
        connector = _count(lambda: model.vision_vectors(features=features)) / IMAGES
        reaches = model.vision_vectors(features=features).requires_grad
    text = _measure_text(model.backbone, False)
    return encoder, connector, text, _measure_text(model.backbone, True) if reaches else text


def _measure_text(backbone: Any, vision_trains: bool) -> TextFlops:
    """Three documents give three unknowns. ``vision_trains``: a gradient of the embedded text is wanted."""
    length = min(LENGTH, backbone.max_positions // 2)
    few = max(1, length // 4)

    def body(tokens: int, targets: int) -> Tensor:
        x = backbone.embed(torch.zeros(tokens, dtype=torch.long, device="meta"))
        if vision_trains and not x.requires_grad:
            x.requires_grad_()
        cu_seqlens = torch.tensor([0, tokens], dtype=torch.int32)
        rows = torch.arange(targets, device="meta")
        positions = torch.arange(tokens, device="meta")
        return backbone(x, positions=positions, cu_seqlens=cu_seqlens, rows=rows)  # type: ignore[no-any-return]

    short, long = _count(lambda: body(length, few)), _count(lambda: body(2 * length, few))
    row = (_count(lambda: body(length, length)) - short) / (length - few) if length > few else 0.0
    by_token, by_token_twice = (short - few * row) / length, (long - few * row) / (2 * length)
    pair = (by_token_twice - by_token) / length
    out = body(length, few)
    hidden = out.detach().requires_grad_(out.requires_grad)
    head = _count(lambda: backbone.logits(hidden)) / few
    return TextFlops(by_token - pair * length, pair / 2, row + head)


def _count(run: Callable[[], Tensor]) -> int:
    """Operations of a forward pass, and of the backward pass if anything wants one."""
    with FlopCounterMode(display=False) as counter:
        out = run()
        if out.requires_grad:
            out.backward(torch.empty_like(out))
    return int(counter.get_total_flops())
