"""How long a shuffled start over a million indexed samples takes, and what a sample costs in the index.

    python bench/index.py [SAMPLES]

Opens the index, compares the sizes of all shards, shuffles globally, and looks up the costs of the first 1,000 samples
of the order. The reference reads every row and shuffles a list, as a loader without an index of fixed rows does.
Medians of 7, with the file in the page cache. Measures the format alone: the shards are empty files of the right size.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from components.shards import index as indexes
from components.shards.index import NAME, PICTURE, ROW, Shard
from components.shards.reader import ShardDataset
from stages.order import Order

PER_SHARD, RECORD, FIRST = 2500, 102_400, 1000


def make(folder: Path, samples: int) -> Path:
    """An index of conversations with one picture, every fourth with two."""
    rows, number = np.zeros(samples, ROW), np.arange(samples)
    rows["id"] = np.random.default_rng(0).integers(0, 2**63, samples)
    rows["shard"], rows["offset"], rows["size"] = number // PER_SHARD, number % PER_SHARD * RECORD, RECORD
    rows["pictures"] = 1 + (number % 4 == 0)
    rows["first_picture"] = np.cumsum(rows["pictures"]) - rows["pictures"]
    rows["text_bytes"], rows["text_tokens"], rows["answer_tokens"] = 900, 220, 180
    shards = [Shard(f"{n:06d}.tar", PER_SHARD * RECORD, PER_SHARD, "0" * 64) for n in range(-(-samples // PER_SHARD))]
    for shard in shards:
        with (folder / shard.name).open("wb") as file:
            file.truncate(shard.bytes)  # sparse: no data
    pictures = np.full(rows["pictures"].sum(), np.array((640, 480), PICTURE))
    indexes.write(folder / NAME, rows, pictures, shards, {"split": "train"})
    return folder / NAME


def shuffled_start(file: Path) -> int:
    dataset = ShardDataset(indexes.load(file))
    order = Order(0, "bench", len(dataset))
    return sum(dataset.length(order(position)).text_bytes for position in range(FIRST))


def reference(file: Path) -> int:
    rows = indexes.load(file).rows.tolist()
    random.Random(0).shuffle(rows)
    return sum(row[5] for row in rows[:FIRST])


def median_seconds(call: Callable[[Path], int], file: Path) -> float:
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        call(file)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


if __name__ == "__main__":
    samples = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        file = make(Path(folder), samples)
        ours, theirs = median_seconds(shuffled_start, file), median_seconds(reference, file)
        print(f"samples            {samples:12,}\nbytes a sample     {file.stat().st_size / samples:12.1f}")
        print(f"shuffled start     {ours:12.4f} s\nreference          {theirs:12.4f} s   {theirs / ours:.0f} x")
