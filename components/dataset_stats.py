"""What is in a data set: counts, and how its lengths and pictures are spread. Decodes no picture, reads its header."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image

from components.datasets.webdataset import Joined
from components.images import FORMATS
from components.preview import spread
from components.shards.writer import count_tokens
from components.tokenizers import Tokenizer
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Conversation

BINS = 40


@dataclass(slots=True)
class Facts:
    """One value for every sample, or picture, that was looked at."""

    samples: int
    text_bytes: np.ndarray  # of all samples whose length is known without reading them
    images: np.ndarray  # of the same
    read: int = 0  # samples that the following are of
    text_tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # without those of pictures
    answer_tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    sizes: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))  # width and height of pictures
    unusable: list[tuple[str, str]] = field(default_factory=list)  # id and reason

    def table(self) -> dict[str, Any]:
        """The figures of a listing; None where nothing was counted."""
        total = int(self.text_bytes.sum())
        return {
            "samples": self.samples,
            "images": int(self.images.sum()),
            "text_bytes": total,
            "mean_text_bytes": round(total / max(len(self.text_bytes), 1), 1),
            "max_text_bytes": int(self.text_bytes.max(initial=0)),
            "read": self.read,
            "mean_text_tokens": _mean(self.text_tokens),
            "mean_answer_tokens": _mean(self.answer_tokens),
            "median_size": [int(side) for side in np.median(self.sizes, 0)] if len(self.sizes) else None,
            "largest_size": self.sizes[np.argmax(self.sizes.prod(1))].tolist() if len(self.sizes) else None,
            "unusable": len(self.unusable),
        }


def _mean(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 1) if len(values) else None


def facts(dataset: Any, tokenizer: Tokenizer | None, most: int) -> Facts:
    """Counts of all samples; tokens and sizes of at most ``most``, spread over the set.

    Of prepared shards, tokens and sizes of all samples come from their index, unless another tokenizer is asked for.
    """
    lengths = []
    unusable: dict[int, tuple[str, str]] = {}
    for index in range(len(dataset)):
        try:
            lengths.append(dataset.length(index))
        except DataError as error:
            unusable[index] = f"sample {index}", error.message
    found = Facts(
        len(dataset),
        np.array([length.text_bytes for length in lengths], np.int64),
        np.array([length.images for length in lengths], np.int64),
    )
    if isinstance(dataset, Joined) and _is_counted(dataset, tokenizer):
        _from_index(dataset, found)
    else:
        _by_reading(dataset, tokenizer, most, found, unusable)
    found.unusable = list(unusable.values())
    return found


def _is_counted(dataset: Joined, tokenizer: Tokenizer | None) -> bool:
    counted = {part.index.header.get("tokenizer") for part in dataset.datasets}
    prepared = all("plan" in part.index.header or "rebuilt" in part.index.header for part in dataset.datasets)
    return prepared and (tokenizer is None or counted == {tokenizer.fingerprint})


def _from_index(dataset: Joined, found: Facts) -> None:
    rows = [part.index.rows if part.chosen is None else part.index.rows[part.chosen] for part in dataset.datasets]
    for part, table in zip(dataset.datasets, rows, strict=True):
        first, count = table["first_picture"].astype(np.int64), table["pictures"].astype(np.int64)
        places = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(count.sum())
        sizes = part.index.pictures[places]
        found.sizes = np.concatenate([found.sizes, np.stack([sizes["width"], sizes["height"]], 1)])
    every = np.concatenate(rows) if rows else np.zeros(0, [("text_tokens", int), ("answer_tokens", int)])
    if (every["text_tokens"] >= 0).all():
        found.text_tokens, found.answer_tokens = every["text_tokens"], every["answer_tokens"]
    found.read = len(every)


def _by_reading(
    dataset: Any, tokenizer: Tokenizer | None, most: int, found: Facts, unusable: dict[int, tuple[str, str]]
) -> None:
    tokens: list[tuple[int, int]] = []
    sizes: list[tuple[int, int]] = []
    for index in spread(len(dataset), most):
        name = f"sample {index}"
        try:
            sample = dataset[index]
            name = sample.id or name
            tokens.append(count_tokens(sample, tokenizer))
            images = sample.images if isinstance(sample, Conversation) else ()
            sizes += [_size(image.read()) for image in images]
        except (DataError, OSError) as error:
            unusable[index] = name, getattr(error, "message", str(error))
    found.read = len(tokens)
    if tokenizer is not None and tokens:
        found.text_tokens, found.answer_tokens = np.array(tokens).T
    found.sizes = np.array(sizes, np.int64).reshape(-1, 2)


def _size(data: bytes) -> tuple[int, int]:
    """Width and height as the header has them. Raises DataError."""
    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except Exception as error:  # a parser raises nearly anything on damaged bytes
        raise DataError(f"a picture has a damaged header: {error}") from error


def histogram(found: Mapping[str, Facts], title: str) -> Any:
    """A matplotlib figure: lengths of texts and answers and sizes of pictures, one curve a split."""
    from matplotlib.figure import Figure

    panels = [
        ("text bytes", {split: facts.text_bytes for split, facts in found.items()}),
        ("text tokens", {split: facts.text_tokens for split, facts in found.items()}),
        ("answer tokens", {split: facts.answer_tokens for split, facts in found.items()}),
        ("pictures a sample", {split: facts.images for split, facts in found.items()}),
        ("longer side of a picture, pixels", {split: facts.sizes.max(1, initial=0) for split, facts in found.items()}),
    ]
    panels = [(name, values) for name, values in panels if any(map(np.any, values.values()))]
    figure = Figure(figsize=(4.2 * max(len(panels), 1), 3.4), layout="constrained")
    figure.suptitle(title)
    for axes, (name, values) in zip(np.atleast_1d(figure.subplots(1, max(len(panels), 1))), panels, strict=False):
        every = np.concatenate(list(values.values()))
        step = -(-(int(every.max()) - int(every.min()) + 1) // BINS)
        bins = np.arange(int(every.min()) - 1, int(every.max()) + step + 2, step) - 0.5  # around whole numbers
        for split, some in values.items():
            if len(some):
                weights = np.full(len(some), 100 / len(some))
                axes.hist(some, bins=bins, weights=weights, histtype="step", linewidth=1.5, label=split)
        axes.set_xlabel(name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("% of the split")
    figure.axes[0].legend()
    return figure
