"""Validation: the same samples every time, summed over ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from components.batch import Batch
from components.vlm import VLM

from .data import Collator, Drawn, StepPlan
from .distributed import Distributed
from .ledger import BadSample
from .packing import deal, pack


class Validation:
    """Mean negative log-likelihood (nats) and accuracy per target token on a fixed set of samples."""

    def __init__(self, plan: StepPlan, micro_tokens: int, dist: Distributed) -> None:
        self.plan, self.dist = plan, dist
        bins = pack(plan.lengths, micro_tokens)
        self.bins = [[plan.samples[i] for i in bins[b]] for b in deal(bins, plan.lengths, dist.world)[dist.rank]]
        self.sources = sorted({drawn.source for drawn in plan.samples})

    def __call__(
        self,
        model: VLM,
        collator: Collator,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> tuple[dict[str, float], list[BadSample]]:
        """``val_loss``, ``val_accuracy`` and the accuracy of each data set; and samples with unreadable pictures."""
        model.eval()
        totals = torch.zeros(len(self.sources), 3, dtype=torch.float64)  # nll, right, targets
        bad: list[BadSample] = []
        for members in self.bins:
            collated, failed = collator([members])
            bad += failed
            for batch, kept in collated:
                with torch.no_grad(), autocast():
                    self._score(model, batch.to(self.dist.device), kept, totals)
        totals = self.dist.sum_(totals.to(self.dist.device, torch.float32 if self._mps else None)).double().cpu()
        nll, right, targets = totals.sum(0).tolist()
        metrics = {"val_loss": nll / max(targets, 1), "val_accuracy": right / max(targets, 1)}
        if len(self.sources) > 1:
            for source, (_, own, count) in zip(self.sources, totals.tolist(), strict=True):
                metrics[f"val_accuracy/{source}"] = own / max(count, 1)
        return metrics, bad

    @property
    def _mps(self) -> bool:
        return self.dist.device.type == "mps"  # it has no float64

    def _score(self, model: VLM, batch: Batch, kept: Sequence[Drawn], totals: torch.Tensor) -> None:
        rows = batch.target_rows
        logits = model.backbone.logits(model.hidden(batch, rows=rows))
        targets = batch.ids[rows + 1]
        nll = F.cross_entropy(logits, targets, reduction="none").cpu().double()
        right = (logits.argmax(-1) == targets).cpu().double()
        source = torch.tensor([self.sources.index(drawn.source) for drawn in kept])  # of each document
        owner = source[batch.document_ids[rows].cpu()]
        totals.index_add_(0, owner, torch.stack([nll, right, torch.ones_like(nll)], dim=1))
