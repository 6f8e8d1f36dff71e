"""Outputs of a frozen encoder, kept: a picture is encoded once, not once per epoch.

The key is what the picture *is* (sha256 of its bytes) and what the encoder does with it (its weights, options and
transform, the way pictures are decoded), so a stale hit is impossible. Values are float16. The cache folder may be
shared by several processes and runs: files appear whole, by a rename, and a damaged one is made again. Where it
cannot be written, features stay in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.cache import cache_dir
from components.images import pixels_of, transform_hash
from components.weights import state_hash
from ghostvis_plugins.errors import ConfigError, DataError
from ghostvis_plugins.types import Image

from .workers import Workers


@dataclass(frozen=True, slots=True)
class Coming:
    """A picture that no features are known of: decoded, and named by its digest."""

    key: str
    pixels: Tensor


def encoder_fingerprint(encoder: Any, options: Mapping[str, Any]) -> str:
    """Identity of what an encoder computes: options (where its weights came from aside), transform and weights.

    The hash of a transform holds the version of decoding, too.
    """
    said = {key: value for key, value in options.items() if key != "weights"}
    text = json.dumps([said, transform_hash(encoder.transform())], sort_keys=True, default=str)
    return hashlib.sha256((text + state_hash(encoder)).encode()).hexdigest()[:32]


class FeatureCache:
    """Pictures → encoder features ``[P, Dv]`` float16 on the CPU.

    ``folder`` None keeps them in memory only, where at most ``memory_bytes`` stay, the most recently used.
    Raises ConfigError for an encoder that trains: its outputs do not keep.
    """

    def __init__(
        self,
        encoder: Any,
        options: Mapping[str, Any],
        *,
        on_disk: bool,
        memory_bytes: int,
        encode_batch: int,
        device: torch.device,
    ) -> None:
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            raise ConfigError(
                "stage.features keeps outputs of the encoder, and this run trains it",
                hint='set stage.features = "none", or leave the encoder out of stage.train',
            )
        self.encoder, self.device, self.encode_batch = encoder, device, encode_batch
        self.folder = cache_dir() / "features" / encoder_fingerprint(encoder, options) if on_disk else None
        self.memory_bytes = memory_bytes
        self._writable = on_disk
        self.encoded = 0  # pictures that went through the encoder
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._digests: dict[str, str] = {}

    def prepare(self, images: Sequence[Image], workers: Workers) -> list[Tensor | Coming | DataError]:
        """Features where they are kept, else pixels for :meth:`finish`, or why there are none. For any thread."""
        keys = workers.map(self._key, images)
        wanted = {key: image for key, image in zip(keys, images, strict=True) if not isinstance(key, DataError)}
        ready = dict(zip(wanted, workers.map(self._ready, wanted.items()), strict=True))
        return [key if isinstance(key, DataError) else ready[key] for key in keys]

    def finish(self, pictures: Sequence[Tensor | Coming]) -> list[Tensor]:
        """Features of all; those that nobody encoded meanwhile are. For the thread that owns the device."""
        coming = {picture.key: picture.pixels for picture in pictures if isinstance(picture, Coming)}
        known = {key: found for key in coming if (found := self._recall(key)) is not None}
        missing = [key for key in coming if key not in known]
        for start in range(0, len(missing), self.encode_batch):
            known |= self._encode({key: coming[key] for key in missing[start : start + self.encode_batch]})
        return [known[picture.key] if isinstance(picture, Coming) else picture for picture in pictures]

    def _key(self, image: Image) -> str | DataError:
        try:
            return self._digest(image)
        except OSError as error:
            return DataError(f"cannot read {image.path}: {error.strerror or error}")

    def _ready(self, item: tuple[str, Image]) -> Tensor | Coming | DataError:
        key, image = item
        known = self._recall(key)
        if known is not None:
            return known
        try:
            return Coming(key, pixels_of(self.encoder, image))
        except DataError as error:
            return error

    def _digest(self, image: Image) -> str:
        if image.path is None:
            return image.digest()
        if image.path not in self._digests:
            self._digests[image.path] = image.digest()
        return self._digests[image.path]

    def _recall(self, key: str) -> Tensor | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        if self.folder is None:
            return None
        path = self._path(key)
        try:
            array = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            return None
        except Exception as error:  # of a damaged header numpy makes a literal, a dtype, a size: it fails in any way
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"{path} is damaged ({reason}); the picture is encoded again", stacklevel=2)
            return None
        if array.shape != (self.encoder.tokens, self.encoder.out_dim) or array.dtype != np.float16:
            warnings.warn(f"{path} holds {array.dtype}{array.shape}; the picture is encoded again", stacklevel=2)
            return None
        return self._keep(key, torch.from_numpy(array))

    def _keep(self, key: str, features: Tensor) -> Tensor:
        with self._lock:
            if key in self._kept:  # two threads read the same file
                return self._kept[key]
            self._kept[key] = features
            self._bytes += features.numel() * 2
            while self._bytes > self.memory_bytes and len(self._kept) > 1:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.numel() * 2
        return features

    def _encode(self, pixels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Features of at most ``encode_batch`` pictures, which are kept from now on."""
        self.encoder.eval()
        stacked = torch.stack(list(pixels.values()))
        # Kernels are chosen by batch size and differ in the last bits. With one size for all batches the features of
        # a picture do not depend on its company, so a resumed run, or one with more ranks, finds the very same.
        missing = self.encode_batch - len(pixels)
        padded = torch.cat([stacked, stacked.new_zeros(missing, *stacked.shape[1:])])
        with torch.no_grad():
            encoded = self.encoder(padded.to(self.device))[: len(pixels)].half().cpu()
        if not encoded.isfinite().all():
            raise ConfigError("the encoder's outputs exceed float16", hint='set stage.features = "none"')
        self.encoded += len(pixels)
        known = {}
        for key, features in zip(pixels, encoded, strict=True):
            own = features.clone()  # not a view: that would keep the whole batch alive
            if self._writable:
                self._write(self._path(key), own)
            known[key] = self._keep(key, own)
        return known

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.npy"

    def _write(self, path: Path, features: Tensor) -> None:
        """A full disk, or one that may not be written, ends the writing, and not the run."""
        private = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with private.open("wb") as file:
                np.save(file, features.numpy())
            private.replace(path)
        except OSError as error:
            self._writable = False
            with contextlib.suppress(OSError):
                private.unlink(missing_ok=True)
            warnings.warn(
                f"features cannot be kept in {self.folder} ({error.strerror or error}); from here on they stay in "
                "memory, and what does not fit there is encoded again",
                stacklevel=2,
            )
