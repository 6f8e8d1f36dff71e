"""Adam on weights in two halves of 16 bits, in one pass over memory, in Triton: for :mod:`.adamw`, which says what."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def update_(
    high: Tensor,
    low: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rate1: float,
    rate2: float,
    step_size: float,
    root_correction: float,
    eps: float,
    keep: float,
) -> None:
    """As :func:`components.optimizers.adamw.update_`, whose arguments these are."""
    size = high.numel()
    tensors = (high, low, gradient.contiguous(), exp_avg, exp_avg_sq)
    scalars = (rate1, rate2, step_size, root_correction, eps, keep)
    _update[(triton.cdiv(size, BLOCK),)](*tensors, size, *scalars, BLOCK)


@triton.jit
def _update(  # type: ignore[no-untyped-def]
    high_at,
    low_at,
    gradient_at,
    exp_avg_at,
    exp_avg_sq_at,
    size,
    rate1,
    rate2,
    step_size,
    root_correction,
    eps,
    keep,
    block: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < size
    high, low = tl.load(high_at + at, mask=inside).to(tl.int32), tl.load(low_at + at, mask=inside).to(tl.int32)
    weight = ((high << 16) + low).to(tl.float32, bitcast=True)
    gradient = tl.load(gradient_at + at, mask=inside).to(tl.float32)
    exp_avg, exp_avg_sq = tl.load(exp_avg_at + at, mask=inside), tl.load(exp_avg_sq_at + at, mask=inside)
    exp_avg += (gradient - exp_avg) * rate1
    exp_avg_sq += (gradient * gradient - exp_avg_sq) * rate2
    weight = weight * keep - step_size * exp_avg / (tl.sqrt(exp_avg_sq) / root_correction + eps)
    bits = weight.to(tl.int32, bitcast=True)
    high = (bits + 32768) >> 16
    tl.store(high_at + at, high.to(tl.int16), mask=inside)
    tl.store(low_at + at, (bits - (high << 16)).to(tl.int16), mask=inside)
    tl.store(exp_avg_at + at, exp_avg, mask=inside)
    tl.store(exp_avg_sq_at + at, exp_avg_sq, mask=inside)
