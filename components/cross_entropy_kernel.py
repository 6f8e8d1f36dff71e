"""The cross-entropy of logits and its gradient in two passes over them, in Triton: for :mod:`components.cross_entropy`.

One program a row. The first pass keeps a running maximum and sum (online softmax, Milakov and Gimelshein 2018), the
second writes the gradient over the logits. A row of 150,000 numbers is 300 kB and few are in flight at a time, so the
second pass mostly reads from the cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 8192


def cross_entropy_(logits: Tensor, targets: Tensor, softcap: float) -> Tensor:
    """Summed loss of ``logits`` ``[C, V]`` (float32 scalar); their gradient takes their place."""
    rows, columns = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    block = min(BLOCK, triton.next_power_of_2(columns))
    _row[(rows,)](logits, targets, losses, columns, logits.stride(0), softcap, softcap > 0, block, num_warps=16)
    return losses.sum()


@triton.jit
def _row(logits, targets, losses, columns, stride, softcap, capped: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    peak, total = -float("inf"), 0.0
    for start in range(0, columns, block):
        z = _load(logits, start, columns, softcap, capped, block)
        higher = tl.maximum(peak, tl.max(z, 0))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(z - higher), 0)
        peak = higher
    own = tl.load(logits + target).to(tl.float32)
    if capped:
        own = _bend(own, softcap)
    tl.store(losses + row, peak + tl.log(total) - own)
    tl.debug_barrier()  # every thread has read the target's logit before one of them writes there
    for start in range(0, columns, block):
        z = _load(logits, start, columns, softcap, capped, block)
        at = start + tl.arange(0, block)
        gradient = tl.exp(z - peak) / total - tl.where(at == target, 1.0, 0.0)
        if capped:
            gradient *= 1 - (z / softcap) * (z / softcap)
        tl.store(logits + at, gradient.to(logits.dtype.element_ty), mask=at < columns)


@triton.jit
def _load(logits, start, columns, softcap, capped: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    at = start + tl.arange(0, block)
    z = tl.load(logits + at, mask=at < columns, other=0.0).to(tl.float32)
    if capped:
        z = _bend(z, softcap)
    return tl.where(at < columns, z, -float("inf"))


@triton.jit
def _bend(z, softcap):  # type: ignore[no-untyped-def]
    """softcap · tanh(z / softcap), by the sigmoid: a few instructions."""
    return softcap * (2 * tl.sigmoid(2 * z / softcap) - 1)
