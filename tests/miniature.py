"""A world in miniature for the tests of the stages: coloured squares, questions about them, a model of 20k weights.

Also a program, for tests that need processes of their own: ``python tests/miniature.py RUNS``.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import tokenizers
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

import components.builtin
import stages.builtin
from components.images import to_pixels
from components.tokenizers import Tokenizer
from ghostvis_plugins import ComponentSpec, dataset, encoder, tracker
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.manager import Registry
from ghostvis_plugins.types import Conversation, Document, Image, Sample, SampleList, Split, assistant, user
from stages.features import FeatureCache
from stages.workers import Workers

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230), "yellow": (230, 220, 30)}


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = 40
    broken: int = 0  # samples whose picture is not one
    mute: int = 0  # samples without an answer
    long: int = 0  # words of the longest text
    poison: list[int] = []  # training samples whose picture is magenta


class KillerOptions(BaseModel):
    at: int


class Killer:
    """A tracker that takes the whole process with it, like a power cut, when a step is logged."""

    def __init__(self, config: KillerOptions, *, run_dir: Path) -> None:
        self.at = config.at

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        if step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def finish(self) -> None: ...


class EncoderOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int = 8
    dropout: float = 0.0
    layers: int = 0
    brittle: bool = False  # makes infinities of a magenta picture


class TinyEncoder(nn.Module):
    """Patches of 4 x 4 pixels of an 8 x 8 picture through one convolution."""

    def __init__(self, config: EncoderOptions) -> None:
        super().__init__()
        self.image_size, self.tokens, self.out_dim = (8, 8), 4, config.width
        self.patches = nn.Conv2d(3, config.width, 4, stride=4)
        self.norm = nn.BatchNorm1d(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.layers))
        self.brittle = config.brittle

    def transform(self) -> Mapping[str, Any]:
        return {"size": [8, 8], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "fit": "pad"}

    def preprocess(self, image: PIL.Image.Image) -> Tensor:
        return to_pixels(image, **self.transform())

    def init_weights(self) -> None:
        for module in (self.patches, *self.layers):
            module.reset_parameters()

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.dropout(self.norm(self.patches(pixels).flatten(2))).transpose(1, 2)
        for layer in self.layers:
            x = x + layer(x).relu()
        if self.brittle:
            magenta = (pixels == pixels.new_tensor([1.0, -1.0, 1.0])[:, None, None]).flatten(1).all(1)
            x = torch.where(magenta[:, None, None], torch.inf, x)
        return x


def build_encoder(config: EncoderOptions) -> TinyEncoder:
    return TinyEncoder(config)


def square(colour: tuple[int, int, int], shade: int = 0) -> Image:
    """A picture as PNG bytes; every shade is another picture."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), tuple(max(0, c - shade) for c in colour)).save(buffer, "PNG")
    return Image(data=buffer.getvalue())


def build_colours(config: Options, *, split: Split) -> SampleList:
    """Questions about squares: "colours/train/7"."""
    samples: list[Sample] = []
    shift = {"train": 0, "validation": 100, "test": 200}[split]
    for number in range(config.size):
        name, value = list(COLOURS.items())[number % len(COLOURS)]
        picture = square(value, (number + shift) % 29)
        if number < config.broken and split == "train":
            picture = Image(data=b"not a picture")
        if number in config.poison and split == "train":
            picture = square((255, 0, 255))
        turns = (user(picture, "What colour is it?"), assistant(name))
        mute = config.broken <= number < config.broken + config.mute
        samples.append(Conversation(turns[:1] if mute else turns, id=f"colours/{split}/{number}"))
    return SampleList(samples)


def build_texts(config: Options, *, split: Split) -> SampleList:
    """Documents of different lengths."""
    words = ["the", "red", "fox", "sees", "a", "green", "leaf", "and", "a", "blue", "bird", "under", "yellow", "light"]
    texts = [" ".join(words[i % 5 : 3 + i % 11] or words[:1]) for i in range(config.size)]
    if config.long:
        texts[0] = " ".join(words * config.long)
    return SampleList([Document(text, f"texts/{split}/{i}") for i, text in enumerate(texts)])


def specs() -> Iterator[ComponentSpec]:
    yield from flat(components.builtin.ghostvis_components())
    yield from flat(stages.builtin.ghostvis_components())
    yield encoder("tiny", config=EncoderOptions, build=build_encoder)
    yield tracker("killer", config=KillerOptions, build=Killer)
    yield dataset("colours", config=Options, build=build_colours)
    yield dataset("texts", config=Options, build=build_texts)


def flat(found: Any) -> Iterator[ComponentSpec]:
    """Specs of a hook that may yield groups of them."""
    for item in found:
        if isinstance(item, ComponentSpec):
            yield item
        else:
            yield from flat(item)


def registry(*more: ComponentSpec) -> Registry:
    return Registry.from_specs([*specs(), *more])


BACKBONE = {"name": "gpt", "depth": 1, "aspect": 16, "head_dim": 8, "max_positions": 128}


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer directory as the tokenizer stage leaves it."""
    texts = [*COLOURS, "What colour is it?", "the red fox sees a green leaf and a blue bird under yellow light"] * 5
    Tokenizer.train(texts, 330).save(folder)
    (folder / "config.json").write_text('{"format_version": 1, "architecture": "ghostvis-tokenizer"}')
    return folder


def as_others_read(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """Ids of a text by the saved file, as every other tool reads it: control tokens are recognised."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        saved = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    return lambda text: list(saved.encode(text, add_special_tokens=False).ids)


def features_of(cache: FeatureCache, images: Sequence[Image]) -> list[Tensor]:
    """As a step has them: prepared in some thread, and finished where the device is."""
    prepared = cache.prepare(images, Workers(0))
    assert not any(isinstance(picture, DataError) for picture in prepared)
    return cache.finish(prepared)  # type: ignore[arg-type]


class NoOptions(BaseModel):
    pass


def interruption(at: int) -> ComponentSpec:
    """A tracker that ends the process's run like Ctrl-C, in the middle of step ``at``."""

    class Interrupt:
        def log(self, step: int, metrics: Mapping[str, Any]) -> None:
            if step == at:
                raise KeyboardInterrupt

        def finish(self) -> None: ...

    return tracker("interrupt", config=NoOptions, build=lambda config, *, run_dir: Interrupt())


def values(start: Path, stage: str = "align", **overrides: Any) -> dict[str, Any]:
    """Resolved values of a tiny run; overrides are dotted keys with ``__`` for the dots."""
    result: dict[str, Any] = {
        "stage": {"name": stage, "steps": 12, "batch_tokens": 200, "micro_tokens": 100, "show_samples": 0},
        "from": str(start),
        "seed": 7,
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "encoder": {"name": "tiny"},
        "resampler": {"name": "avgpool", "tokens": 4},
        "projector": {"name": "mlp"},
        "backbone": dict(BACKBONE),
        "optimizer": {"name": "adamw"},
        "dataset": {"colours": {"weight": 2.0}, "texts": {"weight": 1.0}},
    }
    for key, value in overrides.items():
        table = result
        *path, last = key.split("__")
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    return result


def main(runs: str) -> None:
    """Run stages in one process group; ``runs`` is a JSON list of [run directory, values, resume]."""
    from stages.distributed import Distributed
    from stages.runner import run

    group = Distributed.start("cpu")
    for run_dir, given, resume in json.loads(runs):
        run(given, registry(), run_dir, resume=resume)
    group.stop()


if __name__ == "__main__":
    main(sys.argv[1])
