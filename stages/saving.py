"""When the checkpoints of a run are written, what makes room for them, and what becomes of one that has no room.

With ``asynchronous`` the run stands still only while weights and optimizer state are copied to the host's memory; one
thread writes the copies, hashes and flushes them, publishes the folder and prunes, while the next steps are learnt. At
most one checkpoint is being written. Before the run acts on what is on the disk it has to :meth:`Saver.settle`; all
ranks do so after the same step and see the same outcome. The threads of the ranks have a process group of their own.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ghostvis_plugins.errors import UnavailableError

from . import checkpoint
from .checkpoint import Checkpoint, Snapshot
from .distributed import Distributed
from .journal import DISK_FULL
from .parallel import Alone


@dataclass(frozen=True, slots=True)
class Spared:
    """Steps whose checkpoints pruning leaves, as the run stood when it took one.

    ``best_before`` becomes the best again if the new checkpoint cannot be written. ``good`` is the last step before the
    current bad ones: one more bad step sends the run back to the newest checkpoint at or before it.
    """

    best: int | None = None
    best_before: int | None = None
    good: int | None = None


class Saver:
    """Writes checkpoints to ``root`` while its ``with`` block runs. All ranks make one, and call the same after the
    same steps.

    Checkpoints after ``done``, the step that was resumed from, were found damaged: they count for nothing until
    rewritten. ``say`` tells people, from whichever thread, and is called on every rank.
    """

    def __init__(
        self,
        root: Path,
        ranks: Distributed,
        say: Callable[[str], None],
        *,
        keep: int,
        every: int,
        done: int,
        asynchronous: bool,
    ) -> None:
        self.root, self.keep, self.every, self.asynchronous = root, keep, every, asynchronous
        self._say = say
        self._ranks, self._writers = ranks, ranks.apart() if asynchronous else ranks
        self._damaged = {step for step in checkpoint.steps(root) if step > done}
        self._thread = ThreadPoolExecutor(1, "ghostvis-checkpoint", ranks.use_device) if asynchronous else None
        self._pending: tuple[int, Future[bool]] | None = None
        self._waited = 0.0

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what is being written. Where another error ends the run, that of the thread is said."""
        try:
            if self._pending is not None and self.writing:
                step = self._pending[0]
                self._say(f"the checkpoint of step {step} is being written; the run ends after that (or by kill -9)")
            self.settle()
        except Exception as own:
            if kind is None:
                raise
            self._say(f"the checkpoint that was being written is lost: {own!r}")
        finally:
            if self._thread is not None:
                self._thread.shutdown()

    def save(
        self, step: int, shared: Alone, state: Mapping[str, Any], *, must: bool = False, spared: Spared = Spared()
    ) -> None:
        """Take a checkpoint of ``step``, and write it or begin to. :meth:`settle` comes before the next one.

        A full disk keeps one out that is not a ``must``; any other failure is an UnavailableError.
        """
        assert self._pending is None
        began = time.perf_counter()
        parts = (shared.model, shared.optimizer, shared.names)
        taken = checkpoint.take(step, *parts, state, self._ranks, copies=self.asynchronous)
        work = functools.partial(self._work, taken, must, spared)
        if self._thread is not None:
            self._pending = (step, self._thread.submit(work))
        else:
            done: Future[bool] = Future()
            done.set_result(work())
            self._pending = (step, done)
        self._waited += time.perf_counter() - began

    def settle(self) -> int | None:
        """Wait until nothing is being written. Raises what ended the writing.

        Returns the step whose checkpoint a full disk kept out, and None where it did not.
        """
        if self._pending is None:
            return None
        began = time.perf_counter()
        step, future = self._pending
        wait([future])
        self._pending = None
        self._waited += time.perf_counter() - began
        return None if future.result() else step

    @property
    def writing(self) -> bool:
        """Whether :meth:`settle` would have to wait now."""
        return self._pending is not None and not self._pending[1].done()

    @property
    def failed(self) -> bool:
        """Whether :meth:`settle` is going to raise an error, as far as this rank knows."""
        return self._pending is not None and self._pending[1].done() and self._pending[1].exception() is not None

    def seconds(self) -> float:
        """For how long the run stood still for checkpoints since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited

    def before(self, step: int) -> Checkpoint | None:
        """The newest whole checkpoint of an earlier step. For one rank, when nothing is being written."""
        for earlier in reversed(checkpoint.steps(self.root)):
            if earlier < step and checkpoint.verify(folder := self.root / f"step_{earlier}") is None:
                return Checkpoint(folder, earlier)
        return None

    def _work(self, taken: Snapshot, must: bool, spared: Spared) -> bool:
        """Whether the checkpoint could be written; in the thread, if there is one."""
        try:
            self._write(taken, spared)
        except OSError as error:  # on all ranks, where it was on any
            if must or error.errno not in DISK_FULL:
                raise UnavailableError(
                    f"cannot write a checkpoint to {self.root}: {error.strerror or error}",
                    hint="free some space; --resume goes on from the last checkpoint",
                ) from error
            self._say(f"NO CHECKPOINT of step {taken.step}: the disk of {self.root} is full; training goes on")
            return False
        return True

    def _write(self, taken: Snapshot, spared: Spared) -> None:
        """Write and prune. On a full disk, prune down to the newest checkpoint and try once more. Raises OSError."""
        try:
            checkpoint.write(self.root, taken, self._writers)
        except OSError as error:
            if error.errno not in DISK_FULL or not (removed := self._prune(1, spared, spared.best_before)):
                raise
            self._say(f"the disk of {self.root} is full: removed checkpoints {', '.join(map(str, removed))}")
            checkpoint.write(self.root, taken, self._writers)
        self._damaged.discard(taken.step)
        self._prune(self.keep, spared)

    def _prune(self, keep: int, spared: Spared, best_before: int | None = None) -> list[int]:
        """Steps whose checkpoints the main rank removed; the same on all."""

        def prune() -> list[int]:
            protected = [step for step in (spared.best, best_before) if step is not None]
            if spared.good is not None:
                found = set(checkpoint.steps(self.root)) - self._damaged
                protected += sorted(step for step in found if step <= spared.good)[-1:]
            return checkpoint.prune(self.root, keep, protected, every=self.every, ignored=self._damaged)

        return self._writers.on_main(prune)  # type: ignore[no-any-return]
