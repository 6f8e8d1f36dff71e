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
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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

MAX_THREADS = 16  # that prepare pictures


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
        self._digests: dict[str, str] = {}

    def lookup(self, images: Sequence[Image]) -> list[Tensor | DataError]:
        """Features of each picture, or why it has none. What is missing is encoded in batches."""
        results: dict[str, Tensor | DataError] = {}
        keys: list[str] = []
        missing: dict[str, Image] = {}
        for image in images:
            try:
                key = self._digest(image)
            except OSError as error:
                key = f"unreadable {image.path}"
                results[key] = DataError(f"cannot read {image.path}: {error.strerror or error}")
            keys.append(key)
            if key not in results:
                known = self._recall(key)
                if known is not None:
                    results[key] = known
                else:
                    missing.setdefault(key, image)
        self._encode(missing, results)
        return [results[key] for key in keys]

    def _digest(self, image: Image) -> str:
        if image.path is None:
            return image.digest()
        if image.path not in self._digests:
            self._digests[image.path] = image.digest()
        return self._digests[image.path]

    def _recall(self, key: str) -> Tensor | None:
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
        self._kept[key] = features
        self._bytes += features.numel() * 2
        while self._bytes > self.memory_bytes and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.numel() * 2
        return features

    def _encode(self, missing: Mapping[str, Image], results: dict[str, Tensor | DataError]) -> None:
        """Encode in batches, while threads prepare the pictures of the batch behind: decoding leaves Python's lock."""
        items = list(missing.items())
        chunks = [items[start : start + self.encode_batch] for start in range(0, len(items), self.encode_batch)]
        with ThreadPoolExecutor(max(1, min(MAX_THREADS, os.cpu_count() or 1, len(items)))) as pool:
            waiting: dict[str, Future[Tensor | DataError]] = {}
            for chunk in (*chunks, []):
                coming = {key: pool.submit(self._pixels, image) for key, image in chunk}
                self._flush({key: future.result() for key, future in waiting.items()}, results)
                waiting = coming

    def _pixels(self, image: Image) -> Tensor | DataError:
        try:
            return pixels_of(self.encoder, image)
        except DataError as error:
            return error

    def _flush(self, prepared: Mapping[str, Tensor | DataError], results: dict[str, Tensor | DataError]) -> None:
        results |= {key: found for key, found in prepared.items() if isinstance(found, DataError)}
        pixels = {key: found for key, found in prepared.items() if not isinstance(found, DataError)}
        if not pixels:
            return
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
        for key, features in zip(pixels, encoded, strict=True):
            own = features.clone()  # not a view: that would keep the whole batch alive
            if self._writable:
                self._write(self._path(key), own)
            results[key] = self._keep(key, own)

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
