"""What a side is, and how the time, the memory and the learning of one are measured."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn


class Side(Protocol):
    """One of two that do the same work."""

    losses: list[float]

    def prepare(self, micro: int) -> None:
        """Lay batches ready, of ``micro`` units (tokens of ours, samples of a peer) in a forward pass."""

    def run(self, count: int) -> list[float]:
        """Do the next ``count`` steps; seconds of each."""

    def model(self) -> nn.Module | None:
        """What trains; None where nothing does."""

    def forget(self) -> None:
        """Drop gradients and the optimizer's state: a step that ran out of memory left some of each."""

    def facts(self) -> Mapping[str, Any]:
        """More that the table or the JSON should say."""


def now(device: torch.device) -> float:
    """Seconds, when the device has done all that it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def held(device: torch.device) -> int:
    """Bytes of tensors on the device; 0 where nobody counts them."""
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else 0


def peak(device: torch.device, *, reset: bool = False) -> int | None:
    """Most bytes of tensors since the last reset; None where nobody counts them."""
    if device.type != "cuda":
        return None
    if reset:
        torch.cuda.reset_peak_memory_stats(device)
    return int(torch.cuda.max_memory_allocated(device))


def retries(device: torch.device) -> int:
    """How often the allocator had to give memory back to find some: a size that does that is too large to be fast."""
    return int(torch.cuda.memory_stats(device).get("num_alloc_retries", 0)) if device.type == "cuda" else 0


def drop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Gradients and the optimizer's state."""
    model.zero_grad(set_to_none=True)
    optimizer.state.clear()


def free(*, compiled: bool = False) -> None:
    """Give back what nothing refers to; with ``compiled`` also what was compiled."""
    if compiled:
        torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def settle(side: Side, sizes: list[int], warm: int, device: torch.device) -> int:
    """Prepare the largest of ``sizes`` (descending) that fits, and warm up. Raises OutOfMemoryError when none does."""
    for last, size in ((size == sizes[-1], size) for size in sizes):
        side.prepare(size)
        before = retries(device)
        try:
            side.run(warm)
            fits = last or retries(device) == before
        except torch.OutOfMemoryError:
            if last:
                raise
            fits = False
        if fits:
            return size
        side.forget()
        free()
    raise AssertionError("sizes are empty")


def checksums(model: nn.Module) -> dict[str, tuple[bool, int]]:
    """Of each parameter: whether it trains, and the sum of its bits."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {
        name: (p.requires_grad, int(p.detach().view(kinds[p.element_size()]).sum(dtype=torch.int64)))
        for name, p in model.named_parameters()
        if p.ndim >= 2  # vectors near 1 in bfloat16 don't move at a small learning rate
    }


def check_learnt(side: Side, before: Mapping[str, tuple[bool, int]]) -> None:
    """Raises RuntimeError when a loss is no number, a matrix that trains stayed, or a frozen one moved."""
    if not side.losses or not all(map(math.isfinite, side.losses)):
        raise RuntimeError(f"losses that are not finite: {side.losses}")
    model = side.model()
    if model is None:
        return
    after = checksums(model)
    stayed = [name for name, (trains, bits) in after.items() if trains and bits == before[name][1]]
    moved = [name for name, (trains, bits) in after.items() if not trains and bits != before[name][1]]
    if stayed or moved:
        raise RuntimeError(f"did not move: {stayed[:5]}; moved though frozen: {moved[:5]}")
