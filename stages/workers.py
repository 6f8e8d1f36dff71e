"""Work ahead of the step that needs it: threads that map, and a thread that runs an iterator early.

Threads, not processes: reading, picture decoding, resizing and tokenising leave Python's lock, so two cores are busy
(`bench/loader.py` measures it), and nothing has to be pickled, forked or cleaned up after a kill. Nothing here decides
anything: results come in the order of the work, errors are raised where they would be without threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, TypeVar

MOST = 16  # threads, where nobody says how many

A = TypeVar("A")
B = TypeVar("B")


class Workers:
    """``count`` threads; None takes one for each core this process may use, 0 does all work in the calling thread."""

    def __init__(self, count: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.count = min(MOST, cores) if count is None else count
        self._pool = ThreadPoolExecutor(self.count, "ghostvis-worker") if self.count else None

    def map(self, work: Callable[[A], B], items: Iterable[A]) -> list[B]:
        """``work`` of each item, in order. Raises the error of the first item that has one."""
        if self._pool is None:
            return [work(item) for item in items]
        return list(self._pool.map(work, items))

    def close(self) -> None:
        """Forget work that has not begun; threads end with the item they are at."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


class Ahead(Generic[A]):
    """An iterator over ``items``, of which up to ``depth`` are made early by a thread; 0 makes each when it is due.

    An error is raised in its turn, as it was raised there. Leaving the ``with`` block, for whatever reason, stops
    the thread; it never outlives the process.
    """

    def __init__(
        self, items: Iterator[A], depth: int, prologue: Callable[[], Any] = lambda: None, name: str = "ghostvis-ahead"
    ) -> None:
        """``prologue`` is called once in the thread."""
        self._items, self._prologue = items, prologue
        self._ready: SimpleQueue[tuple[A | None, BaseException | None]] = SimpleQueue()
        self._free = threading.Semaphore(depth)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True) if depth else None
        if self._thread is not None:
            self._thread.start()

    def __iter__(self) -> Iterator[A]:
        return self

    def __next__(self) -> A:
        if self._thread is None:
            return next(self._items)
        if self._stopped:
            raise StopIteration
        item, error = self._ready.get()
        if error is not None:
            self._stopped = True
            raise error
        self._free.release()
        return item  # type: ignore[return-value]

    def __enter__(self) -> Ahead[A]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread after the item it is at."""
        self._stopped = True
        if self._thread is not None:
            self._free.release()
            self._thread.join()

    def _run(self) -> None:
        try:
            self._prologue()
            while True:
                self._free.acquire()
                if self._stopped:
                    return
                self._ready.put((next(self._items), None))
        except BaseException as error:  # StopIteration is the end, and all else is raised where the items are used
            self._ready.put((None, error))
