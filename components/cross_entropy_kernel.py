"""The cross-entropy of logits and its gradient in two passes over them, in Triton: for :mod:`components.cross_entropy`.

One program a row. The first pass keeps a running maximum and sum (online softmax, Milakov and Gimelshein 2018), of
capped logits the sum alone; the second writes the gradient over the logits. A row of 150,000 numbers is 300 kB and few
are in flight at a time, so the second pass mostly reads from the cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 8192


def cross_entropy_(logits: Tensor, targets: Tensor, softcap: float) -> Tensor:
    """Summed loss of ``logits`` ``[C, V]`` (float32 scalar); their gradient takes their place.

    A ``softcap`` must be at most 40: exp(-2 · softcap) has to be a float32.
    """
    rows, columns = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    block = min(BLOCK, triton.next_power_of_2(columns))
    kinds = softcap > 0, columns % block == 0
    _row[(rows,)](logits, targets, losses, columns, logits.stride(0), softcap, *kinds, block, num_warps=16)
    return losses.sum()


@triton.jit
def _row(  # type: ignore[no-untyped-def]
    logits, targets, losses, columns, stride, softcap, capped: tl.constexpr, whole: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    at_target = logits + tl.load(targets + row)
    if capped:  # no logit is above the cap, so the cap serves as the maximum
        peak = softcap
        sums = tl.zeros([block], tl.float32)
        for start in range(0, columns, block):
            z = _load(logits, start, columns, whole, block)
            shares = tl.exp(-softcap * _gap(z, softcap))
            sums += shares if whole else tl.where(z == -float("inf"), 0.0, shares)
        total = tl.sum(sums, 0)
    else:
        peak, total = -float("inf"), 0.0
        for start in range(0, columns, block):
            z = _load(logits, start, columns, whole, block)
            higher = tl.maximum(peak, tl.max(z, 0))
            total = total * tl.exp(peak - higher) + tl.sum(tl.exp(z - higher), 0)
            peak = higher
    share = 1 / total
    own, slope = tl.load(at_target).to(tl.float32), 1.0
    if capped:
        below = _gap(own, softcap)
        own, slope = softcap - softcap * below, below * (2 - below)
    tl.store(losses + row, peak + tl.log(total) - own)
    of_target = (tl.exp(own - peak) * share - 1) * slope
    tl.debug_barrier()  # every thread has read the target's logit before one of them writes there
    for start in range(0, columns, block):
        z = _load(logits, start, columns, whole, block)
        if capped:
            gap = _gap(z, softcap)
            gradient = tl.exp(-softcap * gap) * share * gap * (2 - gap)
        else:
            gradient = tl.exp(z - peak) * share
        at = start + tl.arange(0, block)
        tl.store(logits + at, gradient.to(logits.dtype.element_ty), mask=None if whole else at < columns)
    tl.debug_barrier()  # the target's is written last
    tl.store(at_target, of_target.to(logits.dtype.element_ty))


@triton.jit
def _load(logits, start, columns, whole: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    at = start + tl.arange(0, block)
    if whole:
        return tl.load(logits + at).to(tl.float32)
    return tl.load(logits + at, mask=at < columns, other=-float("inf")).to(tl.float32)


@triton.jit
def _gap(z, softcap):  # type: ignore[no-untyped-def]
    """1 - tanh(z / softcap): how far a capped logit stays below the cap, in caps; its slope is gap · (2 - gap)."""
    return 2 / (1 + tl.exp(z * (2 / softcap)))
