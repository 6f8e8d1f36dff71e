"""Any data set becomes indexed tar shards: ``ghostvis data prepare``.

The work is cut into parts, each of which is a shard: a stretch of the data set's own order, or one stream of a remote
source. How long a stretch is follows from a few samples spread over the whole, so a part's bytes are a pure function of
data set and settings, whoever makes it and when. Parts are made in any number of processes; each publishes its shard
and then, under ``.prepare``, its rows and its bad samples. Whatever is interrupted, the same command makes the parts
that are missing. The end is made from all parts in order: samples whose id came before are cut out, the ledger and the
index are written, and ``.prepare`` goes.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from components.preview import spread
from components.samples import UNUSABLE, reason_of
from components.shards import index as indexes
from components.shards.files import PARTIAL, UNFINISHED, published
from components.shards.index import NAME, Shard
from components.shards.reader import ShardDataset
from components.shards.record import FORMAT_VERSION
from components.shards.verify import LEDGER, Damage, note, packed_of, part_of
from components.shards.writer import Packed, join, write_shard
from components.shards.writer import prepare as pack
from components.tokenizers import Tokenizer
from ghostvis_plugins.errors import ConfigError, DataError, GhostVisError
from ghostvis_plugins.manager import Registry
from ghostvis_plugins.types import Sample

from .ledger import count_reasons

PROBES = 64  # samples that say how many fit into a shard
SHARD_MB = 256
SHOW_SECONDS = 0.5
MAX_BAD_FRACTION = 0.001

Bad = tuple[str, str]
"""Id and reason of a sample that is left out."""


@dataclass(frozen=True, slots=True)
class Job:
    """One split of one data set, to be written into ``folder``. Travels to worker processes."""

    name: str
    options: Mapping[str, Any]
    split: str
    folder: Path
    tokenizer: Path | None = None
    shard_mb: float = SHARD_MB
    max_bad_fraction: float = MAX_BAD_FRACTION


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the bytes of the result; kept while the work is unfinished, and compared when it goes on."""

    dataset: str
    options: str  # a hash: they may hold paths, which are nobody's business
    split: str
    tokenizer: str | None
    samples: int  # 0 for a stream, whose end nobody knows
    per_part: int
    parts: int
    record: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Prepared:
    """What came of a job. ``new`` is False when all of it was there already."""

    folder: Path
    samples: int
    shards: int
    bytes: int
    bad: int
    new: bool = True


Show = Callable[[int, int, str], None]
"""Called now and then with samples done, samples in all (or streams, where nobody knows), and figures."""


def prepare(job: Job, registry: Registry, *, workers: int = 1, show: Show = lambda *_: None) -> Prepared:
    """Write the shards of a job, or those that are missing.

    Raises DataError with a table of reasons when more samples are bad than allowed, ConfigError when the folder holds
    something else, UnavailableError when it cannot be written.
    """
    maker = Maker.open(job, registry)
    plan = maker.plan
    state = job.folder / UNFINISHED
    if (job.folder / NAME).is_file():
        return _finished(job, plan)
    _claim(state, plan)
    made = {part: len(_load(state, part)[1]) for part in range(plan.parts) if _is_made(job.folder, part)}
    missing = [part for part in range(plan.parts) if part not in made]
    allowed = int(job.max_bad_fraction * plan.samples) if plan.samples else None
    before = min(len(made) * plan.per_part, plan.samples)

    def report(seen: int) -> None:
        done = min(before + seen, plan.samples) if plan.samples else len(made)
        show(done, plan.samples or plan.parts, f"{len(made)} shards, {sum(made.values())} bad samples")

    for part, bad in _make(maker, missing, workers, report):
        made[part] = bad
        if allowed is not None and sum(made.values()) > allowed:
            break  # which _finish says, with the reasons
    return _finish(job, plan, state)


