"""Bits per byte: by hand, of any vocabulary, without control tokens; and what a run says of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import Options, build_texts, registry, values, write_tokenizer

from components.tokenizers import Tokenizer
from components.trackers.jsonl import read_metrics
from components.weights import load_model
from ghostvis_plugins.types import Conversation, Document, SampleList, assistant, user
from stages.config import PretrainConfig
from stages.data import Stream
from stages.distributed import Distributed
from stages.loader import Collator
from stages.packing import Cost
from stages.parallel import Alone
from stages.runner import run
from stages.validation import Validation

TEXT = "The red fox sees a green leaf, naïve 漢字.\nAnd the blue bird."
FINE = Tokenizer.train([TEXT] * 9, 400)
COARSE = Tokenizer.train(["x"], 264)  # a token for each byte
DOCUMENTS = SampleList([Document(TEXT, "a"), Document("the fox", "b")])


class Uniform:
    """A model that finds every token of its vocabulary equally likely, or weighs them with ``logits``."""

    def __init__(self, vocabulary: int, logits: torch.Tensor | None = None) -> None:
        self.row = torch.zeros(vocabulary) if logits is None else logits
        self.backbone = self

    def eval(self) -> Uniform:
        return self

    def hidden(self, batch: Any, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        return self.row.expand(len(rows), -1)


class Whole(Alone):
    """Forward passes alone."""

    def __init__(self, model: Any) -> None:
        self.model = model


def validated(model: Uniform, tokenizer: Tokenizer, data: Any, **options: Any) -> dict[str, float]:
    plan = Stream({"d": (data, 1.0)}, tokenizer, 0, seed=0, limit=400).first(9)
    config = PretrainConfig(steps=1, micro_tokens=400, **options)
    validation = Validation(plan, config, Distributed(), Cost(), tokenizer.token_bytes)
    metrics, bad = validation(Whole(model), Collator(None, None))
    assert bad == []
    return metrics


def test_a_uniform_model_by_hand() -> None:
    """Every token of text costs log2 of the vocabulary in bits; the one that ends a document costs nothing here."""
    for tokenizer in (FINE, COARSE):
        tokens = len(tokenizer.encode(TEXT)) + len(tokenizer.encode("the fox"))
        size = len(TEXT.encode()) + len(b"the fox")
        metrics = validated(Uniform(tokenizer.vocab_size), tokenizer, DOCUMENTS)
        assert metrics["val_bpb"] == pytest.approx(tokens * math.log2(tokenizer.vocab_size) / size, rel=1e-5)
        assert metrics["val_loss"] == pytest.approx(math.log(tokenizer.vocab_size), rel=1e-5)
    assert len(FINE.encode(TEXT)) < len(COARSE.encode(TEXT)) == len(TEXT.encode())


def test_one_model_of_bytes_has_one_figure_in_any_vocabulary() -> None:
    """A token is as likely as its bytes would be if these were drawn at random: 8 bits a byte, however cut."""
    for tokenizer in (FINE, COARSE):
        sizes = torch.tensor(tokenizer.token_bytes)
        logits = torch.where(sizes > 0, -sizes * math.log(256), -1e9)  # nearly normalised: long tokens are rare
        metrics = validated(Uniform(tokenizer.vocab_size, logits), tokenizer, DOCUMENTS)
        assert metrics["val_bpb"] == pytest.approx(8, rel=2e-3)


def test_only_answers_count_in_a_conversation() -> None:
    data = SampleList([Conversation((user("what is this?"), assistant("naïve")), id="c")])
    metrics = validated(Uniform(FINE.vocab_size), FINE, data)
    answer = len(FINE.encode("naïve")) * math.log2(FINE.vocab_size) / len("naïve".encode())
    assert metrics["val_bpb"] == pytest.approx(answer, rel=1e-5)


def test_a_run_reports_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the metrics, on the line of progress and in the report; equal to the exported model's own, by hand."""
    start = write_tokenizer(tmp_path / "tokenizer")
    none = {"encoder": None, "resampler": None, "projector": None}
    given = {**values(start, "pretrain", dataset={"texts": {}}, stage__steps=3), **none}
    folder = run(given, registry(), tmp_path / "run")
    row = read_metrics(tmp_path / "run")[-1]
    loaded = load_model(folder, registry())
    bits = size = 0.0
    for document in (build_texts(Options(), split="validation")[n] for n in range(40)):
        assert isinstance(document, Document)
        plan = Stream({"d": (SampleList([document]), 1.0)}, loaded.tokenizer, 0, seed=0, limit=100).first(1)
        batch, _, _ = Collator(None, None)(plan.samples)
        assert batch is not None
        with torch.no_grad():
            scores = loaded.model.backbone.logits(loaded.model.hidden(batch)).log_softmax(-1)
        for place, token in enumerate(batch.ids[1:-1].tolist()):
            bits -= scores[place, token].item() / math.log(2)
        size += len(document.text.encode())
    assert row["val_bpb"] == pytest.approx(bits / size, rel=1e-4)
    assert f"bpb {row['val_bpb']:.4f}" in capsys.readouterr().err
    assert f"| validation bits per byte | {row['val_bpb']:.4f} |" in (tmp_path / "run" / "report.md").read_text()
