"""Says where a run hangs: when no step ends for long, the stacks of all threads go to the run directory and stderr.

Once per stall; nothing is ended, since a slow disk is no reason to lose a run. A thread of this interpreter can tell,
because what hangs in practice (a collective, a file system, a device, a lock) waits without the interpreter's lock.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from pathlib import Path
from types import TracebackType


class Watchdog:
    """Watches while its ``with`` block runs; :meth:`beat` says that the run is alive. 0 seconds watch nothing."""

    def __init__(self, seconds: float, run_dir: Path, rank: int = 0) -> None:
        self.seconds, self.rank = seconds, rank
        self.path = run_dir / f"stall-rank{rank}.txt"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ghostvis-watchdog", daemon=True)
        self.beat()

    def beat(self) -> None:
        """The run is alive now."""
        self._last, self._told = time.monotonic(), False

    def __enter__(self) -> Watchdog:
        self.beat()
        if self.seconds:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self.seconds:
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(min(self.seconds / 4, 5.0)):
            silent = time.monotonic() - self._last
            if silent > self.seconds and not self._told:
                self._told = True
                self._dump(silent)

    def _dump(self, silent: float) -> None:
        head = f"ghostvis: warning: rank {self.rank}: nothing finished for {silent:.0f} s; where its threads are:"
        try:
            with self.path.open("a+", encoding="utf-8") as file:
                begin = file.seek(0, 2)
                print(time.strftime("%Y-%m-%d %H:%M:%S"), head, file=file, flush=True)
                faulthandler.dump_traceback(file, all_threads=True)
                file.seek(begin)
                text = file.read()
        except OSError as error:  # the disk may be what hangs, or be full
            print(f"{head} (and {self.path} cannot be written: {error})", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        else:
            print(f"{text}also in {self.path}", file=sys.stderr, flush=True)