class Maker:
    """Makes the parts of a job, in this process."""

    def __init__(self, job: Job, dataset: Any, tokenizer: Tokenizer | None, plan: Plan) -> None:
        self.job, self.dataset, self.tokenizer, self.plan = job, dataset, tokenizer, plan

    @classmethod
    def open(cls, job: Job, registry: Registry, plan: Plan | None = None) -> Maker:
        """Build the data set; without a ``plan``, look at a few samples and make one."""
        config = registry.make_config("dataset", job.name, job.options)
        dataset = registry.get("dataset", job.name).load_build()(config, split=job.split)
        tokenizer = Tokenizer.load(job.tokenizer) if job.tokenizer else None
        if plan is None:
            options = hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[
                :16
            ]
            fingerprint = tokenizer.fingerprint if tokenizer else None
            plan = Plan(job.name, _hash(options), job.split, fingerprint, *_cut(job, dataset))
        return cls(job, dataset, tokenizer, plan)

    def make(self, part: int, seen: Callable[[], None] = lambda: None) -> int:
        """Publish one part, calling ``seen`` for every sample; returns how many of them are bad."""
        bad: list[Bad] = []
        name = f"{self.job.name.replace('/', '-')}-{self.job.split}-{part:06d}.tar"
        made = write_shard(self.job.folder / name, self._packed(part, bad, seen))
        _save(self.job.folder / UNFINISHED, part, made, bad)
        return len(bad)

    def _packed(self, part: int, bad: list[Bad], seen: Callable[[], None]) -> Iterator[Packed]:
        for name, sample in self._samples(part):
            seen()
            try:
                if isinstance(sample, Exception):
                    raise sample
                yield pack(sample if sample.id else replace(sample, id=name), self.tokenizer)
            except UNUSABLE as error:
                bad.append((name, reason_of(error)))

    def _samples(self, part: int) -> Iterator[tuple[str, Sample | Exception]]:
        if not self.plan.samples:
            yield from self.dataset.stream(part)
            return
        begin = part * self.plan.per_part
        for number in range(begin, min(begin + self.plan.per_part, self.plan.samples)):
            name = f"{self.job.name}[{number}]"
            try:
                sample = self.dataset[number]
            except UNUSABLE as error:
                yield name, error
            else:
                yield sample.id or name, sample


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _cut(job: Job, dataset: Any) -> tuple[int, int, int]:
    """Samples, samples a part, and parts."""
    if hasattr(dataset, "stream"):
        return 0, 0, dataset.parts
    if not len(dataset):
        raise DataError(f"data set '{job.name}' has no samples in the split '{job.split}'")
    sizes = []
    for number in spread(len(dataset), PROBES):
        try:
            sample = dataset[number]
            sizes.append(len(pack(sample if sample.id else replace(sample, id="probe")).data))
        except UNUSABLE:
            continue  # its part puts it on the ledger
    if not sizes:
        raise DataError(f"data set '{job.name}': none of {PROBES} samples can be used", hint=_first_reason(dataset))
    per_part = max(1, int(job.shard_mb * 2**20 * len(sizes) / sum(sizes)))
    return len(dataset), per_part, -(-len(dataset) // per_part)


def _first_reason(dataset: Any) -> str:
    try:
        pack(dataset[0])
    except UNUSABLE as error:
        return f"The first of them: {reason_of(error)}"
    return ""


def _make(maker: Maker, parts: Sequence[int], workers: int, report: Callable[[int], None]) -> Iterator[tuple[int, int]]:
    """Make parts, in this process or in several; yields each with its number of bad samples.

    ``report`` is called with the number of samples seen.
    """
    if workers <= 1 or len(parts) <= 1:
        count = _Count(report)
        for part in parts:
            yield part, maker.make(part, count)
            report(count.value)
        return
    context = multiprocessing.get_context("spawn")
    seen = context.Value("Q", 0)
    initial = (maker.job, maker.plan, seen)
    pool = ProcessPoolExecutor(min(workers, len(parts)), context, initializer=_start, initargs=initial)
    try:
        waiting = {pool.submit(_make_one, part): part for part in parts}
        while waiting:
            done, _ = wait(waiting, timeout=SHOW_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()
            report(seen.value)
    except BrokenProcessPool as error:
        raise GhostVisError(
            "a worker process ended before its time: out of memory, or killed",
            hint="Run the same command again, perhaps with fewer --workers: complete shards are kept.",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Count:
    """Counts samples, and reports now and then."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self.value, self._report, self._next = 0, report, 0.0

    def __call__(self) -> None:
        self.value += 1
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + SHOW_SECONDS
            self._report(self.value)


_worker: list[tuple[Maker, Callable[[], None]]] = []  # of this process


def _start(job: Job, plan: Plan, seen: Any) -> None:
    """Set up a worker process, which ends when the one that started it does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def count() -> None:
        with seen.get_lock():
            seen.value += 1

    _worker[:] = [(Maker.open(job, Registry.load(), plan), count)]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make_one(part: int) -> int:
    maker, count = _worker[0]
    return maker.make(part, count)


def _claim(state: Path, plan: Plan) -> None:
    """Begin, or go on with, exactly this plan."""
    file = state / "plan.json"
    if file.is_file():
        _check_same(json.loads(file.read_text(encoding="utf-8")), plan, state.parent)
        return
    with published(file) as handle:
        handle.write(json.dumps(asdict(plan)).encode())


def _check_same(found: Mapping[str, Any] | None, plan: Plan, folder: Path) -> None:
    own = json.loads(json.dumps(asdict(plan)))
    differing = [key for key in own if (found or {}).get(key) != own[key]]
    if differing:
        key = differing[0]
        raise ConfigError(
            f"{folder} holds other data: its {key} is {(found or {}).get(key)!r}, and now {own[key]!r}",
            hint="Choose another --out, or remove that folder.",
        )


def _finished(job: Job, plan: Plan) -> Prepared:
    index = indexes.load(job.folder / NAME)
    _check_same(index.header.get("plan"), plan, job.folder)
    ShardDataset(index)  # which compares the sizes of the shards
    shutil.rmtree(job.folder / UNFINISHED, ignore_errors=True)
    ledger = job.folder / LEDGER
    bad = ledger.read_text(encoding="utf-8").count("\n") if ledger.is_file() else 0
    size = sum(shard.bytes for shard in index.shards)
    return Prepared(job.folder, len(index.rows), len(index.shards), size, bad, new=False)


def _save(state: Path, part: int, made: tuple[Shard, np.ndarray, np.ndarray] | None, bad: list[Bad]) -> None:
    """What is known of a part, as one file that appears when its shard is there."""
    shard, rows, pictures = made or (None, np.zeros(0, indexes.ROW), np.zeros(0, indexes.PICTURE))
    text = json.dumps({"shard": asdict(shard) if shard else None, "bad": bad})
    with published(state / f"{part:06d}.npz") as file:
        np.savez(file, rows=rows, pictures=pictures, text=np.frombuffer(text.encode(), np.uint8))


def _load(state: Path, part: int) -> tuple[tuple[Shard, np.ndarray, np.ndarray] | None, list[Bad]]:
    with np.load(state / f"{part:06d}.npz") as file:
        text = json.loads(file["text"].tobytes())
        shard = Shard(**text["shard"]) if text["shard"] else None
        made = (shard, file["rows"], file["pictures"]) if shard else None
    return made, [(name, reason) for name, reason in text["bad"]]


def _is_made(folder: Path, part: int) -> bool:
    """Whether a part's rows are there, and its shard with the size that they say."""
    try:
        made, _ = _load(folder / UNFINISHED, part)
        return made is None or (folder / made[0].name).stat().st_size == made[0].bytes
    except FileNotFoundError:
        return False


def _finish(job: Job, plan: Plan, state: Path) -> Prepared:
    """Check the quota, cut out repeated ids, write ledger and index."""
    parts = [_load(state, part) for part in range(plan.parts) if _is_made(job.folder, part)]
    bad = [entry for _, entries in parts for entry in entries]
    _check_quota(job, plan, bad, sum(len(made[1]) for made, _ in parts if made))
    shards, rows, pictures = join(made for made, _ in parts if made)
    index = indexes.Index(job.folder / NAME, {}, tuple(shards), rows, pictures)
    repeated = _repeated(index)
    bad += repeated.values()
    _check_quota(job, plan, bad, len(rows) - len(repeated))
    shards, rows, pictures = join(_without(index, repeated, state))
    if bad:
        note(job.folder, [Damage(job.name, id, reason) for id, reason in bad], add=False)
    header = {"split": job.split, "source": job.name, "tokenizer": plan.tokenizer, "plan": asdict(plan)}
    indexes.write(job.folder / NAME, rows, pictures, shards, header)
    shutil.rmtree(state)
    for stray in job.folder.glob(f"{PARTIAL}*"):
        stray.unlink()  # of a process that was killed
    return Prepared(job.folder, len(rows), len(shards), sum(shard.bytes for shard in shards), len(bad))


def _check_quota(job: Job, plan: Plan, bad: list[Bad], good: int) -> None:
    samples = plan.samples or good + len(bad)
    allowed = int(job.max_bad_fraction * samples)
    if good and len(bad) <= allowed:
        return
    file = job.folder / LEDGER
    note(job.folder, [Damage(job.name, id, reason) for id, reason in bad], add=False)
    lines = [f"{len(bad)} unusable of {samples} samples of '{job.name}' so far, and {allowed} are allowed"]
    raise DataError(
        "\n".join([*lines, *count_reasons(reason for _, reason in bad), f"all of them: {file}"]),
        hint="Repair them, or raise --max-bad-fraction; shards that are complete are kept.",
    )


def _repeated(index: indexes.Index) -> dict[int, Bad]:
    """Rows whose id a row before them has. Equal hashes are looked at: two ids may share one."""
    order = np.argsort(index.rows["id"], kind="stable")
    sorted_ids = index.rows["id"][order]
    again = np.flatnonzero(np.concatenate([[False], sorted_ids[1:] == sorted_ids[:-1]])).tolist()
    if not again:
        return {}
    dataset = ShardDataset(index)
    found: dict[int, Bad] = {}
    seen: set[str] = set()
    for place, before in zip(again, [-1, *again], strict=False):
        if before != place - 1:
            seen = {dataset[int(order[place - 1])].id}
        number = int(order[place])
        id = dataset[number].id
        if id in seen:
            found[number] = (id, "another sample before it has the same id")
        seen.add(id)
    return dict(sorted(found.items()))


def _without(index: indexes.Index, rows: Iterable[int], state: Path) -> Iterator[tuple[Shard, np.ndarray, np.ndarray]]:
    """The parts of an index; shards that hold one of ``rows`` are written again without it."""
    unwanted = set(rows)
    affected = {int(index.rows[number]["shard"]) for number in unwanted}
    reader = ShardDataset(index)
    for number in range(len(index.shards)):
        if number not in affected:
            yield part_of(index, number)
            continue
        kept = [int(row) for row in np.flatnonzero(index.rows["shard"] == number) if int(row) not in unwanted]
        file = index.path(number)
        # Its rows go first: were this interrupted, they would not fit the shard, and the part is made again.
        (state / f"{_part_number(file)}.npz").unlink()
        if (made := write_shard(file, _reread(reader, kept))) is not None:
            yield made
        else:
            file.unlink()


def _part_number(file: Path) -> str:
    return file.stem.rpartition("-")[2]


def _reread(reader: ShardDataset, rows: Iterable[int]) -> Iterator[Packed]:
    for number in rows:
        yield packed_of(reader.index, reader.index.rows[number], reader.raw(number))
