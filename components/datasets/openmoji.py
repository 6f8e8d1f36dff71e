"""OpenMoji: a picture, "what is this?", and its name. For teaching a projector what things are called.

Pictures, names, licence and split are described in :mod:`components.datasets.pictures`. In training each
picture can be shown in several augmented ``views``: turned, scaled and shifted a little, on a pale background,
mirrored where the mirror image has the same name. View 0 is the plain picture. Validation and test are plain.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import PIL.Image

from components.datasets.augmentation import augment
from components.datasets.concepts import may_flip
from components.datasets.config import OpenMoji
from components.datasets.pictures import CREDIT, Picture, pictures
from components.datasets.splits import pick
from ghostvis_plugins.types import Conversation, Image, Length, Split, assistant, user

__all__ = ["QUESTIONS", "OpenMojiDataset", "Picture", "build", "pictures"]

QUESTIONS = (
    "what is this?",
    "what is in the picture?",
    "name this picture.",
    "what does the picture show?",
    "what do you see?",
    "what is shown here?",
    "tell me what this is.",
    "describe the picture.",
)


class OpenMojiDataset:
    """Naming conversations. ``metadata``: ``kind`` "naming", ``concept``, ``image`` (id), ``view``, and the credit."""

    def __init__(self, items: Sequence[Picture], *, split: Split, views: int) -> None:
        self._items = items
        self._split = split
        self._views = views

    def __len__(self) -> int:
        return len(self._items) * self._views

    def __getitem__(self, index: int) -> Conversation:
        picture, view, id = self._locate(index)
        image = Image(path=picture.path) if view == 0 else Image(data=_view(picture, random.Random(id)))
        return Conversation(
            (user(image, _question(id)), assistant(picture.name)),
            id=id,
            metadata={"kind": "naming", "concept": picture.concept, "image": picture.id, "view": view, **CREDIT},
        )

    def length(self, index: int) -> Length:
        picture, _, id = self._locate(index)
        return Length(len(_question(id).encode()) + len(picture.name.encode()), images=1)

    def _locate(self, index: int) -> tuple[Picture, int, str]:
        if not 0 <= index < len(self):
            raise IndexError(f"openmoji/{self._split} has {len(self)} samples; there is no number {index}")
        view, place = divmod(index, len(self._items))
        picture = self._items[place]
        return picture, view, f"openmoji/{self._split}/{picture.id}/{view}"


def build(config: OpenMoji, *, split: Split) -> OpenMojiDataset:
    """The data set of one split; renders the pictures on first use (seconds)."""
    views = config.views if split == "train" else 1
    return OpenMojiDataset(pictures(split, config.render_size), split=split, views=views)


def _question(id: str) -> str:
    return QUESTIONS[pick(f"question/{id}", len(QUESTIONS))]


def _view(picture: Picture, rng: random.Random) -> bytes:
    with PIL.Image.open(picture.path) as opened:
        drawing = opened.convert("RGBA")
    return augment(drawing, rng, mirror=may_flip(picture.id))
