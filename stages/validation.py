"""Validation: the same samples every time, summed over ranks.

Bits per byte are the negative log-likelihood of the targets that are text, in bits, over the bytes of that text.
Control tokens have no bytes and are left out of both sums, as in nanochat. So the figure belongs to the text and the
model: it compares vocabularies of any size, as a loss per token cannot.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from components.batch import Batch

from .config import TrainConfig
from .data import Drawn, StepPlan
from .distributed import Distributed
from .ledger import BadSample
from .loader import Collator, own_bins
from .packing import Cost, pack
from .parallel import Alone
from .workers import Ahead


class Validation:
    """Mean negative log-likelihood (nats), accuracy and bits per byte of the targets of a fixed set of samples.

    ``token_bytes`` are the bytes behind each token id, 0 for control tokens.
    """

    def __init__(
        self, plan: StepPlan, config: TrainConfig, dist: Distributed, cost: Cost, token_bytes: Sequence[int]
    ) -> None:
        self.plan, self.dist, self.prefetch = plan, dist, config.prefetch
        packed = replace(plan, rows=pack(plan.lengths, config.micro_tokens))
        self.bins, self.most = own_bins(packed, config, dist, cost)
        self.sources = sorted({drawn.source for drawn in plan.samples})
        self.token_bytes = torch.tensor(token_bytes)

    def __call__(
        self,
        parallel: Alone,
        collator: Collator,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> tuple[dict[str, float], list[BadSample]]:
        """``val_loss``, ``val_accuracy``, ``val_bpb`` and the accuracy of each data set; and samples with unreadable
        pictures."""
        parallel.model.eval()
        done = 0
        totals = torch.zeros(len(self.sources), 5, dtype=torch.float64)  # nll, right, targets; nll and bytes of text
        # Numbers of samples are those of the training split wherever bad ones are looked up, so these have none.
        bad = [replace(entry, index=-1) for entry in self.plan.bad]
        with Ahead(map(collator.prepare, self.bins), self.prefetch, prologue=self.dist.use_device) as bins:
            for prepared in bins:
                bad += [replace(entry, index=-1) for entry in prepared.bad]
                if (batch := collator.finish(prepared)) is not None:
                    with torch.no_grad(), autocast():
                        self._score(parallel, batch.to(self.dist.device), prepared.kept, totals)
                    done += 1
        with torch.no_grad(), autocast():
            parallel.keep_up(self.most - done)
        totals = self.dist.sum_(totals.to(self.dist.device, torch.float32 if self._mps else None)).double().cpu()
        nll, right, targets, text_nll, text_bytes = totals.sum(0).tolist()
        metrics = {"val_loss": nll / max(targets, 1), "val_accuracy": right / max(targets, 1)}
        if text_bytes:
            metrics["val_bpb"] = text_nll / math.log(2) / text_bytes
        if len(self.sources) > 1:
            for source, (_, own, count, *_) in zip(self.sources, totals.tolist(), strict=True):
                metrics[f"val_accuracy/{source}"] = own / max(count, 1)
        return metrics, bad

    @property
    def _mps(self) -> bool:
        return self.dist.device.type == "mps"  # it has no float64

    def _score(self, parallel: Alone, batch: Batch, kept: Sequence[Drawn], totals: torch.Tensor) -> None:
        rows, logits = batch.target_rows, parallel.logits(batch)
        targets = batch.ids[rows + 1]
        nll = F.cross_entropy(logits, targets, reduction="none").cpu().double()
        right = (logits.argmax(-1) == targets).cpu().double()
        size = self.token_bytes[targets.cpu()]
        source = torch.tensor([self.sources.index(drawn.source) for drawn in kept])  # of each document
        owner = source[batch.document_ids[rows].cpu()]
        totals.index_add_(0, owner, torch.stack([nll, right, torch.ones_like(nll), nll * (size > 0), size], dim=1))
