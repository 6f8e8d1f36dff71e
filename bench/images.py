"""A 640 x 480 JPEG to a normalised 336 x 336 tensor, on one core: our two ways beside plain Pillow and numpy.

    python bench/images.py [PICTURE]

Ways take turns, so that a busy machine slows all of them; times are medians over the rounds, ratios medians of the
ratios within a round. Features are compared by cosine, patch by patch, with those of the plain way: the mean and the
worst. The picture is a portrait that comes with matplotlib, or any other that is named.
"""

from __future__ import annotations

import argparse
import io
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import numpy as np
import PIL.features
import PIL.Image
import torch

from components.encoders.config import Dinov2, EfficientNetLite, VisionTransformer
from components.encoders.efficientnet_lite import build as build_lite
from components.encoders.vit import build_dinov2
from components.images import pixels_of, to_pixels
from ghostvis_plugins import GhostVisError
from ghostvis_plugins.types import Image

PORTRAIT = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
SIDE, ROUNDS = 336, 80
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def plain(data: bytes, mean: Any = MEAN, std: Any = STD) -> torch.Tensor:
    """The reference: Pillow decodes and scales, numpy normalises."""
    picture = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    scaled = picture.resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC)
    unit = np.asarray(scaled, dtype=np.float32) / 255
    normal = (unit - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 0, 1)))


class Preprocessing:
    """That of an encoder, alone."""

    def __init__(self, resize: str, mean: Any = MEAN, std: Any = STD) -> None:
        self.values = {"size": SIDE, "mean": mean, "std": std, "resize": resize}

    def transform(self) -> dict[str, Any]:
        return self.values

    def preprocess(self, picture: Any) -> torch.Tensor:
        return to_pixels(picture, **self.values)


def measure(ways: dict[str, Callable[[], torch.Tensor]]) -> None:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 5):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    reference = times["plain"][5:]
    expected = ways["plain"]()
    print(f"{'way':8} {'ms':>6} {'ratio':>6}   values that differ, and by how much at most (of 255)")
    for name, taken in times.items():
        ratio = median(old / new for old, new in zip(reference, taken[5:], strict=True))
        apart = (ways[name]() - expected).abs() * 255 * torch.tensor(STD)[:, None, None]
        share, most = apart.gt(0.5).float().mean().item(), apart.max().item()
        print(f"{name:8} {1e3 * median(taken[5:]):6.2f} {ratio:5.2f}x   {share:.2%}, {most:.0f}")


@torch.no_grad()
def compare_features(data: bytes) -> None:
    def lite() -> tuple[Any, Any, Any]:
        made = build_lite(EfficientNetLite(image_size=320))
        return made, (0.5,) * 3, (0.5,) * 3

    def dino() -> tuple[Any, Any, Any]:
        config: VisionTransformer = Dinov2(image_size=SIDE, weights="package")
        return build_dinov2(config), config.manner.mean, config.manner.std

    print("\nencoder            cosine of a patch's features to the plain way's: mean, worst")
    for name, build in (("efficientnet_lite", lite), ("dinov2", dino)):
        try:
            made, mean, std = build()
            made.init_weights()
        except GhostVisError as error:
            print(f"{name:18} {error.message}")
            continue
        made.eval()
        expected = made(plain(data, mean, std)[None]).double()
        found = made(pixels_of(Preprocessing("fast", mean, std), Image(data=data))[None]).double()
        cosine = torch.nn.functional.cosine_similarity(expected, found, dim=-1)
        print(f"{name:18} {cosine.mean():.6f}, {cosine.min():.6f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", type=Path, default=PORTRAIT)
    torch.set_num_threads(1)
    buffer = io.BytesIO()
    with PIL.Image.open(parser.parse_args().picture) as opened:
        opened.convert("RGB").resize((640, 480), PIL.Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
    data = buffer.getvalue()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "simplejpeg", "pillow", "numpy"))
    turbo = PIL.features.version("libjpeg_turbo")
    print(f"{packages}, Pillow's libjpeg-turbo {turbo}, Python {platform.python_version()}")
    print(f"640 x 480, quality 90, {len(data) / 1e3:.0f} KB -> {SIDE} x {SIDE}; one thread, {ROUNDS} rounds\n")
    image = Image(data=data)
    measure(
        {
            "plain": lambda: plain(data),
            "exact": lambda: pixels_of(Preprocessing("exact"), image),
            "fast": lambda: pixels_of(Preprocessing("fast"), image),
        }
    )
    compare_features(data)


if __name__ == "__main__":
    main()
