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

PIECE_BYTES = 2**30
"""Most memory for the float32 logits of one piece."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float = 0.0) -> Tensor:
    """Summed negative log-likelihood (nats, float32 scalar) of ``targets`` under the head ``weight``.

    ``hidden`` ``[S, D]``, ``weight`` ``[V, D]``, ``targets`` ``[S]`` int64. Logits are ``hidden @ weight.T``, in the
    type of autocast where it is on, then float32, and with a ``softcap`` c become c · tanh(logits / c).
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if hidden.device.type == "cpu" and 4 * hidden.shape[0] * weight.shape[0] <= PIECE_BYTES:
        logits = F.linear(hidden, weight).float()  # not fused there, the pieces' passes take half as long again
        return F.cross_entropy(softcap * torch.tanh(logits / softcap) if softcap else logits, targets, reduction="sum")
    return _LinearCrossEntropy.apply(hidden, weight, targets, softcap)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        # Summed over pieces, so wider than what is summed.
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        step = max(1, PIECE_BYTES // (4 * weight.shape[0]))
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], step):
                piece = hidden[start : start + step]
                nll, d_logits = _on(hidden.device.type)(F.linear(piece, weight), targets[start : start + step], softcap)
                total += nll
                if d_hidden is not None:
                    torch.mm(d_logits, weight, out=d_hidden[start : start + step])
                if d_weight is not None:
                    d_weight += d_logits.mT @ piece
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        if d_hidden is not None:
            d_hidden = d_hidden * grad.to(d_hidden.dtype)
        if d_weight is not None:
            d_weight = (d_weight * grad).to(ctx.weight_dtype)
        return d_hidden, d_weight, None, None


def _piece(logits: Tensor, targets: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    """Summed loss of ``logits`` ``[C, V]``, and its gradient by them in their own type."""
    z, slope = logits.float(), None
    if softcap:
        bent = torch.tanh(z / softcap)
        z, slope = softcap * bent, 1 - bent.square()
    places = targets[:, None]
    log_total, own = torch.logsumexp(z, dim=-1, keepdim=True), z.gather(-1, places)
    gradient, at_target = (z - log_total).exp(), (own - log_total).exp() - 1
    if slope is not None:
        gradient, at_target = gradient * slope, at_target * slope.gather(-1, places)
    gradient = gradient.to(logits.dtype)
    return (log_total - own).sum(), gradient.scatter_(-1, places, at_target.to(logits.dtype))


@cache
def _on(device: str) -> Any:
    """:func:`_piece`, fused on a GPU: there its passes over the logits cost more than the products around them."""
    return torch.compile(_piece, dynamic=True) if device == "cuda" else _piece
