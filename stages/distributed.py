"""One process or many: ranks, devices and the few collectives that training needs.

Processes are started by ``torchrun``, which says who is who in the environment, or by ``srun``; else there is one.
Gloo talks between CPUs, NCCL between CUDA devices. In a single process every method is a no-op or the identity,
so the loop has no second path.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from components.batch import Batch
from ghostvis_plugins.errors import ConfigError, UnavailableError

from .slurm import join_step

PATIENCE = timedelta(hours=2)
"""How long ranks wait for one another: for a checkpoint, an export, the report's answers. The watchdog sees stalls."""


@dataclass(frozen=True, slots=True)
class Distributed:
    """This process among its peers, and the device it computes on; ``group`` is another than the process's first."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    owns_group: bool = False
    group: Any = None

    @classmethod
    def start(cls, device: str = "auto", threads: int = 0) -> Distributed:
        """Join the process group that the environment describes; pick the device. Raises UnavailableError.

        A group that somebody else has joined already is used as it is, and left to them.
        """
        join_step()
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
            # Beside a GPU the cores prepare pictures, in Python threads: torch's own would fight them for every core.
            threads = threads or 1
        if threads:
            torch.set_num_threads(threads)
        joins = world > 1 and not dist.is_initialized()
        if joins:
            dist.init_process_group(
                "nccl" if chosen.type == "cuda" else "gloo", rank=rank, world_size=world, timeout=PATIENCE
            )
        return cls(rank, world, chosen, joins)

    def apart(self) -> Distributed:
        """The same ranks in a gloo group of their own: for a thread, whose collectives must not meet those of another.

        All ranks call it. The group ends with the process's first one. Raises UnavailableError.
        """
        if self.world == 1:
            return self
        try:
            group = dist.new_group(backend="gloo", timeout=PATIENCE)
        except RuntimeError as error:
            raise UnavailableError(
                f"processes cannot reach one another by gloo, to write checkpoints beside the training: {error}",
                hint="GLOO_SOCKET_IFNAME names the network interface; stage.checkpoint_async = false needs no gloo",
            ) from error
        return replace(self, group=group, owns_group=False)

    def stop(self) -> None:
        """Leave the process group, if this object joined it."""
        if self.owns_group and dist.is_initialized():
            dist.destroy_process_group()

    def use_device(self) -> None:
        """Make the device current in this thread: another one would open CUDA's first."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and talks."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier(self.group)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up ``tensor`` over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def on_main(self, action: Callable[[], Any]) -> Any:
        """What ``action`` returns in the main process, in all of them. Raises the OSError that it raised there."""
        outcome = None
        if self.is_main:
            try:
                outcome = action()
            except OSError as error:
                outcome = error
        outcome = self.gather(outcome)[0]
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every rank, on every rank. For small things at rare times."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.group)
        return values


def to_device(numbers: Sequence[float], device: torch.device) -> Tensor:
    """Send a row of numbers to the device, as float32, without waiting for the work that is queued there."""
    host = torch.tensor(numbers, dtype=torch.float32)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def to_host(numbers: Tensor) -> Callable[[], list[float]]:
    """Send a row of numbers from the device, and go on; the result waits until they are here, and for nothing later."""
    if numbers.device.type != "cuda":
        return numbers.tolist
    host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> list[float]:
        arrived.synchronize()
        return host.tolist()  # type: ignore[no-any-return]

    return read


class Upload:
    """Sends batches to a device: to a CUDA device on a stream of its own, where computing waits for its batch alone."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        if self.stream is None:
            return batch.to(self.device)
        with torch.cuda.stream(self.stream):
            batch = batch.to(self.device)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.stream)
        batch.record_stream(computing)
        return batch


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` is CUDA, else Apple's MPS, else the CPU. Raises UnavailableError for a device that is not there."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    kind = name.partition(":")[0]
    if (kind == "cuda" and not cuda) or (kind == "mps" and not mps):
        raise UnavailableError(f"device = {name}: this machine has none", hint="use device = auto or cpu")
    if name == "cuda":
        name = f"cuda:{local_rank}"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UnavailableError(f"device = {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def autocast(dtype: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Where the forward pass runs in ``dtype``; weights stay float32. Raises ConfigError for float16."""
    low = compute_dtype(dtype, device)
    return torch.autocast(device.type, low) if low else contextlib.nullcontext()


def compute_dtype(dtype: str, device: torch.device) -> torch.dtype | None:
    """What products are computed in; None for the weights' own type. Raises ConfigError for float16.

    "auto" is bfloat16 where a CUDA device computes it, and float32 elsewhere: many CPUs only emulate it, slowly.
    """
    if dtype == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if native else "float32"
    if dtype == "float16":
        raise ConfigError("dtype = float16: training needs loss scaling for it", hint="use bfloat16 or float32")
    return torch.bfloat16 if dtype == "bfloat16" else None
