"""What the runner costs on top of the model: the training loop against a bare loop over the same batches.

    python bench/overhead.py [--blocks 12] [--threads 1]

Both train the same module from the same weights with the same optimizer, on steps that were prepared before, so data
costs neither of them anything. Blocks of steps alternate, the first pair only warms up, and the medians of paired
blocks are compared. The first model costs next to nothing: what is left of a step is the runner, with its metrics, its
tracker and its progress lines. The second is ``gpt`` of depth 4 as `pretrain` trains it. Losses have to be equal.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from sides.ready import BlockEnd, Step

import components.builtin
import stages.builtin
from components.tokenizers import Tokenizer
from ghostvis_plugins import dataset
from ghostvis_plugins.manager import Registry
from ghostvis_plugins.types import Document, SampleList
from stages.config import PretrainConfig
from stages.context import RunContext
from stages.distributed import Distributed
from stages.loader import Loader
from stages.loop import Loop
from stages.optim import apply_table
from stages.start import open_start
from stages.stopping import Stopping
from stages.train import _prepare
from stages.watchdog import Watchdog
from stages.workers import Workers

WORDS = "the a red green dog house runs under tree because of what small light never seen with people and blue"
MODELS = {  # backbone, tokens of a step, steps of a block
    "next to nothing": ({"depth": 1, "aspect": 8, "head_dim": 8}, 64, 100),
    "gpt, depth 4": ({"depth": 4}, 2048, 4),
}


class Words(BaseModel):
    """Documents of made-up text."""


def build_words(config: Words, *, split: str) -> SampleList:
    words = WORDS.split()
    texts = (" ".join(words[(n * 7 + k * k) % len(words)] for k in range(20 + n % 100)) for n in range(2000))
    return SampleList([Document(text, f"words/{split}/{number}") for number, text in enumerate(texts)])


class Ready:
    """A loader of steps that lie ready."""

    def __init__(self, steps: list[Step]) -> None:
        self._left = iter(steps)

    def next_step(self) -> Step:
        for step in self._left:
            return step
        raise BlockEnd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'':18} ms/step, bare  ms/step, runner   overhead  bare/runner")
    for name, (backbone, tokens, size) in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            bare, runner = measure(Path(folder), backbone, tokens, size, options.blocks)
        extra = statistics.median(b - a for a, b in zip(bare, runner, strict=True))
        ratio = statistics.median(a / b for a, b in zip(bare, runner, strict=True))
        print(
            f"{name:18} {1e3 * statistics.median(bare):13.2f}  {1e3 * statistics.median(runner):15.2f} "
            f"{1e3 * extra:7.2f} ms  {ratio:11.3f}",
            flush=True,
        )


def measure(folder: Path, backbone: dict[str, Any], tokens: int, size: int, blocks: int) -> tuple[list[float], ...]:
    """Seconds of a step in each block: of the bare loop, and of the runner."""
    Tokenizer.train([WORDS] * 50, 512).save(folder / "start")
    (folder / "start" / "config.json").write_text('{"format_version": 1, "architecture": "ghostvis-tokenizer"}')
    stage = {"steps": 10**9, "batch_tokens": tokens, "micro_tokens": tokens, "eval_samples": 0, "workers": 0}
    values = {
        "stage": {"name": "pretrain", **stage},
        "from": str(folder / "start"),
        "dtype": "float32",
        "backbone": {"name": "gpt", **backbone},
        "optimizer": {"name": "adamw"},
        "dataset": {"words": {}},
    }
    specs = [spec for hook in (components.builtin, stages.builtin) for spec in hook.ghostvis_components()]
    registry = Registry.from_specs([*specs, dataset("words", config=Words, build=build_words)])
    context = RunContext(values, registry, folder / "run", Distributed())
    config = PretrainConfig(**stage)
    start = open_start(context, vision=False)
    apply_table(start.model, config.train)
    other = copy.deepcopy(start.model)
    loop = _prepare(context, config, start, None, Workers(0), Stopping())
    groups = [{**g, "params": list(g["params"])} for g in loop.parallel.optimizer.param_groups]
    own = dict(zip(loop.model.parameters(), other.parameters(), strict=True))
    for group in groups:
        group["params"] = [own[parameter] for parameter in group["params"]]
    optimizer = context.build("optimizer", context.table("optimizer", "adamw"), groups=groups)
    needed = (blocks + 1) * size
    with Loader(loop.stream, loop.collator, config, loop.dist, loop.cost, needed) as loader:
        steps = [Step(step.plan, list(step.batches())) for step in (loader.next_step() for _ in range(needed))]
    seconds: tuple[list[float], list[float]] = ([], [])
    for block in range(blocks + 1):
        own_steps = steps[block * size : (block + 1) * size]
        first = loop.step + 1
        bare = run_bare(loop, other, optimizer, own_steps, first)
        runner = run_loop(loop, own_steps)
        if block:
            for kept, (found, _) in zip(seconds, (bare, runner), strict=True):
                kept.append(found / size)
        assert abs(bare[1] - runner[1]) < 1e-4, f"losses differ: {bare[1]} and {runner[1]}"
    return seconds


def run_bare(loop: Loop, model: Any, optimizer: Any, steps: list[Step], first: int) -> tuple[float, float]:
    """Seconds and last loss of the shortest loop that learns the same."""
    parameters = list(model.parameters())
    model.train()
    loss, began = 0.0, time.perf_counter()
    for number, step in enumerate(steps, first):
        loss = 0.0
        for batch in step.kept:
            nll, _ = model.loss(batch)
            (nll / step.plan.targets).backward()
            loss += nll.item()
        loss /= step.plan.targets
        loop.schedule.apply(optimizer, number)
        torch.nn.utils.clip_grad_norm_(parameters, loop.config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - began, loss


def run_loop(loop: Loop, steps: list[Step]) -> tuple[float, float]:
    """The same of the runner: everything between two steps but validation and checkpoints."""
    rows: list[float] = []

    class Last:
        def log(self, step: int, metrics: Any) -> None:
            rows.append(metrics["loss"])

    loop.trackers = [*loop.trackers[:1], Last()]
    began = time.perf_counter()
    with contextlib.suppress(BlockEnd):
        loop._run(Ready(steps), Watchdog(0, loop.context.run_dir))  # type: ignore[arg-type]
    return time.perf_counter() - began, rows[-1]


if __name__ == "__main__":
    main()
