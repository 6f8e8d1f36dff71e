"""Rendering and tokenising against a loop over transformers' ``apply_chat_template``, on one core.

    python bench/rendering.py [--conversations 10000] [--blocks 20]

Both render the same dialogues (the data set `chitchat`) with the same tokenizer and chat template (SmolLM2's), and have
to give the same ids. Every block of dialogues is new to both, and both are timed on it, in turns; the first half only
warms up. Time is that of the processor. Ours also gives the loss mask and the image spans, which the other does not.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from components.rendering import render
from components.tokenizers import Tokenizer
from ghostvis_plugins.manager import Registry
from ghostvis_plugins.types import Conversation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=10_000)
    parser.add_argument("--blocks", type=int, default=20)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    registry = builtin()
    folder = tokenizer_folder(registry)
    samples = dialogues(registry, options.conversations)
    ours, theirs = Tokenizer.load(folder), foreign(folder)
    texts = [[{"role": m.role, "content": m.text} for m in sample.messages] for sample in samples]

    def mine(numbers: Sequence[int]) -> list[list[int]]:
        return [render(samples[n], ours, 0).ids for n in numbers]

    def other(numbers: Sequence[int]) -> list[list[int]]:
        return [theirs.apply_chat_template(texts[n], return_dict=False) for n in numbers]

    size = len(samples) // options.blocks
    seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
    tokens = []
    for block in range(options.blocks):
        numbers = range(block * size, (block + 1) * size)
        order: list[tuple[str, Callable[[Sequence[int]], list[list[int]]]]] = [("ours", mine), ("transformers", other)]
        found = {}
        for name, function in order if block % 2 else order[::-1]:
            began = time.process_time()
            found[name] = function(numbers)
            seconds[name].append(time.process_time() - began)
        assert found["ours"] == found["transformers"], f"other ids in block {block}"
        tokens.append(sum(map(len, found["ours"])))
    warm = options.blocks // 2
    print(f"{size} dialogues a block, {statistics.mean(tokens) / size:.0f} tokens each; medians of {warm} blocks")
    for name, times in seconds.items():
        each = statistics.median(times[warm:]) / size
        speed = statistics.median(n / t for n, t in zip(tokens[warm:], times[warm:], strict=True))
        print(f"{name:14s} {each * 1e6:8.1f} µs a dialogue  {speed / 1e6:6.2f} M tokens/s")
    pairs = list(zip(seconds["transformers"], seconds["ours"], strict=True))
    ratios = [theirs / ours for theirs, ours in pairs]
    print(f"{'ratio':14s} {statistics.median(ratios[warm:]):8.2f} (first block, nothing known yet: {ratios[0]:.2f})")


def builtin() -> Registry:
    from components.builtin import ghostvis_components

    return Registry.from_specs(ghostvis_components())


def tokenizer_folder(registry: Registry) -> Path:
    from components.compose import pretrained_tokenizer

    table = {"name": "decoder", "checkpoint": "smollm2-135m-instruct", "weights": "package"}
    folder = pretrained_tokenizer({"backbone": table}, registry)
    assert folder is not None
    return folder


def foreign(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    template = Tokenizer.load(folder).chat_template
    tokenizer.chat_template = template
    return tokenizer


def dialogues(registry: Registry, count: int) -> list[Conversation]:
    spec = registry.get("dataset", "chitchat")
    data = spec.load_build()(registry.make_config("dataset", "chitchat", {}), split="train")
    return [data[n] for n in range(min(count, len(data)))]


if __name__ == "__main__":
    main()
