"""The plan of each step: which samples, in which rows. The same on every rank, whatever it computes with.

Samples are drawn in the order of a mixture (:mod:`stages.order`) into a small pool, and a step's rows are
filled from there: a row starts with the sample that waited longest and goes on with the longest that still fits. So
rows are nearly full (98 % and more), nothing waits for long, and every row starts where a sample does. What a stream
remembers is a few numbers per data set and the numbers of the samples in the pool: neither micro-batches nor ranks,
threads or look-ahead enter it, and no picture is opened.

A document that is longer than a row is cropped; its rest is not continued in the next row, which would start
in the middle of a text. No document is cropped just to fill a row up: rows are not padded, so that gains nothing.
"""

from __future__ import annotations

import hashlib
import random
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from components.rendering import Rendered, render
from components.samples import UNUSABLE, check_learnable, reason_of
from components.tokenizers import Tokenizer
from ghostvis_plugins.errors import ConfigError, DataError

from .ledger import BadSample
from .order import Mixture, MixtureState, Order
from .workers import Workers

POOL = 16  # samples to choose from when a row is filled: rows of 2,048 are 98 % full, and shares are kept early
AHEAD = 32  # samples of a data set that are read together
KEPT_BYTES = 256 * 2**20  # most memory for samples that are kept for the next epoch
COSTLY = 2e-3  # seconds of reading above which a sample is kept: drawn pictures are, text is not


@dataclass(frozen=True, slots=True)
class Drawn:
    """A sample taken from the stream, and where it came from: data set, position in its order, index."""

    source: str
    rendered: Rendered
    position: int = -1
    index: int = -1
    cropped: bool = False


@dataclass(slots=True)
class Taken:
    """What a run has learnt from one data set so far."""

    samples: int = 0
    targets: int = 0


@dataclass
class StreamState:
    """All that a stream remembers, as JSON values."""

    mixture: MixtureState = field(default_factory=MixtureState)
    pool: list[tuple[str, int]] = field(default_factory=list)  # data set and position of what waits for a row
    taken: dict[str, Taken] = field(default_factory=dict)
    data_hash: str = ""  # of every sample since the start of the run

    def copy(self) -> StreamState:
        taken = {name: replace(taken) for name, taken in self.taken.items()}
        return StreamState(self.mixture.copy(), list(self.pool), taken, self.data_hash)

    def to_json(self) -> dict[str, Any]:
        taken = {name: [taken.samples, taken.targets] for name, taken in self.taken.items()}
        return {**self.mixture.to_json(), "pool": self.pool, "taken": taken, "data_hash": self.data_hash}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StreamState:
        pool = [(str(source), int(position)) for source, position in data["pool"]]
        taken = {name: Taken(*counts) for name, counts in data["taken"].items()}
        return cls(MixtureState.from_json(data), pool, taken, data["data_hash"])


@dataclass(slots=True)
class StepPlan:
    """The samples of one step, the same on every rank."""

    samples: list[Drawn] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)  # numbers of samples that are to be computed together
    room: int = 0  # tokens that the rows could hold
    tokens: int = 0
    targets: int = 0
    images: int = 0
    skipped: int = 0  # conversations that were too long
    cropped: int = 0  # documents that were too long
    bad: list[BadSample] = field(default_factory=list)
    data_hash: str = ""
    state: StreamState = field(default_factory=StreamState)  # of the stream, when this step is done

    @property
    def lengths(self) -> list[int]:
        return [len(drawn.rendered.ids) for drawn in self.samples]

    @property
    def fill(self) -> float:
        """Tokens, as a share of those that the rows could hold."""
        return self.tokens / max(self.room, 1)

    def add(self, drawn: Drawn) -> None:
        self.samples.append(drawn)
        self.tokens += len(drawn.rendered.ids)
        self.targets += drawn.rendered.targets
        self.images += len(drawn.rendered.images)
        self.cropped += drawn.cropped


