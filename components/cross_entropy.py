"""Cross-entropy of a language model's head without its logits: rows go through the head in pieces.

The logits of 32,768 tokens over 151,936 ids are 20 GB in float32, and autograd would keep them. Here each piece of
rows leaves only what the backward pass needs, its gradients, because that of a sum of cross-entropies is known with
the loss itself: softmax(logits) minus the one-hot target (the method of "Cut your losses", Wijmans et al. 2024, and
of Liger's fused head, Hsu et al. 2024). No product is computed twice, and memory is one piece of logits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from components.precision import HALF, autocast_dtype
from components.toolchain import lacking

PIECE_BYTES = 2**31
"""Most memory for the float32 logits of one piece."""
LARGEST_CAP = 40.0
"""Largest softcap of the kernel, which takes it for the maximum: exp(-2 · cap) has to be a float32."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float = 0.0) -> Tensor:
    """Summed negative log-likelihood (nats, float32 scalar) of ``targets`` under the head ``weight``.

    ``hidden`` ``[S, D]``, ``weight`` ``[V, D]``, ``targets`` ``[S]`` int64. Logits are ``hidden @ weight.T``, in the
    type of autocast where it is on, then float32, and with a ``softcap`` c become c · tanh(logits / c).
    """
    dtype = autocast_dtype(hidden)
    if hidden.device.type == "cpu" and 4 * hidden.shape[0] * weight.shape[0] <= PIECE_BYTES:
        # Not fused there, the pieces' passes take half as long again.
        logits = F.linear(hidden.to(dtype), weight.to(dtype)).float()
        return F.cross_entropy(softcap * torch.tanh(logits / softcap) if softcap else logits, targets, reduction="sum")
    if not torch.is_grad_enabled():  # an autograd function is told that gradients are wanted even so
        hidden, weight = hidden.detach(), weight.detach()
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
        loss_of = _piece if softcap > LARGEST_CAP else _on(hidden.device.type)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], step):
                piece = hidden[start : start + step]
                logits = F.linear(piece, weight)
                total += loss_of(logits, targets[start : start + step], softcap)
                d_logits = logits  # what stands there now
                if d_hidden is not None:
                    torch.mm(d_logits, weight, out=d_hidden[start : start + step])
                if d_weight is not None:
                    _add_product(d_weight, d_logits.mT, piece)
        ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # A second copy of the head's gradient is a gigabyte, so only a graph that is kept for another pass has it.
        kept = torch._C._autograd._get_current_graph_task_keep_graph()
        found = [
            None if d is None else (d.mul(grad) if kept else d.mul_(grad)).to(dtype)
            for d, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *found, None, None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b``: within one kernel where the product of half types can be summed in float32."""
    if a.is_cuda and a.dtype in HALF:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b


def _piece(logits: Tensor, targets: Tensor, softcap: float) -> Tensor:
    """Summed loss of ``logits`` ``[C, V]`` (float32 scalar); their gradient takes their place."""
    z, slope = logits.float(), None
    if softcap:
        bent = torch.tanh(z / softcap)
        z, slope = softcap * bent, 1 - bent.square()
    places = targets[:, None]
    log_total, own = torch.logsumexp(z, dim=-1, keepdim=True), z.gather(-1, places)
    gradient, at_target = (z - log_total).exp(), (own - log_total).exp() - 1
    if slope is not None:
        gradient, at_target = gradient * slope, at_target * slope.gather(-1, places)
    logits.copy_(gradient).scatter_(-1, places, at_target.to(logits.dtype))
    return (log_total - own).sum()


@cache
def _on(device: str) -> Callable[[Tensor, Tensor, float], Tensor]:
    """:func:`_piece`, in one kernel on a GPU: its passes over the logits would cost more than the products around.

    Where the machine cannot make the kernel (:mod:`components.toolchain`), these passes are what there is.
    """
    if device == "cuda" and lacking(device) is None:
        from .cross_entropy_kernel import cross_entropy_

        return cross_entropy_
    return _piece
