"""The tokenizer stage: a vocabulary learnt from the texts of the mixture. Its directory is where pretraining starts.

A sample that cannot be read is written down and left out, as in training, and too many of them stop the stage. The
report says how well the vocabulary compresses texts that it was not learnt from.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from components.tokenizers import Tokenizer
from ghostvis_plugins.errors import ConfigError, DataError
from ghostvis_plugins.types import Document, Sample

from .compression import compression
from .config import TokenizerConfig
from .context import RunContext
from .data import shard_of
from .ledger import BadSample, Ledger
from .order import Order
from .provenance import provenance, table
from .rundir import claim, resolved_of
from .start import TOKENIZER_ARCHITECTURE

VALIDATION_SEED = 0  # of every run, so that vocabularies are compared on the same texts


def build(config: TokenizerConfig) -> Callable[[RunContext], Path]:
    """The ``tokenizer`` stage."""
    return lambda context: run(context, config)


def run(context: RunContext, config: TokenizerConfig) -> Path:
    """Train on the main rank and write ``model/`` with the tokenizer and a ``config.json`` that says so.

    Raises DataError when more samples are unusable than ``max_bad_fraction`` allows.
    """
    folder = context.run_dir / "model"
    if context.dist.is_main and not (context.resume and (folder / "config.json").is_file()):
        claim(context.run_dir, context.resume)
        _train(context, config, folder)
    context.dist.barrier()
    return folder


def _train(context: RunContext, config: TokenizerConfig, folder: Path) -> None:
    datasets = {name: dataset for name, (dataset, _) in context.datasets("train").items()}
    if not datasets:
        raise ConfigError("no data set is chosen", hint="choose one with --dataset NAME")
    ledger = Ledger(
        context.run_dir / "bad_samples.jsonl",
        config.max_bad_fraction,
        sum(len(dataset) for dataset in datasets.values()),
    )
    ledger.load(0)
    learnt = _Texts(datasets, context.seed, config.max_samples, ledger)
    tokenizer = Tokenizer.train(learnt, config.vocab_size)
    ledger.journal.flush()
    if tokenizer.vocab_size < config.vocab_size:
        print(
            f"ghostvis: the texts hold no more than {tokenizer.vocab_size} of {config.vocab_size} tokens",
            file=sys.stderr,
        )
    tokenizer.save(folder)
    _write_report(context, config, tokenizer, learnt)
    about = {"format_version": 1, "architecture": TOKENIZER_ARCHITECTURE, "vocab_size": tokenizer.vocab_size}
    (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")  # last: the stage is done


class _Texts:
    """The texts of at most ``limit`` samples of each data set, in shuffled order. Pictures are not opened.

    ``ledger`` gets what cannot be read.
    """

    def __init__(self, datasets: dict[str, Any], seed: int, limit: int, ledger: Ledger) -> None:
        self.datasets, self.seed, self.limit, self.ledger = datasets, seed, limit, ledger
        self.samples = self.bytes = 0

    def __iter__(self) -> Iterator[str]:
        for name in self.datasets:
            for text in self.of(name):
                self.bytes += len(text.encode())
                yield text

    def of(self, name: str) -> Iterator[str]:
        """The texts of one data set."""
        dataset = self.datasets[name]
        order = Order(self.seed, name, len(dataset))
        for position in range(min(self.limit, len(dataset))):
            index = order(position)
            known = f"{name}[{index}]"
            try:
                sample: Sample = dataset[index]
                known = sample.id or known
                texts = list(_texts_of(sample))
                for text in texts:
                    text.encode()  # half of a surrogate pair is no text
            except (DataError, OSError, UnicodeError) as error:
                reason = error.message if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
                self.ledger.add([BadSample(name, known, reason, index, shard_of(dataset, index))], 0)
                continue
            self.samples += 1
            yield from texts


def _texts_of(sample: Sample) -> Iterator[str]:
    if isinstance(sample, Document):
        yield sample.text
    else:
        yield from (message.text for message in sample.messages)


def _write_report(context: RunContext, config: TokenizerConfig, tokenizer: Tokenizer, learnt: _Texts) -> None:
    """``report.md``: what was read, and how few tokens held-out texts need."""
    facts: dict[str, object] = {
        "token ids": f"{tokenizer.vocab_size:,}",
        "learnt from": f"{learnt.samples:,} samples, {learnt.bytes:,} bytes of text",
        "left out": f"{len(learnt.ledger.entries)} unusable",
    }
    held = {name: dataset for name, (dataset, _) in context.datasets("validation").items() if len(dataset)}
    ledger = Ledger(None, 1.0, sum(len(dataset) for dataset in held.values()))  # unusable ones are only counted here
    reader = _Texts(held, VALIDATION_SEED, config.eval_samples, ledger)
    texts = {name: found for name in held if (found := list(reader.of(name)))}
    if ledger.entries:
        facts["held-out texts left out"] = f"{len(ledger.entries)} unusable"
    sections = [f"# {context.run_dir.name}: tokenizer", table(facts), "## Bytes per token"]
    said = compression(texts, lambda text: len(tokenizer.encode(text))) if texts else "No data set has held-out texts."
    print(f"bytes per token of held-out texts\n{said}", file=sys.stderr, flush=True)
    argv = resolved_of(context.run_dir, {}).get("argv") or []
    origin = table(dict(provenance(argv, context.dist.device, 1)))
    sections += [said, "## Where these figures come from", origin]
    (context.run_dir / "report.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
