"""From plans to batches, ahead of the loop that computes them.

A thread plans the next steps, reads and renders their samples and decodes their pictures while the current step is
computed; what depends on the device, encoding pictures for the feature cache, is left to the loop's own thread. A step
carries the state of the stream behind it, so what was prepared and never computed leaves no trace. Steps, batches and
errors are the same, in the same order, for any number of workers and any look-ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from components.batch import Batch
from components.images import pixels_of
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Image

from .config import TrainConfig
from .data import Drawn, StepPlan, Stream
from .distributed import Distributed
from .features import Coming, FeatureCache
from .ledger import BadSample
from .packing import Cost, share
from .workers import Ahead, Workers


@dataclass(slots=True)
class Prepared:
    """A batch but for the features of pictures that were not encoded yet; None when no sample of the bin is left."""

    batch: Batch | None
    kept: list[Drawn]
    bad: list[BadSample]
    pictures: list[torch.Tensor | Coming]  # of the whole bin, where some have to be encoded; else empty


class Collator:
    """Turns samples into batches with pictures: as features out of a cache, or as pixels.

    :meth:`prepare` is for any thread, :meth:`finish` for the one that computes. ``known_bad`` are samples with
    unreadable pictures, by data set and index, that are left out without another look.
    """

    def __init__(
        self,
        encoder: Any | None,
        cache: FeatureCache | None,
        *,
        workers: Workers | None = None,
        known_bad: Mapping[tuple[str, int], BadSample] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.encoder, self.cache = encoder, cache
        self.workers, self.known_bad = workers or Workers(0), known_bad or {}
        self.pins = device is not None and device.type == "cuda"

    def __call__(self, members: Sequence[Drawn]) -> tuple[Batch | None, list[Drawn], list[BadSample]]:
        """The batch of a bin (None when nothing is left), the samples in it, and those with unreadable pictures."""
        prepared = self.prepare(members)
        return self.finish(prepared), prepared.kept, prepared.bad

    def prepare(self, members: Sequence[Drawn]) -> Prepared:
        """All but what the device has to do."""
        known = [self.known_bad.get((drawn.source, drawn.index)) for drawn in members]
        asked = [drawn for drawn, bad in zip(members, known, strict=True) if bad is None]
        images = [image for drawn in asked for image in drawn.rendered.images]
        found = iter(self._vectors(images))
        kept: list[Drawn] = []
        pictures: list[torch.Tensor | Coming] = []
        bad = [entry for entry in known if entry is not None]
        for drawn in asked:
            own = [next(found) for _ in drawn.rendered.images]
            failed = next((vector for vector in own if isinstance(vector, DataError)), None)
            if failed is not None:
                bad.append(BadSample(drawn.source, drawn.rendered.id, failed.message, drawn.index, picture=True))
                continue
            kept.append(drawn)
            pictures += [vector for vector in own if not isinstance(vector, DataError)]
        if not kept:
            return Prepared(None, kept, bad, [])
        batch = Batch.pack([drawn.rendered for drawn in kept])
        if any(isinstance(picture, Coming) for picture in pictures):
            return Prepared(batch, kept, bad, pictures)
        return Prepared(self._complete(batch, pictures), kept, bad, [])

    def finish(self, prepared: Prepared) -> Batch | None:
        """The whole batch: pictures that have no features yet are encoded."""
        if prepared.batch is None or not prepared.pictures:
            return prepared.batch
        assert self.cache is not None
        return self._complete(prepared.batch, self.cache.finish(prepared.pictures))

    def _vectors(self, images: Sequence[Image]) -> Sequence[torch.Tensor | Coming | DataError]:
        if self.cache is not None:
            return self.cache.prepare(images, self.workers)
        return self.workers.map(self._pixels, images)

    def _pixels(self, image: Image) -> torch.Tensor | DataError:
        assert self.encoder is not None  # rendering refuses pictures for a model without a vision path
        try:
            return pixels_of(self.encoder, image)  # type: ignore[no-any-return]
        except DataError as error:
            return error

    def _complete(self, batch: Batch, pictures: Sequence[Any]) -> Batch:
        if pictures:
            stacked = torch.stack(list(pictures))
            if self.cache is not None:
                batch.features = stacked
            else:
                batch.pixels = stacked
        return batch.pin() if self.pins else batch


@dataclass(slots=True)
class Step:
    """One step on this rank: its plan, and its batches, each made whole when it is asked for."""

    plan: StepPlan
    bad: list[BadSample]  # with unreadable pictures: complete when all batches were asked for
    left: int  # bins that were not asked for yet
    most: int  # bins of the rank that has most
    _loader: Loader

    def batches(self) -> Iterator[Batch]:
        """The batches of this rank; fewer than bins where no sample of one is left."""
        while self.left:
            prepared = self._loader.prepared()
            self.left -= 1
            self.bad += prepared.bad
            batch = self._loader.collator.finish(prepared)
            if batch is not None:
                yield batch


class Loader:
    """The next ``steps`` steps of a stream. Closing it, or leaving its ``with`` block, ends its thread.

    Batches of a step have to be taken before the next step is asked for.
    """

    def __init__(
        self, stream: Stream, collator: Collator, config: TrainConfig, dist: Distributed, cost: Cost, steps: int
    ) -> None:
        self.stream, self.collator, self.config, self.dist, self.cost = stream, collator, config, dist, cost
        self._items = Ahead(self._prepare(steps), config.prefetch, prologue=dist.use_device)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self._items.close()

    def next_step(self) -> Step:
        """The next step. Raises what planning it raised."""
        plan, (bins, most) = next(self._items)
        assert isinstance(plan, StepPlan)
        return Step(plan, [], bins, most, self)

    def prepared(self) -> Prepared:
        """The next bin of the current step."""
        _, found = next(self._items)
        assert isinstance(found, Prepared)
        return found

    def _prepare(self, steps: int) -> Iterator[tuple[StepPlan | None, Any]]:
        """Each step's plan with the number of its bins here, and then these bins."""
        for _ in range(steps):
            plan = self.stream.next_step(self.config.batch_tokens, self.config.row_tokens)
            bins, most = own_bins(plan, self.config, self.dist, self.cost)
            yield plan, (len(bins), most)
            for members in bins:
                yield None, self.collator.prepare(members)


def own_bins(plan: StepPlan, config: TrainConfig, dist: Distributed, cost: Cost) -> tuple[list[list[Drawn]], int]:
    """What this rank computes of a plan, and the most bins of any. Without ``stage.packing`` every sample is alone."""
    rendered = [drawn.rendered for drawn in plan.samples]
    rows = plan.rows if config.packing else [[number] for number in range(len(rendered))]
    costs = [cost(len(r.ids), len(r.images)) for r in rendered]
    hands = share(rows, plan.lengths, costs, config.micro_tokens, dist.world)
    own = [[plan.samples[number] for number in members] for members in hands[dist.rank]]
    return own, max(map(len, hands))
