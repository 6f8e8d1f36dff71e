"""The loader before a step that does nothing: what it delivers, how long the step waits, what memory does.

    python bench/loader.py [--samples 50000]

Half the samples are questions about a small JPEG file, half are talk; all are made up here, in a temporary folder. The
first two lines let the loop take batches as fast as they come. In the others a step takes a quarter longer than the
loader needs for it: it sleeps, as if a device computed, or launches small operations, as the thread that feeds a
device does, which then competes with the loader's threads for Python's lock. ``waits`` is the share of time that the
step waits for data; growth of memory is counted after the first fifth. Worth something on an idle machine only.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import torch

from components.images import to_pixels
from components.tokenizers import Tokenizer
from ghostvis_plugins.types import Conversation, Image, Sample, assistant, user
from stages.config import AlignConfig
from stages.data import Stream
from stages.distributed import Distributed
from stages.loader import Collator, Loader
from stages.packing import Cost
from stages.workers import Workers

PICTURES, SIDE, VECTORS = 500, 96, 16
WORDS = "the a red green dog house runs under tree because of what small light never seen with people and blue"


class Local:
    """Samples that are made when they are asked for, from files on the disk and a generator of words."""

    def __init__(self, folder: Path, size: int, pictures: bool) -> None:
        self.folder, self.size, self.pictures = folder, size, pictures

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        generator = random.Random(index)

        def text(least: int, most: int) -> str:
            return " ".join(generator.choices(WORDS.split(), k=generator.randint(least, most))) + f" {index}."

        if not self.pictures:
            return Conversation((user(text(10, 60)), assistant(text(20, 150))), id=f"talk/{index}")
        picture = Image(path=str(self.folder / f"{index % PICTURES}.jpg"))
        return Conversation((user(picture, text(5, 15)), assistant(text(2, 40))), id=f"picture/{index}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    torch.set_num_threads(1)
    tokenizer = Tokenizer.train([WORDS, "0123456789"] * 50, 600)
    few = options.samples // 5
    with tempfile.TemporaryDirectory() as folder:
        draw_pictures(Path(folder))
        print(f"{'':34s}  samples/s  ms/step   waits  memory grows")
        alone = follow("no threads, no pause", folder, tokenizer, few, 0, 0, lambda until: None)
        pace = follow("2 threads, no pause", folder, tokenizer, few, 2, 2, lambda until: None)
        pause = 1.25 * min(alone, pace)
        follow("2 threads, a step sleeps", folder, tokenizer, options.samples, 2, 2, sleep, pause)
        follow("no threads, a step sleeps", folder, tokenizer, few, 0, 0, sleep, pause)
        free = launch_until(time.perf_counter() + 40 * pause) / 40
        print(f"{'a step launches, without a loader':34s}  {free:.0f} operations a step")
        done: list[int] = []
        launch: Callable[[float], Any] = lambda until: done.append(launch_until(until))  # noqa: E731
        follow("2 threads, a step launches", folder, tokenizer, few, 2, 2, launch, pause)
        print(f"{'':34s}  {sum(done) / len(done):.0f} operations a step")


def follow(
    name: str,
    folder: str,
    tokenizer: Tokenizer,
    samples: int,
    workers: int,
    prefetch: int,
    step: Callable[[float], Any],
    seconds: float = 0.0,
) -> float:
    """Take ``samples`` and print a line; returns the seconds of a step."""
    data = {"talk": (Local(Path(folder), samples, False), 2.0), "pictures": (Local(Path(folder), samples, True), 1.0)}
    pool = Workers(workers)
    stream = Stream(data, tokenizer, VECTORS, seed=0, limit=4096, workers=pool)
    collator = Collator(SimpleNamespace(preprocess=lambda image: to_pixels(image, SIDE)), None, workers=pool)
    config = AlignConfig(steps=1, batch_tokens=4096, micro_tokens=4096, workers=workers, prefetch=prefetch)
    taken = steps = 0
    waited, warm, most, began = 0.0, 0.0, 0.0, time.perf_counter()
    with Loader(stream, collator, config, Distributed(), Cost(), steps=10**9) as loader:
        while taken < samples:
            asked = time.perf_counter()
            loaded = loader.next_step()
            batches: Iterator[Any] = loaded.batches()
            tokens = sum(len(batch) for batch in batches)
            assert tokens == loaded.plan.tokens
            got = time.perf_counter()
            if steps:  # the first one has to be waited for
                waited += got - asked
            step(got + seconds)
            taken, steps = taken + len(loaded.plan.samples), steps + 1
            if taken < samples // 5:
                warm = memory()
            elif steps % 20 == 0:
                most = max(most, memory())
        passed = time.perf_counter() - began
    pool.close()
    growth = f"{max(0.0, most - warm):8.1f} MB"
    print(
        f"{name:34s}  {taken / passed:9.0f}  {passed / steps * 1e3:7.1f}  {waited / passed:6.1%}  {growth}", flush=True
    )
    return passed / steps


def sleep(until: float) -> None:
    time.sleep(max(0.0, until - time.perf_counter()))


def launch_until(until: float) -> int:
    """Small operations until then, and how many there were."""
    value, count = torch.zeros(16), 0
    while time.perf_counter() < until:
        for _ in range(10):
            value = value + 1
        count += 10
    return count


def draw_pictures(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(PICTURES):
        coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        PIL.Image.fromarray(coarse).resize((160, 120)).save(folder / f"{number}.jpg", quality=85)


def memory() -> float:
    """Resident memory in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
