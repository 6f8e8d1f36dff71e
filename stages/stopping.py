"""A request to stop: SIGTERM or SIGUSR1 lets the step finish, saves, and ends with the requeue code.

The handler only takes a note. The loop adds it to the step's own all-reduce, so all ranks stop after the same step
although each is told at another moment, or only one of them is. Job managers send one request to a process more than
once (to the job, to its group, and through the launcher): what follows within ``SAME_REQUEST`` seconds is the same.
A later one ends the process as if nothing had been installed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]  # Windows has one
SAME_REQUEST = 2.0


class Stopping:
    """While its ``with`` block runs, signals are requests. In other threads than the main one it sees none."""

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._since = True, now
        elif now - self._since > SAME_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
