"""The project's own engine: a key/value cache, batches of ragged prompts, streaming, likelihoods.

Prompts of similar length share a batch; nothing is padded but the queries of one attention call. A picture is
encoded once, whatever the number of questions about it, and the last prompt that was scored keeps its cache,
so ranking many answers costs one prefill. Everything that is kept is dropped when a weight changes.

Greedy or sampled, alone or in a batch, streamed or not: the same prompt gives the same answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from components.batch import Batch
from components.images import pixels_of
from components.rendering import Rendered, render_prompt
from components.tokenizers import StreamDecoder, Tokenizer
from components.vlm import VLM
from ghostvis_plugins import DataError
from ghostvis_plugins.protocols import KVCache
from ghostvis_plugins.types import Completion, Conversation, Generation, Image, Score

from .config import Native as Config
from .sampling import check, choose, uniforms


@dataclass(slots=True)
class _Row:
    """One answer in the making.

    ``digests`` name the prompt's pictures; ``limit`` is the most tokens the answer may get: asked for, or left in
    the context.
    """

    number: int
    prompt: Rendered
    digests: list[str]
    limit: int
    draws: Tensor
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: Literal["stop", "length"] | None = None

    def head(self) -> tuple[str, tuple[int, ...]] | None:
        """The prompt up to the end of its first picture: what questions about one picture have in common."""
        if not self.digests:
            return None
        first, length = self.prompt.image_spans[0]
        return self.digests[0], tuple(self.prompt.ids[: first + length])

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
        self.stops = tokenizer.stops
        self.rows = config.rows or (256 if model.device.type == "cuda" else 64)
        self._vectors: OrderedDict[str, Tensor] = OrderedDict()  # picture digest → [N, D]
        self._prefix: tuple[object, KVCache, Tensor] | None = None  # prompt, its cache, its last hidden state [1, D]
        self._weights: list[float] = []
        self._running: dict[str, bool] = {}  # request → abort asked for

    def generate(self, prompts: Sequence[Conversation], generation: Generation) -> list[Completion]:
        """One completion per prompt, in order. Raises DataError naming a prompt that does not fit the context."""
        check(generation)
        self._forget_if_trained()
        rows = [self._row(number, prompt, generation) for number, prompt in enumerate(prompts)]
        alike = sorted(rows, key=lambda row: (len(row.prompt.ids).bit_length(), row.digests, len(row.prompt.ids)))
        for start in range(0, len(rows), self.rows):
            for _ in self._steps(alike[start : start + self.rows], generation):
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

    def stream(
        self, prompt: Conversation, generation: Generation, *, request_id: str = ""
    ) -> Generator[str, None, Completion]:
        """Pieces of the answer as they are decoded; joined they are the text that ``generate`` returns.

        Returns the completion that ``generate`` would, or the part of it that was drawn before an abort.
        """
        check(generation)
        self._forget_if_trained()
        row = self._row(0, prompt, generation)
        decoder = StreamDecoder(self.tokenizer)
        self._running[request_id] = False
        aborted = False
        try:
            for _ in self._steps([row], generation):
                if aborted := self._running[request_id]:
                    break
                if piece := decoder.push(row.ids[-1]):
                    yield piece
            if rest := decoder.finish():
                yield rest
        finally:
            self._running.pop(request_id, None)
        return Completion(
            text=self.tokenizer.decode(row.ids),
            ids=tuple(row.ids),
            logprobs=tuple(row.logprobs),
            finish_reason="abort" if aborted else row.reason or "length",
        )

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
        self._forget_if_trained()
        rendered = render_prompt(prompt, self.tokenizer, self.model.tokens_per_image)
        answers = [[*self.tokenizer.encode(text), self.tokenizer.im_end] for text in continuations]
        self._check_room(rendered, max(map(len, answers)) - 1)
        with self._inference():
            cache, last = self._prefill(rendered)
            first = F.log_softmax(self.model.backbone.logits(last), dim=-1)[0]
            sums = [float(first[answer[0]]) for answer in answers]
            longer = [n for n, answer in enumerate(answers) if len(answer) > 1]
            for start in range(0, len(longer), self.rows):
                chunk = longer[start : start + self.rows]
                for n, rest in zip(chunk, self._score_rest(cache, [answers[n] for n in chunk]), strict=True):
                    sums[n] += rest
        return [Score(logprob=s, tokens=len(answer)) for s, answer in zip(sums, answers, strict=True)]

    def _score_rest(self, cache: KVCache, answers: Sequence[Sequence[int]]) -> list[float]:
        """Summed log-probabilities of each answer's tokens after the first, all behind the same cached prompt."""
        backbone, device = self.model.backbone, self.model.device
        room = int(cache.lengths[0]) + max(map(len, answers)) - 1
        copies = cache.select(torch.zeros(len(answers), dtype=torch.long), room)
        lengths = torch.tensor([len(answer) - 1 for answer in answers])
        cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).int()
        owner = torch.repeat_interleave(torch.arange(len(answers)), lengths)
        positions = torch.arange(int(lengths.sum())) - cu_seqlens[:-1][owner] + cache.lengths[0]
        ids = torch.tensor([token for answer in answers for token in answer[:-1]], device=device)
        targets = torch.tensor([token for answer in answers for token in answer[1:]], device=device)
        hidden = backbone(backbone.embed(ids), positions=positions.to(device), cu_seqlens=cu_seqlens, cache=copies)
        losses = F.cross_entropy(backbone.logits(hidden), targets, reduction="none").double().cpu()
        return (-torch.zeros(len(answers), dtype=torch.double).index_add_(0, owner, losses)).tolist()

    def _steps(self, rows: list[_Row], generation: Generation) -> Iterator[None]:
        """Answer ``rows`` together; yields after each new token, which by then is in the rows."""
        with self._inference():
            cache, hidden = self._prefill_rows(rows)
            tokens = self._take(rows, hidden, generation)
        while not all(row.reason for row in rows):
            yield
            with self._inference():
                rows, tokens, cache = _compact(rows, tokens, cache)
                tokens = self._take(rows, self._decode(tokens, cache), generation)
        yield

    def _prefill_rows(self, rows: Sequence[_Row]) -> tuple[KVCache, Tensor]:
        """Run the prompts; returns the cache and the hidden state behind each prompt ``[R, D]``.

        Where most rows ask about the same pictures, what they have in common is run once and its cache repeated.
        """
        room = max(len(row.prompt.ids) + row.limit for row in rows)
        heads = [row.head() for row in rows]
        distinct = {head: n for n, head in enumerate(heads)}
        if None in distinct or 2 * len(distinct) > len(rows):
            cache = self.model.backbone.new_cache(len(rows), room)
            return cache, self._extend(cache, [row.prompt for row in rows], [row.digests for row in rows])
        shared = [rows[n] for n in distinct.values()]
        small = self.model.backbone.new_cache(len(shared), max(len(head[1]) for head in distinct if head))
        self._extend(small, [_split(row.prompt)[0] for row in shared], [row.digests[:1] for row in shared])
        place = {head: n for n, head in enumerate(distinct)}
        cache = small.select(torch.tensor([place[head] for head in heads]), room)
        return cache, self._extend(cache, [_split(row.prompt)[1] for row in rows], [row.digests[1:] for row in rows])

    def _extend(self, cache: KVCache, pieces: Sequence[Rendered], digests: Sequence[Sequence[str]]) -> Tensor:
        """Append a piece of prompt to each row of the cache; returns the hidden states behind them ``[R, D]``."""
        batch = Batch.pack(pieces)
        batch.positions = batch.positions + cache.lengths[batch.document_ids]
        batch = batch.to(self.model.device)
        vectors = self._vision_vectors(batch.images, [digest for row in digests for digest in row])
        last = (batch.cu_seqlens[1:].long() - 1).to(batch.ids.device)
        return self.model.hidden(batch, cache, vectors, rows=last)

    def _decode(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """One token per row ``[R]`` → hidden states ``[R, D]``."""
        backbone = self.model.backbone
        cu_seqlens = torch.arange(len(tokens) + 1, dtype=torch.int32)
        positions = cache.lengths.to(tokens.device)
        return backbone(backbone.embed(tokens), positions=positions, cu_seqlens=cu_seqlens, cache=cache)

    def _take(self, rows: Sequence[_Row], hidden: Tensor, generation: Generation) -> Tensor:
        """Choose the next token of each row from its hidden state; returns them ``[R]``."""
        logits = self.model.backbone.logits(hidden)
        draws = torch.stack([row.draws[min(len(row.ids), row.limit - 1)] for row in rows])
        # The placeholder of a picture is no text: fed back, it would stand for a picture that is not there.
        # Nor are ids behind the vocabulary, which some models have to reach a round width.
        answerable = logits[:, : self.tokenizer.vocab_size].clone()
        answerable[:, self.tokenizer.image] = float("-inf")
        tokens = choose(answerable, generation, draws)
        logprobs = F.log_softmax(logits, dim=-1).gather(-1, tokens[:, None]).squeeze(-1)
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            row.add(token, logprob, self.stops)
        return tokens

    def _prefill(self, prompt: Rendered) -> tuple[KVCache, Tensor]:
        """The cache of one prompt and its last hidden state ``[1, D]``; that of the latest prompt is kept."""
        digests = [image.digest() for image in prompt.images]
        key = (prompt.ids, digests)
        if self._prefix is None or self._prefix[0] != key:
            cache = self.model.backbone.new_cache(1, len(prompt.ids))
            self._prefix = (key, cache, self._extend(cache, [prompt], [digests]))
        return self._prefix[1:]

    def _row(self, number: int, prompt: Conversation, generation: Generation) -> _Row:
        rendered = render_prompt(prompt, self.tokenizer, self.model.tokens_per_image)
        room = self._check_room(rendered, 1)
        limit = min(generation.max_new_tokens, room)
        digests = [image.digest() for image in rendered.images]
        return _Row(number, rendered, digests, limit, uniforms(generation, number))

    def _check_room(self, prompt: Rendered, needed: int) -> int:
        """New tokens that fit behind a prompt; the last one is never fed back. Raises DataError when too few."""
        room = self.model.backbone.max_positions - len(prompt.ids) + 1
        if room < max(needed, 1):
            raise DataError(
                f"prompt '{prompt.id}': {len(prompt.ids)} tokens leave no room for an answer in "
                f"backbone.max_positions = {self.model.backbone.max_positions}",
                hint="shorten the conversation",
            )
        return room

    def _vision_vectors(self, images: Sequence[Image], digests: Sequence[str]) -> Tensor | None:
        """Vectors ``[I, N, D]`` of the pictures; each distinct one is encoded once and kept, the oldest go first."""
        if not images:
            return None
        encoder = self.model.encoder
        assert encoder is not None  # rendering refuses pictures for a model without one
        missing = {d: image for d, image in zip(digests, images, strict=True) if d not in self._vectors}
        found = {d: self._vectors[d] for d in digests if d in self._vectors}
        todo = list(missing.items())
        for start in range(0, len(todo), self.config.encode_batch):
            chunk = todo[start : start + self.config.encode_batch]
            pixels = torch.stack([pixels_of(encoder, image) for _, image in chunk])
            vectors = self.model.vision_vectors(pixels.to(self.model.device))
            found.update(zip([digest for digest, _ in chunk], vectors, strict=True))
        for digest in found:
            self._vectors[digest] = found[digest]
            self._vectors.move_to_end(digest)
        while len(self._vectors) > self.config.image_cache:
            self._vectors.popitem(last=False)
        return torch.stack([found[digest] for digest in digests])

    def _forget_if_trained(self) -> None:
        """Drop what was computed with other weights, called once per request.

        A training step moves about every number, so the first of each tensor tells. (torch's own version counters
        do not: fused optimizers leave them as they are.)
        """
        weights = torch.stack([p.detach()[(0,) * p.ndim].float() for p in self.model.parameters()]).tolist()
        if weights != self._weights:
            self._vectors.clear()
            self._prefix, self._weights = None, weights

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """No gradients, and evaluation mode."""
        training = self.model.training
        if training:
            self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            if training:
                self.model.train()


def _split(prompt: Rendered) -> tuple[Rendered, Rendered]:
    """A prompt up to the end of its first picture, and the rest of it."""
    first, length = prompt.image_spans[0]
    end = first + length
    spans = [(start - end, n) for start, n in prompt.image_spans[1:]]
    return (
        Rendered(prompt.ids[:end], prompt.loss_mask[:end], prompt.image_spans[:1], prompt.images[:1], prompt.id),
        Rendered(prompt.ids[end:], prompt.loss_mask[end:], spans, prompt.images[1:], prompt.id),
    )


def _compact(rows: list[_Row], tokens: Tensor, cache: KVCache) -> tuple[list[_Row], Tensor, KVCache]:
    """Leave finished rows out, once they are a quarter: copying the cache costs about as much as a step."""
    alive = [n for n, row in enumerate(rows) if row.reason is None]
    if 4 * len(alive) > 3 * len(rows):
        return rows, tokens, cache
    rows = [rows[n] for n in alive]
    index = torch.tensor(alive)
    length = max(len(row.prompt.ids) + row.limit for row in rows)
    return rows, tokens[index.to(tokens.device)], cache.select(index, length)


def build(config: Config, *, model: VLM, tokenizer: Tokenizer) -> NativeEngine:
    """The ``native`` component."""
    return NativeEngine(config, model, tokenizer)
