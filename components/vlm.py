"""The vision-language model: four parts and the rule that joins them.

    pixels [I,3,H,W] → encoder [I,P,Dv] → resampler [I,N,Dr] → projector [I,N,D]

The I·N vectors replace the embeddings of the image placeholders of the packed text, in reading order, so any
number of pictures can stand anywhere. A model without the first three parts is a plain language model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.batch import Batch
from components.precision import Half, autocast_dtype
from ghostvis_plugins import DataError


class VLM(nn.Module):
    """Encoder, resampler, projector (all three or none) and backbone; each is what its Protocol says."""

    def __init__(
        self, backbone: Any, encoder: Any | None = None, resampler: Any | None = None, projector: Any | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.resampler, self.projector = encoder, resampler, projector
        self.backbone = backbone
        self._half = Half()

    @property
    def tokens_per_image(self) -> int:
        """N, the placeholders that stand for one picture; 0 in a model without a vision path."""
        return 0 if self.resampler is None else int(self.resampler.tokens)

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    def init_weights(self) -> None:
        """Fill every part. Never called for a model that is loaded from a directory."""
        for part in (self.encoder, self.resampler, self.projector, self.backbone):
            if part is not None:
                part.init_weights()

    def train(self, mode: bool = True) -> VLM:
        """Training mode for all but a frozen encoder, whose running statistics must not move."""
        super().train(mode)
        if self.encoder is not None and self.encoder_frozen:
            self.encoder.eval()
        return self

    @property
    def encoder_frozen(self) -> bool:
        """True when no parameter of the encoder is trained (or there is none)."""
        return self.encoder is None or not any(p.requires_grad for p in self.encoder.parameters())

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels ``[I, 3, H, W]`` → encoder features ``[I, P, Dv]``; a frozen encoder leaves no trace in the graph."""
        if self.encoder is None:
            raise DataError("pictures were given to a model without a vision path")
        pixels = pixels.to(next((p.dtype for p in self.encoder.parameters()), pixels.dtype))
        if not self.encoder_frozen:
            return self.encoder(pixels)
        if self.encoder.training:
            self.encoder.eval()
        dtype = autocast_dtype(pixels)
        with torch.no_grad():
            return self._half.of(self.encoder, dtype)(pixels.to(dtype))

    def vision_vectors(self, pixels: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """Pixels ``[I, 3, H, W]`` or encoder features ``[I, P, Dv]`` → vectors ``[I, N, D]``."""
        if self.resampler is None or self.projector is None:
            raise DataError("pictures were given to a model without a vision path")
        if features is None:
            if pixels is None:
                raise ValueError("vision_vectors takes pixels or features")
            features = self.encode(pixels)
        return self.projector(self.resampler(features.to(self.vision_dtype)))

    @property
    def vision_dtype(self) -> torch.dtype:
        """The floating-point type of the vision path; a frozen backbone, or cached features, may have a smaller one."""
        parts = [part for part in (self.resampler, self.projector) if part is not None]
        return next((p.dtype for part in parts for p in part.parameters()), self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the backbone."""
        return next(self.backbone.parameters()).dtype

    def embed(self, batch: Batch, vectors: Tensor | None = None) -> Tensor:
        """Embedded text ``[T, D]`` with image vectors in place of the placeholders.

        ``vectors`` ``[I, N, D]`` may be given when they are known already. Raises DataError, naming the sample,
        when its placeholders are not as many as the vectors of its pictures.
        """
        x = self.backbone.embed(batch.ids if batch.inputs is None else batch.inputs)
        if vectors is None and batch.images:
            if batch.pixels is None and batch.features is None:
                raise DataError(f"sample '{batch.sample_ids[batch.image_owner[0]]}': neither pixels nor features given")
            vectors = self.vision_vectors(batch.pixels, batch.features)
        _check_counts(batch, 0 if vectors is None else vectors.shape[0], 0 if vectors is None else vectors.shape[1])
        if vectors is None:
            return x
        return x.index_copy(0, batch.image_rows, vectors.flatten(0, 1).to(x.dtype))

    def hidden(
        self, batch: Batch, cache: Any = None, vectors: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """Hidden states ``[T, D]`` of a batch, or ``[S, D]`` of the given rows.

        With ``cache`` the documents continue the cache's rows; ``vectors`` as in :meth:`embed`.
        """
        x = self.embed(batch, vectors)
        return self.backbone(x, positions=batch.positions, cu_seqlens=batch.cu_seqlens, cache=cache, rows=rows)

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Summed negative log-likelihood (nats, float32 scalar) of the targets, and how many there are.

        The last layer's output and the head are computed for the rows before a target only. Sums, not means:
        whoever joins micro-batches or ranks divides by the total number of targets once.
        """
        rows = batch.target_rows
        hidden, targets = self.hidden(batch, rows=rows), batch.ids[rows + 1]
        if hasattr(self.backbone, "nll"):
            return self.backbone.nll(hidden, targets), rows.numel()
        return F.cross_entropy(self.backbone.logits(hidden), targets, reduction="sum"), rows.numel()

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        """The loss: what a wrapper such as DistributedDataParallel calls."""
        return self.loss(batch)


def _check_counts(batch: Batch, images: int, vectors_per_image: int) -> None:
    owned = [0] * batch.documents
    for owner in batch.image_owner[:images]:
        owned[owner] += vectors_per_image
    for name, placeholders, vectors in zip(batch.sample_ids, batch.placeholders, owned, strict=True):
        if placeholders != vectors:
            raise DataError(f"sample '{name}': {placeholders} image placeholders, but {vectors} image vectors")
    if images > len(batch.image_owner):
        raise DataError(f"{images} pictures encoded for a batch that holds {len(batch.image_owner)}")
