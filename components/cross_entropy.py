"""Cross-entropy of a language model's head without its logits: rows go through the head in pieces.

The logits of 32,768 tokens over 151,936 ids are 20 GB in float32, and autograd would keep them. Here each piece of
rows leaves only what the backward pass needs, its gradients, because that of a sum of cross-entropies is known with
the loss itself: softmax(logits) minus the one-hot target (the method of "Cut your losses", Wijmans et al. 2024, and
of Liger's fused head, Hsu et al. 2024). No product is computed twice, and memory is one piece of logits.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from components.compiled import compute_dtype

HALF = (torch.bfloat16, torch.float16)
PIECE_BYTES = 2**31
"""Most memory for the float32 logits of one piece."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float = 0.0) -> Tensor:
    """Summed negative log-likelihood (nats, float32 scalar) of ``targets`` under the head ``weight``.

    ``hidden`` ``[S, D]``, ``weight`` ``[V, D]``, ``targets`` ``[S]`` int64. Logits are ``hidden @ weight.T``, in the
    type of autocast where it is on, then float32, and with a ``softcap`` c become c · tanh(logits / c).
    """
    dtype = compute_dtype(hidden)
    if hidden.device.type == "cpu" and 4 * hidden.shape[0] * weight.shape[0] <= PIECE_BYTES:
        # Not fused there, the pieces' passes take half as long again.
        logits = F.linear(hidden.to(dtype), weight.to(dtype)).float()
        return F.cross_entropy(softcap * torch.tanh(logits / softcap) if softcap else logits, targets, reduction="sum")
    return _LinearCrossEntropy.apply(hidden, weight, targets, softcap, dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float, dtype: torch.dtype
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        ctx.dtypes = hidden.dtype, weight.dtype
        # Summed over pieces, so wider than what is summed.
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        fitting = max(1, PIECE_BYTES // (4 * weight.shape[0]))
        step = -(-hidden.shape[0] // -(-hidden.shape[0] // fitting)) if hidden.shape[0] else 1  # pieces of one size
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], step):
                piece = hidden[start : start + step]
                nll, d_logits = _on(hidden.device.type)(F.linear(piece, weight), targets[start : start + step], softcap)
                total += nll
                if d_hidden is not None:
                    torch.mm(d_logits, weight, out=d_hidden[start : start + step])
                if d_weight is not None:
                    _add_product(d_weight, d_logits.mT, piece)
        ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = [
            None if d is None else d.mul_(grad).to(dtype)
            for d, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *found, None, None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b``: within one kernel where the product of half types can be summed in float32."""
    if a.is_cuda and a.dtype in HALF:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b


def _piece(logits: Tensor, targets: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    """Summed loss of ``logits`` ``[C, V]``, and its gradient by them in their own type.

    Written for the compiler: greatest and sum of one softmax become one pass over the logits, and a sigmoid is a few
    instructions where the tangens is many.
    """
    z, slope = logits.float(), None
    if softcap:
        half = torch.sigmoid(z * (2 / softcap))  # tanh(u) = 2 sigmoid(2u) - 1
        z, slope = softcap * (2 * half - 1), 4 * half * (1 - half)
        peak = torch.full_like(z[:, :1], softcap)
    else:
        peak = z.amax(dim=-1, keepdim=True)
    places = targets[:, None]
    powers = (z - peak).exp()
    total = powers.sum(dim=-1, keepdim=True)
    own = z.gather(-1, places) - peak
    gradient, at_target = powers / total, own.exp() / total - 1
    if slope is not None:
        gradient, at_target = gradient * slope, at_target * slope.gather(-1, places)
    gradient = gradient.to(logits.dtype)
    return (total.log() - own).sum(), gradient.scatter_(-1, places, at_target.to(logits.dtype))


@cache
def _on(device: str) -> Any:
    """:func:`_piece`, fused on a GPU: there its passes over the logits cost more than the products around them."""
    return torch.compile(_piece, dynamic=True) if device == "cuda" else _piece
