"""A pack of documents in one row of tokens: what a model takes. Final interface.

There is no padding and no batch dimension. ``cu_seqlens`` holds the document boundaries, ``positions`` restart
at 0 in each document, and images are named by the tokens they replace. A document is never cut, so an image
span never crosses a boundary; ``pack`` verifies it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ghostvis_plugins import DataError
from ghostvis_plugins.types import Image

if TYPE_CHECKING:
    from components.rendering import Rendered


ROWS = ("target_rows", "image_rows")
"""Rows that are found on the CPU and move with the batch: to find them on the device would mean to wait for it."""


@dataclass
class Batch:
    """T tokens of several documents with I images.

    ``cu_seqlens`` and ``image_spans`` stay on the CPU wherever the batch is: they decide shapes. ``placeholders``
    counts, per document, the tokens in ``ids`` that stand for image vectors: the model compares it with what the
    pictures really give.
    """

    ids: Tensor  # int64 [T]
    cu_seqlens: Tensor  # int32 [documents + 1], CPU
    positions: Tensor  # int64 [T], from 0 in each document
    document_ids: Tensor  # int64 [T]
    loss_mask: Tensor  # bool [T]: this token is a target
    images: tuple[Image, ...]
    image_spans: Tensor  # int64 [I, 2]: first token and number of tokens, CPU
    image_owner: list[int]  # document of each image
    sample_ids: list[str]  # per document
    placeholders: list[int]  # per document
    features: Tensor | None = None  # [I, P, Dv]: what the encoder gave, when it is cached
    pixels: Tensor | None = None  # [I, 3, H, W]
    inputs: Tensor | None = None  # int64 [T]: what is read where it differs from the targets in ``ids``

    @classmethod
    def pack(cls, rendered: Sequence[Rendered]) -> Batch:
        """Concatenate documents. Raises DataError naming the sample whose spans and placeholders disagree."""
        lengths = torch.tensor([len(r.ids) for r in rendered], dtype=torch.long)
        cu_seqlens = torch.zeros(len(rendered) + 1, dtype=torch.int32)
        cu_seqlens[1:] = lengths.cumsum(0)
        document_ids = torch.repeat_interleave(torch.arange(len(rendered)), lengths)
        ids = torch.tensor([token for r in rendered for token in r.ids], dtype=torch.long)
        starts = cu_seqlens.tolist()
        return cls(
            ids=ids,
            cu_seqlens=cu_seqlens,
            positions=torch.arange(ids.numel()) - cu_seqlens[:-1].long()[document_ids],
            document_ids=document_ids,
            loss_mask=torch.tensor([m for r in rendered for m in r.loss_mask], dtype=torch.bool),
            images=tuple(image for r in rendered for image in r.images),
            image_spans=torch.tensor(
                [(starts[d] + first, n) for d, r in enumerate(rendered) for first, n in r.image_spans], dtype=torch.long
            ).view(-1, 2),
            image_owner=[d for d, r in enumerate(rendered) for _ in r.image_spans],
            sample_ids=[r.id for r in rendered],
            placeholders=_placeholders(rendered),
            inputs=_inputs(rendered),
        )

    def __len__(self) -> int:
        return self.ids.numel()

    @property
    def documents(self) -> int:
        return len(self.sample_ids)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its large tensors on ``device``; no copy is waited for where they were pinned."""
        moved = replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in self._large().items()})
        for name in ROWS:
            if name in self.__dict__:
                moved.__dict__[name] = self.__dict__[name].to(device, non_blocking=True)
        return moved

    def pin(self) -> Batch:
        """The same batch in page-locked memory, from where a CUDA device copies while the host goes on."""
        pinned = replace(self, **{name: tensor.pin_memory() for name, tensor in self._large().items()})
        pinned.__dict__.update({name: getattr(self, name).pin_memory() for name in ROWS})
        return pinned

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of all tensors until ``stream`` has done what it was asked to, if another one filled it."""
        for tensor in (*self._large().values(), *(self.__dict__[name] for name in ROWS if name in self.__dict__)):
            tensor.record_stream(stream)

    def _large(self) -> dict[str, Any]:
        names = ("ids", "positions", "document_ids", "loss_mask", "features", "pixels", "inputs")
        return {name: tensor for name in names if (tensor := getattr(self, name)) is not None}

    @cached_property
    def target_rows(self) -> Tensor:
        """Rows ``[S]`` whose *next* token is a target of the same document: ``ids[target_rows + 1]``."""
        wanted = self.loss_mask[1:] & (self.document_ids[1:] == self.document_ids[:-1])
        return torch.nonzero(wanted).flatten()

    @cached_property
    def image_rows(self) -> Tensor:
        """Rows of all image placeholders in reading order, on the device of ``ids``."""
        first, counts = self.image_spans.unbind(1)
        offsets = torch.arange(int(counts.sum())) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        return (torch.repeat_interleave(first, counts) + offsets).to(self.ids.device)


def _inputs(rendered: Sequence[Rendered]) -> Tensor | None:
    """What the documents are read as; None when that is their ids."""
    if all(r.inputs is None for r in rendered):
        return None
    return torch.tensor([token for r in rendered for token in (r.inputs or r.ids)], dtype=torch.long)


def _placeholders(rendered: Sequence[Rendered]) -> list[int]:
    """Placeholder tokens of each document, counted in its ids; spans must lie inside and cover exactly those."""
    marker = next((r.ids[first] for r in rendered for first, n in r.image_spans if n and first < len(r.ids)), None)
    counts = []
    for r in rendered:
        if len(r.ids) != len(r.loss_mask):
            raise DataError(f"sample '{r.id}': {len(r.ids)} tokens, but a loss mask of {len(r.loss_mask)}")
        if len(r.images) != len(r.image_spans):
            raise DataError(f"sample '{r.id}': {len(r.images)} images, but {len(r.image_spans)} image spans")
        if any(first < 0 or n < 1 or first + n > len(r.ids) for first, n in r.image_spans):
            raise DataError(f"sample '{r.id}': an image span reaches outside its {len(r.ids)} tokens")
        covered = sum(token == marker for first, n in r.image_spans for token in r.ids[first : first + n])
        counts.append(0 if marker is None else r.ids.count(marker))
        if covered != sum(n for _, n in r.image_spans) or covered != counts[-1]:
            raise DataError(f"sample '{r.id}': {counts[-1]} image placeholders, {covered} of them inside image spans")
    return counts
