"""The tokenizer stage: a vocabulary learnt from the texts of the mixture. Its directory is where pretraining starts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from components.tokenizers import Tokenizer
from ghostvis_plugins.errors import ConfigError
from ghostvis_plugins.types import Document, Sample

from .config import TokenizerConfig
from .context import RunContext
from .order import Order
from .rundir import claim
from .start import TOKENIZER_ARCHITECTURE


def build(config: TokenizerConfig) -> Callable[[RunContext], Path]:
    """The ``tokenizer`` stage."""
    return lambda context: run(context, config)


def run(context: RunContext, config: TokenizerConfig) -> Path:
    """Train on the main rank and write ``model/`` with the tokenizer and a ``config.json`` that says so."""
    folder = context.run_dir / "model"
    if context.dist.is_main and not (context.resume and (folder / "config.json").is_file()):
        claim(context.run_dir, context.resume)
        tokenizer = Tokenizer.train(_texts(context, config.max_samples), config.vocab_size)
        tokenizer.save(folder)
        about = {"format_version": 1, "architecture": TOKENIZER_ARCHITECTURE, "vocab_size": tokenizer.vocab_size}
        (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if tokenizer.vocab_size < config.vocab_size:
            print(
                f"ghostvis: the texts hold no more than {tokenizer.vocab_size} of {config.vocab_size} tokens",
                file=sys.stderr,
            )
    context.dist.barrier()
    return folder


def _texts(context: RunContext, limit: int) -> Iterator[str]:
    """The texts of at most ``limit`` samples of each data set. Pictures are not opened."""
    datasets = context.datasets("train")
    if not datasets:
        raise ConfigError("no data set is chosen", hint="choose one with --dataset NAME")
    for name, (dataset, _) in datasets.items():
        order = Order(context.seed, name, len(dataset))
        for position in range(min(limit, len(dataset))):
            yield from _texts_of(dataset[order(position)])


def _texts_of(sample: Sample) -> Iterator[str]:
    if isinstance(sample, Document):
        yield sample.text
    else:
        yield from (message.text for message in sample.messages)
