"""From data sets to the samples of a step, and from those to batches.

Two halves with different rules. The *plan* of a step is pure: every rank computes the same one from seed and
state, without opening a picture, and nothing about micro-batches, ranks or caches enters it. *Collating* touches
only the bins of this rank: it decodes pictures, or fetches their cached features.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from components.batch import Batch
from components.images import decode
from components.rendering import Rendered, render
from components.tokenizers import Tokenizer
from ghostvis_plugins.errors import ConfigError, DataError
from ghostvis_plugins.types import Image

from .features import FeatureCache
from .ledger import BadSample
from .order import Mixture, MixtureState, Order

RENDERED_BYTES = 256 * 2**20  # most memory for rendered samples that are kept for the next epoch
AHEAD = 32  # samples of a data set that are read together
MAX_THREADS = 16  # that read samples


@dataclass(frozen=True, slots=True)
class Drawn:
    """A sample taken from the stream, and the data set it came from."""

    source: str
    rendered: Rendered


@dataclass(slots=True)
class StepPlan:
    """The samples of one step, the same on every rank."""

    samples: list[Drawn] = field(default_factory=list)
    tokens: int = 0
    targets: int = 0
    images: int = 0
    skipped: int = 0  # conversations that were too long
    cropped: int = 0  # documents that were too long
    bad: list[BadSample] = field(default_factory=list)
    data_hash: str = ""  # of every sample since the start of the run

    @property
    def lengths(self) -> list[int]:
        return [len(drawn.rendered.ids) for drawn in self.samples]


class Stream:
    """The endless, resumable stream of samples of a mixture.

    ``limit`` is the longest sample in tokens; ``too_long`` is what happens to a longer conversation ("error" or
    "skip"). Documents are cropped to it.
    """

    def __init__(
        self,
        datasets: Mapping[str, tuple[Any, float]],
        tokenizer: Tokenizer,
        tokens_per_image: int,
        *,
        seed: int,
        limit: int,
        too_long: str = "error",
        word_dropout: float = 0.0,
        state: MixtureState | None = None,
        data_hash: str = "",
    ) -> None:
        self.seed = seed
        self.datasets = {name: dataset for name, (dataset, _) in datasets.items()}
        for name, dataset in self.datasets.items():
            if len(dataset) == 0:
                raise DataError(f"the data set '{name}' has no samples in this split")
        self.mixture = Mixture({name: weight for name, (_, weight) in datasets.items()}, state)
        self.orders = {name: Order(seed, name, len(dataset)) for name, dataset in self.datasets.items()}
        self.tokenizer, self.tokens_per_image = tokenizer, tokens_per_image
        self.limit, self.too_long = limit, too_long
        self.word_dropout = word_dropout
        self.data_hash = data_hash
        self._fruitless = dict.fromkeys(self.datasets, 0)
        self._known: dict[tuple[str, int], Rendered] = {}  # samples do not change: the next epoch finds them here
        self._room = RENDERED_BYTES
        self._ahead: dict[tuple[str, int], Rendered | BadSample] = {}
        self._pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))

    @property
    def size(self) -> int:
        """Number of distinct samples."""
        return sum(len(dataset) for dataset in self.datasets.values())

    def next_step(self, batch_tokens: int) -> StepPlan:
        """Samples until their tokens reach ``batch_tokens``."""
        plan = StepPlan()
        chain = hashlib.sha256(self.data_hash.encode())
        while plan.tokens < batch_tokens:
            drawn = self._draw(plan, chain)
            if drawn is not None:
                plan.samples.append(drawn)
                plan.tokens += len(drawn.rendered.ids)
                plan.targets += drawn.rendered.targets
                plan.images += len(drawn.rendered.images)
        plan.data_hash = self.data_hash = chain.hexdigest()
        return plan

    def first(self, count: int) -> StepPlan:
        """The first ``count`` samples, none of them twice: fewer when there are not as many."""
        plan, chain = StepPlan(), hashlib.sha256()
        count = min(count, self.size)
        while len(plan.samples) + len(plan.bad) + plan.skipped < count and self.mixture.shares:
            source = self.mixture.choose()
            if self.mixture.state.cursors[source] >= len(self.datasets[source]):
                del self.mixture.shares[source]
            elif (drawn := self._draw(plan, chain)) is not None:
                plan.samples.append(drawn)
                plan.tokens += len(drawn.rendered.ids)
                plan.targets += drawn.rendered.targets
        return plan

    def _draw(self, plan: StepPlan, chain: Any) -> Drawn | None:
        """The next sample, or None when it cannot be used, which ``plan`` then says."""
        source = self.mixture.choose()
        position = self.mixture.advance(source)
        index = self.orders[source](position)
        name = f"{source}[{index}]"
        rendered = self._known.get((source, index)) or self._render(source, position, plan)
        if rendered is not None:
            name = rendered.id
            if len(rendered.ids) > self.limit:
                rendered = self._shorten(rendered, plan)
        chain.update(f"{source}\t{index}\t{name}\t{rendered is not None}\n".encode())
        self._fruitless[source] = 0 if rendered is not None else self._fruitless[source] + 1
        if self._fruitless[source] >= 2 * len(self.datasets[source]):  # not bad luck at the turn of an epoch
            raise DataError(
                f"no sample of the data set '{source}' can be used: {plan.skipped} too long, {len(plan.bad)} bad",
                hint=plan.bad[-1].reason if plan.bad else "raise stage.micro_tokens",
            )
        if rendered is None:
            return None
        self.mixture.account(source, rendered.targets)
        if self.word_dropout and not rendered.is_document:
            generator = random.Random(f"{self.seed}/{source}/{position}")  # the same wherever the sample is packed
            rendered = rendered.drop_words(self.word_dropout, self.tokenizer, generator)
        return Drawn(source, rendered)

    def _render(self, source: str, position: int, plan: StepPlan) -> Rendered | None:
        """The sample at a position of a data set's order, which ``plan`` notes where it is unusable.

        Those behind it are read along, in threads, because drawing and decoding leave Python's lock.
        """
        index = self.orders[source](position)
        if (source, index) not in self._ahead:
            coming = dict.fromkeys(map(self.orders[source], range(position, position + AHEAD)))
            wanted = [i for i in coming if (source, i) not in self._known and (source, i) not in self._ahead]
            found = self._pool.map(lambda i: self._read(source, i), wanted)
            self._ahead |= {(source, i): sample for i, sample in zip(wanted, found, strict=True)}
        rendered = self._ahead.pop((source, index))
        if isinstance(rendered, BadSample):
            plan.bad.append(rendered)
            return None
        size = 50 * len(rendered.ids) + sum(len(image.data or b"") for image in rendered.images)
        if size <= self._room:
            self._room -= size
            self._known[source, index] = rendered
        return rendered

    def _read(self, source: str, index: int) -> Rendered | BadSample:
        name = f"{source}[{index}]"
        try:
            sample = self.datasets[source][index]
            name = sample.id or name
            rendered = render(replace(sample, id=name), self.tokenizer, self.tokens_per_image)
            if rendered.targets == 0:
                raise DataError("nothing to learn from: no assistant message")
        except DataError as error:
            return BadSample(source, name, error.message)
        return rendered

    def _shorten(self, rendered: Rendered, plan: StepPlan) -> Rendered | None:
        if rendered.is_document:
            plan.cropped += 1
            return rendered.crop(self.limit)
        if self.too_long == "skip":
            plan.skipped += 1
            return None
        raise ConfigError(
            f"sample '{rendered.id}' has {len(rendered.ids)} tokens, and {self.limit} fit",
            hint='raise stage.micro_tokens (and backbone.max_positions), or set stage.too_long = "skip"',
        )


class Collator:
    """Turns samples into batches with pictures: as features out of a cache, or as pixels."""

    def __init__(self, encoder: Any | None, cache: FeatureCache | None) -> None:
        self.encoder, self.cache = encoder, cache

    def __call__(self, bins: Sequence[Sequence[Drawn]]) -> tuple[list[tuple[Batch, list[Drawn]]], list[BadSample]]:
        """A batch per bin with the samples in it, and beside them those whose pictures cannot be read."""
        images = [image for members in bins for drawn in members for image in drawn.rendered.images]
        vectors = self._vectors(images)
        batches: list[tuple[Batch, list[Drawn]]] = []
        bad: list[BadSample] = []
        at = 0
        for members in bins:
            kept: list[Drawn] = []
            pictures: list[torch.Tensor] = []
            for drawn in members:
                own = vectors[at : at + len(drawn.rendered.images)]
                at += len(own)
                failed = next((vector for vector in own if isinstance(vector, DataError)), None)
                if failed is not None:
                    bad.append(BadSample(drawn.source, drawn.rendered.id, failed.message))
                    continue
                kept.append(drawn)
                pictures += [vector for vector in own if not isinstance(vector, DataError)]
            if kept:
                batches.append((self._batch(kept, pictures), kept))
        return batches, bad

    def _vectors(self, images: Sequence[Image]) -> list[torch.Tensor | DataError]:
        if not images:
            return []
        if self.cache is not None:
            return self.cache.lookup(images)
        return [self._pixels(image) for image in images]

    def _pixels(self, image: Image) -> torch.Tensor | DataError:
        assert self.encoder is not None  # rendering refuses pictures for a model without a vision path
        try:
            return self.encoder.preprocess(decode(image))  # type: ignore[no-any-return]
        except DataError as error:
            return error

    def _batch(self, kept: list[Drawn], pictures: list[torch.Tensor]) -> Batch:
        batch = Batch.pack([drawn.rendered for drawn in kept])
        if pictures:
            stacked = torch.stack(pictures)
            if self.cache is not None:
                batch.features = stacked
            else:
                batch.pixels = stacked
        return batch
