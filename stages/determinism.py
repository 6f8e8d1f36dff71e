"""The same run twice: generators seeded step by step, and kernels that give the same bits every time."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from ghostvis_plugins.errors import UnavailableError


def step_seed(seed: int, step: int, rank: int) -> int:
    """The generators' seed of one step on one rank."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:7], "little")


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the CPU's generator and that of ``device``.

    ``torch.manual_seed`` seeds every kind of device. One that has not been used keeps each call for later, with a
    stack trace: 1.5 ms a step, and memory that grows.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextlib.contextmanager
def deterministic(*, enabled: bool) -> Iterator[None]:
    """Inside, a device sums in one order. Raises UnavailableError from an operation that it cannot do so.

    CPUs do it anyway. On CUDA devices it rules out cuDNN's attention and the atomic additions of several gradients.
    """
    if not enabled:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS's condition; read at its first product
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # a pass over memory, for a fault of another kind
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise UnavailableError(
            f"stage.deterministic: {str(error).splitlines()[0]}",
            hint="leave stage.deterministic out, or choose a component without this operation",
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]
