"""What a step took: seconds by phase, peak memory, energy. Reading them makes nobody wait.

On a CUDA device phases are bounded by events in its own queue, which are read when the loop has waited for the device
anyway, to know the loss. A phase that ends after that, the optimizer's, is counted with the next step, where its work
delays the forward pass. Encoding pictures for the feature cache counts as data. Energy is the device's own count (NVML,
package ``nvidia-ml-py``), or that of the processor's package (Linux's powercap, where it may be read), which other
programs share.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

PHASES = ("data", "forward", "backward", "optimizer")
POWERCAP = Path("/sys/class/powercap")


class Meter:
    """Phases of the steps on one device. One of a run."""

    def __init__(self, device: torch.device, *, main: bool) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # of an earlier run in this process
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._open: list[tuple[str, Any, Any]] = []  # phases between events that have not been read
        self._energy = energy_counter(device, main=main)
        self._joules = self._energy() if self._energy else 0.0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside as ``name``: one of :data:`PHASES`."""
        if self.device.type == "cuda" and name != "data":  # data is what the host waits for
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            yield
            last.record()
            self._open.append((name, first, last))
        else:
            began = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - began

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call, as far as the device has come."""
        waiting = []
        for name, first, last in self._open:
            if last.query():
                self._seconds[name] += first.elapsed_time(last) / 1e3
            else:
                waiting.append((name, first, last))
        self._open = waiting
        taken, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return taken

    def joules(self) -> float:
        """Energy since the last call; 0 where none is known."""
        if self._energy is None:
            return 0.0
        before, self._joules = self._joules, self._energy()
        return max(0.0, self._joules - before)  # processors' counters start again at 0 now and then

    def memory(self) -> int | None:
        """Most bytes so far: that tensors held on a CUDA device, else that were resident in this process."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        if sys.platform == "win32":
            return None
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most


def energy_counter(device: torch.device, *, main: bool) -> Callable[[], float] | None:
    """Reads joules since some time in the past; None where nothing tells them.

    Every rank reads its own CUDA device. The processor is read by the main rank alone.
    """
    if device.type == "cuda":
        return _nvml(device)
    return _powercap(POWERCAP) if main and device.type == "cpu" else None


def _nvml(device: torch.device) -> Callable[[], float] | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:  # a slice of a card, an old one, no permission: the figure is left out
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3


def _powercap(root: Path) -> Callable[[], float] | None:
    files = sorted(root.glob("intel-rapl:[0-9]/energy_uj"))  # AMD's processors, too, are under this name

    def read() -> float:
        return sum(int(file.read_text()) for file in files) / 1e6

    try:
        return read if files and read() >= 0 else None
    except OSError:  # readable by root alone on most systems
        return None
