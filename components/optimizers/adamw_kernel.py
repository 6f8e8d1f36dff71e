"""Adam on weights in two halves of 16 bits, in one pass over memory, in Triton: for :mod:`.adamw`, which says what.

One launch for many tensors: a launch of Python's takes longer than the update of a small one. Where the tensors lie is
in a table on the device, of which only the gradients' column changes from step to step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 512, 2  # the best of eight pairs on an H100, when numbers were still read one by one
ALIGNED = 16
"""Bytes, or numbers. What lies at a multiple of it, and ends at one, is read several numbers at a time."""


class Table:
    """Where ``high``, ``low``, ``exp_avg`` and ``exp_avg_sq`` of many tensors lie; they have to stay there."""

    def __init__(self, columns: Sequence[Sequence[Tensor]]) -> None:
        device = columns[0][0].device
        places = [self._places(column) for column in columns]
        sizes = torch.tensor([tensor.numel() for tensor in columns[0]])
        self.aligned = not any((column % ALIGNED).any() for column in (*places, sizes))
        self.fixed = [column.to(device) for column in places]
        blocks = -(-sizes // BLOCK)
        self.tensor = torch.repeat_interleave(torch.arange(len(sizes)), blocks).int().to(device)
        self.first = (torch.arange(len(self.tensor)) - torch.repeat_interleave(blocks.cumsum(0) - blocks, blocks)).to(
            device, torch.int32
        )
        self.sizes = sizes.to(device)
        self.device = device

    @staticmethod
    def _places(tensors: Sequence[Tensor]) -> Tensor:
        return torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64)

    def update_(self, gradients: Sequence[Tensor], *scalars: float) -> None:
        """One step of all; ``scalars`` as of :func:`components.optimizers.adamw.update_`."""
        gradients = [gradient.contiguous() for gradient in gradients]
        places = self._places(gradients)
        aligned = self.aligned and not (places % ALIGNED).any()
        if self.device.type == "cuda":
            places = places.pin_memory().to(self.device, non_blocking=True)
        _update[(len(self.tensor),)](
            *self.fixed, places, self.sizes, self.tensor, self.first, *scalars, aligned, BLOCK, num_warps=WARPS
        )


@triton.jit
def _update(  # type: ignore[no-untyped-def]
    highs,
    lows,
    exp_avgs,
    exp_avg_sqs,
    gradients,
    sizes,
    tensors,
    firsts,
    rate1,
    rate2,
    step_size,
    root_correction,
    eps,
    keep,
    factor,
    aligned: tl.constexpr,
    block: tl.constexpr,
):
    program = tl.program_id(0)
    tensor = tl.load(tensors + program)
    at = tl.load(firsts + program).to(tl.int64) * block + tl.arange(0, block)
    size = tl.load(sizes + tensor)
    if aligned:
        size = tl.multiple_of(size, 16)
    inside = at < size
    high_at = _place(highs + tensor, tl.int16, aligned) + at
    low_at = _place(lows + tensor, tl.int16, aligned) + at
    exp_avg_at = _place(exp_avgs + tensor, tl.float32, aligned) + at
    exp_avg_sq_at = _place(exp_avg_sqs + tensor, tl.float32, aligned) + at
    gradient_at = _place(gradients + tensor, tl.bfloat16, aligned) + at

    high, low = tl.load(high_at, mask=inside).to(tl.int32), tl.load(low_at, mask=inside).to(tl.int32)
    weight = ((high << 16) + low).to(tl.float32, bitcast=True)
    gradient = tl.load(gradient_at, mask=inside).to(tl.float32) * factor
    exp_avg, exp_avg_sq = tl.load(exp_avg_at, mask=inside), tl.load(exp_avg_sq_at, mask=inside)
    exp_avg += (gradient - exp_avg) * rate1
    exp_avg_sq += (gradient * gradient - exp_avg_sq) * rate2
    weight = weight * keep - step_size * exp_avg / (tl.sqrt(exp_avg_sq) / root_correction + eps)
    bits = weight.to(tl.int32, bitcast=True)
    high = (bits + 32768) >> 16
    tl.store(high_at, high.to(tl.int16), mask=inside)
    tl.store(low_at, (bits - (high << 16)).to(tl.int16), mask=inside)
    tl.store(exp_avg_at, exp_avg, mask=inside)
    tl.store(exp_avg_sq_at, exp_avg_sq, mask=inside)


@triton.jit
def _place(entry, kind: tl.constexpr, aligned: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.load(entry).to(tl.pointer_type(kind))
    if aligned:
        place = tl.multiple_of(place, 16)  # of the pointer: what is known of the number is forgotten
    return place
