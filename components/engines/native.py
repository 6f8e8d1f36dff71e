"""The project's own engine: a key/value cache, batches of ragged prompts, streaming, likelihoods.

Prompts of similar length share a batch; nothing is padded but the queries of one attention call. A picture is
encoded once, whatever the number of questions about it, and the last prompt that was scored keeps its cache,
so ranking many answers costs one prefill. Everything that is kept is dropped when a weight changes.

Greedy or sampled, alone or in a batch, streamed or not: the same prompt gives the same answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from components.batch import Batch
from components.images import decode
from components.rendering import Rendered, render_prompt
from components.tokenizers import StreamDecoder, Tokenizer
from components.vlm import VLM
from ghostvis_plugins import DataError
from ghostvis_plugins.types import Completion, Conversation, Generation, Image, Score

from .config import Native as Config
from .sampling import check, choose, uniforms


@dataclass(slots=True)
class _Row:
    """One answer in the making. ``limit`` is the most tokens it may get: asked for, or left in the context."""

    number: int
    prompt: Rendered
    limit: int
    draws: Tensor
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: Literal["stop", "length"] | None = None

    def add(self, token: int, logprob: float, stops: frozenset[int]) -> None:
        if self.reason is not None:
            return  # finished, and only waiting for the batch to be compacted
        self.ids.append(token)
        self.logprobs.append(logprob)
        if token in stops:
            self.reason = "stop"
        elif len(self.ids) == self.limit:
            self.reason = "length"


class NativeEngine:
    """The ``native`` engine (:class:`ghostvis_plugins.protocols.Engine`)."""

    capabilities = frozenset({"images", "score", "stream", "batch", "abort"})

    def __init__(self, config: Config, model: VLM, tokenizer: Tokenizer) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.stops = frozenset({tokenizer.im_end, tokenizer.eos})
        self._vectors: OrderedDict[str, Tensor] = OrderedDict()  # picture digest → [N, D]
        self._prefix: tuple[object, object, Tensor] | None = None  # key, cache, last hidden [1, D]
        self._version = -1
        self._running: dict[str, bool] = {}  # request → abort asked for

    def generate(self, prompts: Sequence[Conversation], generation: Generation) -> list[Completion]:
        """One completion per prompt, in order. Raises DataError naming a prompt that does not fit the context."""
        check(generation)
        rows = [self._row(number, prompt, generation) for number, prompt in enumerate(prompts)]
        by_length = sorted(rows, key=lambda row: len(row.prompt.ids))
        for start in range(0, len(rows), self.config.rows):
            for _ in self._steps(by_length[start : start + self.config.rows], generation):
                pass
        return [
            Completion(
                text=self.tokenizer.decode(row.ids),
                ids=tuple(row.ids),
                logprobs=tuple(row.logprobs),
                finish_reason=row.reason or "length",
            )
            for row in rows
        ]

    def stream(self, prompt: Conversation, generation: Generation, *, request_id: str = "") -> Iterator[str]:
        """Pieces of the answer as they are decoded; joined they are the text that ``generate`` returns."""
        check(generation)
        row = self._row(0, prompt, generation)
        decoder = StreamDecoder(self.tokenizer)
        self._running[request_id] = False
        try:
            for _ in self._steps([row], generation):
                if self._running[request_id]:
                    break
                if piece := decoder.push(row.ids[-1]):
                    yield piece
            if rest := decoder.finish():
                yield rest
        finally:
            self._running.pop(request_id, None)

    def abort(self, request_id: str) -> None:
        """Stop a running stream at its next token."""
        if request_id in self._running:
            self._running[request_id] = True

    def score(self, prompt: Conversation, continuations: Sequence[str]) -> list[Score]:
        """The likelihood of each text as the assistant's whole answer, its end token included.

        The same sum that training minimises for that conversation.
        """
        if not continuations:
            return []
        rendered = render_prompt(prompt, self.tokenizer, self.model.tokens_per_image)
        answers = [[*self.tokenizer.encode(text), self.tokenizer.im_end] for text in continuations]
        self._check_room(rendered, max(map(len, answers)) - 1)
        with self._inference():
            cache, last = self._prefill(rendered)
            first = F.log_softmax(self.model.backbone.logits(last), dim=-1)[0]
            sums = [float(first[answer[0]]) for answer in answers]
            longer = [n for n, answer in enumerate(answers) if len(answer) > 1]
            for start in range(0, len(longer), self.config.rows):
                chunk = longer[start : start + self.config.rows]
                for n, rest in zip(chunk, self._score_rest(cache, [answers[n] for n in chunk]), strict=True):
                    sums[n] += rest
        return [Score(logprob=s, tokens=len(answer)) for s, answer in zip(sums, answers, strict=True)]

    def _score_rest(self, cache: object, answers: Sequence[Sequence[int]]) -> list[float]:
        """Summed log-probabilities of each answer's tokens after the first, all behind the same cached prompt."""
        backbone, device = self.model.backbone, self.model.device
        copies = backbone.new_cache(len(answers), int(cache.lengths[0]) + max(map(len, answers)) - 1)
        copies.fill(cache)
        lengths = torch.tensor([len(answer) - 1 for answer in answers])
        cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).int()
        owner = torch.repeat_interleave(torch.arange(len(answers)), lengths)
        positions = torch.arange(int(lengths.sum())) - cu_seqlens[:-1][owner] + cache.lengths[0]
        ids = torch.tensor([token for answer in answers for token in answer[:-1]], device=device)
        targets = torch.tensor([token for answer in answers for token in answer[1:]], device=device)
        hidden = backbone(
            backbone.embed(ids), positions=positions.to(device), cu_seqlens=cu_seqlens, cache=copies
        )
        losses = F.cross_entropy(backbone.logits(hidden), targets, reduction="none").double().cpu()
        return (-torch.zeros(len(answers), dtype=torch.double).index_add_(0, owner, losses)).tolist()
