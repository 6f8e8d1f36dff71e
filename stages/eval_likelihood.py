"""Evaluation without questions: how likely a model finds what the assistant says in known conversations.

A conversation is rendered as for training and run once, packed with others, so every turn of the assistant is measured
in one forward pass; what is summed is exactly what training minimises. No engine takes part: nothing is generated.

The figures of a set are ratios of sums, so that long answers count for what they are: the perplexity is
exp(nats / tokens), bits per byte are nats / ln 2 / bytes, where tokens include the one that ends each turn and bytes
are those of the assistant's text in UTF-8. Intervals resample clusters, with every token, or byte, as one value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from components.metrics import Estimate, bootstrap_ci
from ghostvis_plugins.errors import DataError, GhostVisError
from ghostvis_plugins.types import Conversation, EvalDoc, Score
from stages.eval_rows import Row, digest_of

if TYPE_CHECKING:
    from components.rendering import Rendered
    from components.tokenizers import Tokenizer
    from components.vlm import VLM

LOGIT_ROWS = 512  # rows of the vocabulary that are held at a time


@dataclass(frozen=True, slots=True)
class Measured:
    """Likelihood of what the assistant says in the first ``messages`` messages of a conversation, and its bytes."""

    score: Score
    bytes: int
    messages: int


class Likelihoods:
    """Measures conversations with a model, ``batch_tokens`` tokens at a time (a longer conversation goes alone)."""

    def __init__(self, model: VLM, tokenizer: Tokenizer, *, batch_tokens: int = 4096) -> None:
        self.model, self.tokenizer, self.batch_tokens = model, tokenizer, batch_tokens

    def measure(self, conversations: Sequence[Conversation]) -> Iterator[list[tuple[int, Measured]]]:
        """Batches of (index, figures), similar lengths together.

        A conversation that is longer than the model's positions is measured up to the last answer that fits.
        Raises DataError, naming it, where not even the first one does, and where the assistant says nothing.
        """
        fitted = [self._fit(conversation) for conversation in conversations]
        order = sorted(range(len(fitted)), key=lambda index: len(fitted[index][1].ids))
        batch: list[int] = []
        for index in order:
            if batch and sum(len(fitted[i][1].ids) for i in (*batch, index)) > self.batch_tokens:
                yield self._batch(batch, fitted)
                batch = []
            batch.append(index)
        if batch:
            yield self._batch(batch, fitted)

    def _fit(self, conversation: Conversation) -> tuple[Conversation, Rendered]:
        from components.rendering import render

        longest = self.model.backbone.max_positions
        kept = conversation
        while True:
            rendered = render(kept, self.tokenizer, self.model.tokens_per_image)
            if rendered.targets == 0:
                raise DataError(f"conversation '{conversation.id}': the assistant says nothing in it")
            if len(rendered.ids) <= longest:
                return kept, rendered
            before = [n for n, message in enumerate(kept.messages[:-1]) if message.role == "assistant"]
            if not before:
                raise DataError(
                    f"conversation '{conversation.id}': its first answer does not end within the {longest} tokens that "
                    "backbone.max_positions allows",
                    hint="Measure a model with more positions, or shorter conversations.",
                )
            kept = replace(kept, messages=kept.messages[: before[-1] + 1])

    def _batch(
        self, batch: Sequence[int], fitted: Sequence[tuple[Conversation, Rendered]]
    ) -> list[tuple[int, Measured]]:
        scores = self._scores([fitted[index][1] for index in batch])
        return [(index, self._measured(fitted[index][0], score)) for index, score in zip(batch, scores, strict=True)]

    @staticmethod
    def _measured(conversation: Conversation, score: Score) -> Measured:
        said = (message.text for message in conversation.messages if message.role == "assistant")
        return Measured(score, sum(len(text.encode()) for text in said), len(conversation.messages))

    def _scores(self, rendered: Sequence[Rendered]) -> list[Score]:
        """The likelihood of each document's targets, in one packed forward pass."""
        import torch
        import torch.nn.functional as F

        from components.batch import Batch
        from components.images import pixels_of

        model = self.model
        batch = Batch.pack(rendered)
        if batch.images:
            encoder = model.encoder
            assert encoder is not None  # rendering refuses pictures for a model without one
            batch.pixels = torch.stack([pixels_of(encoder, image) for image in batch.images]).to(model.device)
        batch = batch.to(model.device)
        training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                rows = batch.target_rows
                hidden, targets = model.hidden(batch, rows=rows), batch.ids[rows + 1]
                nats = torch.cat(
                    [
                        F.cross_entropy(model.backbone.logits(some), wanted, reduction="none").double().cpu()
                        for some, wanted in zip(hidden.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True)
                    ]
                )
                owner = batch.document_ids[rows].cpu()
        finally:
            model.train(training)
        sums = torch.zeros(len(rendered), dtype=torch.double).index_add_(0, owner, nats)
        counts = torch.bincount(owner, minlength=len(rendered))
        return [
            Score(logprob=-total, tokens=count) for total, count in zip(sums.tolist(), counts.tolist(), strict=True)
        ]


def row_of(doc: EvalDoc, measured: Measured) -> Row:
    """The fields of an evaluation row that hold a likelihood. ``messages`` are fewer than the document's where cut."""
    score = measured.score
    if not math.isfinite(score.logprob):
        raise GhostVisError(f"document {doc.id}: the model's likelihood is {score.logprob}")
    figures = {"nats": -score.logprob, "tokens": float(score.tokens), "bytes": float(measured.bytes)}
    cut = measured.messages < len(doc.prompt.messages)
    about = {"target": doc.target, "tags": list(doc.tags), "cluster": doc.cluster}
    return {"output": "", "scores": figures, **about, "messages": measured.messages, "cut": cut}


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Overall and per tag: perplexity with its interval; over all also bits per byte and what they are counted from."""
    tags = sorted({tag for row in rows for tag in row["tags"]})
    bits = _ratio(rows, "bytes", 1 / math.log(2))
    nll = _ratio(rows, "tokens")
    return {
        "score": _perplexity(rows),
        "tags": {tag: _perplexity([row for row in rows if tag in row["tags"]]) for tag in tags},
        "figures": {"nll": nll.mean, "bits_per_byte": bits.mean},
        "intervals": {"nll": nll.to_json(), "bits_per_byte": bits.to_json()},
        "tokens": int(sum(row["scores"]["tokens"] for row in rows)),
        "bytes": int(sum(row["scores"]["bytes"] for row in rows)),
        "cut": sum(row["cut"] for row in rows),
        "prompts_hash": digest_of([row["prompt_hash"] for row in rows]),
    }


def _perplexity(rows: Sequence[Row]) -> dict[str, Any]:
    nll = _ratio(rows, "tokens")
    low, high = (None if bound is None else math.exp(bound) for bound in (nll.low, nll.high))
    return Estimate(math.exp(nll.mean), low, high, nll.n, nll.clusters).to_json()


def _ratio(rows: Sequence[Row], unit: str, scale: float = 1.0) -> Estimate:
    """Nats per ``unit`` times ``scale`` over all rows: a mean in which a row counts once for each of its units."""
    scores: list[Mapping[str, float]] = [row["scores"] for row in rows]
    counts = [int(score[unit]) for score in scores]
    values = np.repeat([scale * s["nats"] / max(n, 1) for s, n in zip(scores, counts, strict=True)], counts)
    names = [row["cluster"] or f"row {place}" for place, row in enumerate(rows)]
    clusters = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    estimate = bootstrap_ci(values.tolist(), clusters)
    return replace(estimate, n=len(rows))