class Stream:
    """The endless, resumable stream of samples of a mixture.

    ``limit`` is the longest sample in tokens; ``too_long`` is what happens to a longer conversation ("error" or
    "skip"). Documents are cropped to it. ``known_bad`` are samples, by data set and index, that an earlier part of
    the run could not read: they are bad again, for the same reason, without being looked at.
    """

    def __init__(
        self,
        datasets: Mapping[str, tuple[Any, float]],
        tokenizer: Tokenizer,
        tokens_per_image: int,
        *,
        seed: int,
        limit: int,
        too_long: str = "error",
        word_dropout: float = 0.0,
        state: StreamState | None = None,
        known_bad: Mapping[tuple[str, int], BadSample] | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.seed = seed
        self.datasets = {name: dataset for name, (dataset, _) in datasets.items()}
        for name, dataset in self.datasets.items():
            if len(dataset) == 0:
                raise DataError(f"the data set '{name}' has no samples in this split")
        self.state = state.copy() if state else StreamState()
        self.mixture = Mixture({name: weight for name, (_, weight) in datasets.items()}, self.state.mixture)
        self.orders = {name: Order(seed, name, len(dataset)) for name, dataset in self.datasets.items()}
        self.tokenizer, self.tokens_per_image = tokenizer, tokens_per_image
        self.limit, self.too_long = limit, too_long
        self.word_dropout = word_dropout
        self.workers = workers or Workers(0)
        self.known_bad = known_bad or {}
        self._pool: list[Drawn] | None = None  # read on first use, so that its errors are those of a step
        self._fruitless = dict.fromkeys(self.datasets, 0)
        self._kept: dict[tuple[str, int], _Kept] = {}  # samples do not change: the next epoch finds them here
        self._room = KEPT_BYTES
        self._ahead: dict[tuple[str, int], _Read] = {}

    @property
    def size(self) -> int:
        """Number of distinct samples."""
        return sum(len(dataset) for dataset in self.datasets.values())

    def next_step(self, batch_tokens: int, row_tokens: int) -> StepPlan:
        """A step of at most ``batch_tokens`` tokens, in as few equal rows as ``row_tokens`` allows.

        A sample that is longer than a row (``limit`` may be larger) has one of its own.
        """
        plan, chain = StepPlan(), hashlib.sha256(self.state.data_hash.encode())
        count = -(-batch_tokens // row_tokens)
        for _ in range(count):
            self._fill_row(-(-batch_tokens // count), plan, chain)
        assert self._pool is not None
        self.state.pool = [(drawn.source, drawn.position) for drawn in self._pool]
        plan.data_hash = self.state.data_hash = chain.hexdigest()
        plan.state = self.state.copy()
        return plan

    def first(self, count: int) -> StepPlan:
        """The first ``count`` samples in the order they are drawn, none of them twice: fewer when there are not as
        many. They are in no rows."""
        plan, chain = StepPlan(), hashlib.sha256()
        count = min(count, self.size)
        while len(plan.samples) + len(plan.bad) + plan.skipped < count and self.mixture.shares:
            source = self.mixture.choose()
            if self.mixture.state.cursors[source] >= len(self.datasets[source]):
                del self.mixture.shares[source]
            elif (drawn := self._draw(plan, chain)) is not None:
                plan.add(drawn)
        return plan

    def draw(self, count: int) -> StepPlan:
        """The next ``count`` samples in the order they are drawn, in no rows."""
        plan, chain = StepPlan(), hashlib.sha256()
        while len(plan.samples) < count:
            if (drawn := self._draw(plan, chain)) is not None:
                plan.add(drawn)
        return plan

    def _fill_row(self, capacity: int, plan: StepPlan, chain: Any) -> None:
        """Another row: the sample that waited longest, then whichever of the pool leaves the least room."""
        if self._pool is None:
            self._pool = [self._redraw(source, position) for source, position in self.state.pool]
        room = capacity
        row: list[int] = []
        while True:
            while len(self._pool) < POOL:
                if (drawn := self._draw(plan, chain)) is not None:
                    self._pool.append(drawn)
            fitting = [n for n, drawn in enumerate(self._pool) if len(drawn.rendered.ids) <= room] if row else [0]
            if not fitting:
                break
            drawn = self._pool.pop(max(fitting, key=lambda n: (len(self._pool[n].rendered.ids), -n)))  # type: ignore[index]
            room -= len(drawn.rendered.ids)
            row.append(len(plan.samples))
            plan.add(drawn)
            chain.update(f"{drawn.source}\t{drawn.index}\t{drawn.rendered.id}\n".encode())
            taken = self.state.taken.setdefault(drawn.source, Taken())
            taken.samples += 1
            taken.targets += drawn.rendered.targets
        plan.rows.append(row)
        plan.room += max(capacity, capacity - room)

    def _draw(self, plan: StepPlan, chain: Any) -> Drawn | None:
        """The next sample, or None when it cannot be used, which ``plan`` then says."""
        source = self.mixture.choose()
        position = self.mixture.advance(source)
        index = self.orders[source](position)
        found = self._read_along(source, position)
        drawn = None
        if isinstance(found, BadSample):
            plan.bad.append(found)
        elif len(found.ids) <= self.limit or found.is_document:
            drawn = self._finished(source, position, index, found)
        elif self.too_long == "skip":
            plan.skipped += 1
        else:
            raise ConfigError(
                f"sample '{found.id}' has {len(found.ids)} tokens, and {self.limit} fit",
                hint='raise stage.micro_tokens (and backbone.max_positions), or set stage.too_long = "skip"',
            )
        self._fruitless[source] = 0 if drawn is not None else self._fruitless[source] + 1
        if self._fruitless[source] >= 2 * len(self.datasets[source]):  # not bad luck at the turn of an epoch
            raise DataError(
                f"no sample of the data set '{source}' can be used: {plan.skipped} too long, {len(plan.bad)} bad",
                hint=plan.bad[-1].reason if plan.bad else "raise stage.micro_tokens",
            )
        if drawn is None:
            chain.update(f"{source}\t{index}\t{found.id}\tleft out\n".encode())
        else:
            self.mixture.account(source, drawn.rendered.targets)
        return drawn

    def _redraw(self, source: str, position: int) -> Drawn:
        """A sample that was in the pool when the state was saved. Raises DataError where it cannot be read any more."""
        index = self.orders[source](position)
        found = self._read_along(source, position, alone=True)
        if isinstance(found, BadSample):
            raise DataError(
                f"sample '{found.id}' of the data set '{source}' was readable when the checkpoint was written, and "
                f"now is not: {found.reason}",
                hint="a resumed run needs the data it began with",
            )
        return self._finished(source, position, index, found)

    def _finished(self, source: str, position: int, index: int, rendered: Rendered) -> Drawn:
        cropped = len(rendered.ids) > self.limit
        if cropped:
            rendered = rendered.crop(self.limit)
        if self.word_dropout and not rendered.is_document:
            generator = random.Random(f"{self.seed}/{source}/{position}")  # the same wherever the sample is packed
            rendered = rendered.drop_words(self.word_dropout, self.tokenizer, generator)
        return Drawn(source, rendered, position, index, cropped)

    def _read_along(self, source: str, position: int, alone: bool = False) -> Rendered | BadSample:
        """The sample at a position of a data set's order.

        Those behind it are read along, in threads, because drawing and decoding leave Python's lock.
        """
        key = source, self.orders[source](position)
        if key in self._kept:
            return self._kept[key].restored()
        if key not in self._ahead:
            count = AHEAD if self.workers.count and not alone else 1
            coming = dict.fromkeys((source, self.orders[source](p)) for p in range(position, position + count))
            wanted = [other for other in coming if other not in self._kept and other not in self._ahead]
            self._ahead |= zip(wanted, self.workers.map(self._read, wanted), strict=True)
        read = self._ahead.pop(key)
        if isinstance(read.found, Exception):
            raise read.found
        if isinstance(read.found, Rendered) and read.seconds > COSTLY:
            kept = _Kept.of(read.found)
            if kept.size <= self._room:
                self._room -= kept.size
                self._kept[key] = kept
        return read.found

    def _read(self, key: tuple[str, int]) -> _Read:
        """Read and render; every error is part of what is found, because it counts only when its turn comes."""
        source, index = key
        if key in self.known_bad:
            return _Read(self.known_bad[key])
        began = time.perf_counter()
        dataset, name = self.datasets[source], f"{source}[{index}]"
        try:
            sample = dataset[index]
            name = sample.id or name
            check_learnable(sample)
            rendered = render(replace(sample, id=name), self.tokenizer, self.tokens_per_image)
        except UNUSABLE as error:
            return _Read(BadSample(source, name, reason_of(error), index, shard_of(dataset, index)))
        except Exception as error:
            error.add_note(f"reading sample {index} of the data set '{source}'")
            return _Read(error)
        return _Read(rendered, time.perf_counter() - began)


def shard_of(dataset: Any, index: int) -> str:
    """The file that a sample lies in, where the data set knows (its optional method ``shard_of``); else empty."""
    find = getattr(dataset, "shard_of", None)
    return str(find(index)) if find is not None else ""


@dataclass(frozen=True, slots=True)
class _Read:
    found: Rendered | BadSample | Exception
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Kept:
    """A rendered sample at 5 bytes a token instead of some 50."""

    rendered: Rendered  # without ids and mask
    ids: array[int]
    mask: bytes

    @classmethod
    def of(cls, rendered: Rendered) -> _Kept:
        return cls(replace(rendered, ids=[], loss_mask=[]), array("i", rendered.ids), bytes(rendered.loss_mask))

    @property
    def size(self) -> int:
        return 500 + 5 * len(self.ids) + sum(len(image.data or b"") for image in self.rendered.images)

    def restored(self) -> Rendered:
        return replace(self.rendered, ids=self.ids.tolist(), loss_mask=list(map(bool, self.mask)))
