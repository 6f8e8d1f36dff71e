"""Composed scenes: one to four OpenMoji drawings on a pale canvas, and a question whose true answer is known.

Source of the drawings: OpenMoji 17.0, CC BY-SA 4.0 (see :mod:`components.datasets.pictures`). Scenes are not
stored: number ``index`` of a split is a pure function of the split's name, the index and the options.

============  ==================================================================================
kind          questions
============  ==================================================================================
counting      "how many dogs are there?" (0 to 4), "how many pictures are there?" (1 to 4)
position      "where is the dog?", "where is the picture?" (left, right, top, bottom);
              "what is left of the tree?", "what is above the tree?"; "is the dog above the car?"
colour        "what colour is the heart?" (seven colours)
presence      "is there a cat?" (yes and no in equal shares)
============  ==================================================================================

What is held out in validation and test: every scene, always. Questions that name an object use forty common
words whose drawings were trained on (``metadata["objects"]`` is "known"): asking for a name that was never
taught measures nothing. Questions about "pictures" need no name, so there validation and test use drawings
of their own split, which no training stage has seen (``metadata["objects"]`` is "held_out").
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import PIL.Image

from components.datasets.augmentation import pastel, png
from components.datasets.config import SceneKind, Scenes
from components.datasets.pictures import CREDIT, all_pictures, pictures
from components.datasets.vocabulary import OBJECTS, SHAPES, plural, with_article
from ghostvis_plugins.types import Conversation, Image, Length, Split, assistant, user

UNIT = 128  # a scene is planned on a canvas of this side, and drawn at any scale
SMALL = (40, 42)  # sides of a drawing, so that four fit around the centre
LARGE = (46, 60)
SPOTS = {"left": (22, 64), "right": (106, 64), "top": (64, 22), "bottom": (64, 106)}
CELLS = ((32, 32), (96, 32), (32, 96), (96, 96))
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
WORDS = tuple(OBJECTS)

Objects = Literal["known", "held_out"]


@dataclass(frozen=True, slots=True)
class Placed:
    """A drawing on the canvas: its id, its centre and its side, in units."""

    id: str
    x: int
    y: int
    side: int


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything about a scene except its pixels. ``form`` tells apart the questions of a kind."""

    question: str
    answer: str
    form: str
    placed: tuple[Placed, ...]
    objects: Objects = "known"


class SceneDataset:
    """Conversations about composed pictures. ``metadata``: ``kind``, ``form``, ``objects``, ``image``, the credit."""

    def __init__(self, config: Scenes, *, split: Split) -> None:
        side = 128 if config.canvas <= 2 * UNIT else 256  # of the source drawings: never scaled up
        self._config = config
        self._split = split
        self._paths = {picture.id: picture.path for picture in all_pictures(side)}
        self._drawings = [picture.id for picture in pictures(split, side)]

    def __len__(self) -> int:
        return self._config.size

    def __getitem__(self, index: int) -> Conversation:
        kind, rng, scene = self._plan(index)
        id = f"scenes/{self._split}/{index}"
        metadata = {"kind": kind, "form": scene.form, "objects": scene.objects, "image": id, **CREDIT}
        image = Image(data=png(draw(scene, self._paths, self._config.canvas, pastel(rng))))
        return Conversation((user(image, scene.question), assistant(scene.answer)), id=id, metadata=metadata)

    def length(self, index: int) -> Length:
        _, _, scene = self._plan(index)
        return Length(len(scene.question) + len(scene.answer), images=1)  # plain ASCII

    def scene(self, index: int) -> Scene:
        """The truth behind a sample: what stands where."""
        return self._plan(index)[2]

    def _plan(self, index: int) -> tuple[SceneKind, random.Random, Scene]:
        if not 0 <= index < len(self):
            raise IndexError(f"scenes/{self._split} has {len(self)} samples; there is no number {index}")
        kind = self._config.questions[index % len(self._config.questions)]
        rng = random.Random(f"scenes/{self._split}/{kind}/{index}")
        return kind, rng, _PLANNERS[kind](rng, self._drawings, "known" if self._split == "train" else "held_out")


def build(config: Scenes, *, split: Split) -> SceneDataset:
    """The data set of one split; renders the drawings on first use (seconds)."""
    return SceneDataset(config, split=split)


def draw(scene: Scene, paths: dict[str, str], canvas: int, background: tuple[int, int, int]) -> PIL.Image.Image:
    """The picture of a scene: RGB, ``canvas`` pixels wide and high."""
    image = PIL.Image.new("RGB", (canvas, canvas), background)
    for item in scene.placed:
        side = round(item.side * canvas / UNIT)
        sprite = _sprite(paths[item.id], side)
        left, top = round(item.x * canvas / UNIT - side / 2), round(item.y * canvas / UNIT - side / 2)
        image.paste(sprite, (left, top), sprite)
    return image


@lru_cache(maxsize=1024)
def _sprite(path: str, side: int) -> PIL.Image.Image:
    with PIL.Image.open(path) as opened:
        return opened.convert("RGBA").resize((side, side), PIL.Image.Resampling.BICUBIC)


Planner = Callable[[random.Random, Sequence[str], Objects], Scene]


def _counting(rng: random.Random, drawings: Sequence[str], objects: Objects) -> Scene:
    if rng.random() < 0.5:
        count = rng.randint(1, 4)
        ids = rng.sample(drawings, count)
        return Scene("how many pictures are there?", str(count), "count_pictures", _in_cells(rng, ids), objects)
    count = rng.randint(0, 4)
    word, *others = rng.sample(WORDS, 5)
    more = rng.randint(1 if count == 0 else 0, 4 - count)
    ids = [OBJECTS[word]] * count + [OBJECTS[other] for other in others[:more]]
    return Scene(f"how many {plural(word)} are there?", str(count), "count_named", _in_cells(rng, ids))


def _position(rng: random.Random, drawings: Sequence[str], objects: Objects) -> Scene:
    form = rng.choice(("where_picture", "where_named", "what_relation", "is_relation"))
    if form == "where_picture":
        spot = rng.choice(tuple(SPOTS))
        placed = _at(rng, rng.choice(drawings), SPOTS[spot], LARGE, inset=8)
        return Scene("where is the picture?", spot, form, (placed,), objects)
    if form == "where_named":
        words = rng.sample(WORDS, rng.randint(2, 4))
        spots = rng.sample(tuple(SPOTS), len(words))
        here = tuple(_at(rng, OBJECTS[w], SPOTS[s], SMALL) for w, s in zip(words, spots, strict=True))
        return Scene(f"where is the {words[0]}?", spots[0], form, here)
    first, second = rng.sample(WORDS, 2)
    relation = rng.choice(tuple(RELATIONS))
    if form == "what_relation":
        return Scene(f"what is {relation} the {second}?", first, form, _pair(rng, first, second, relation))
    answer = rng.choice(("yes", "no"))
    shown = (first, second) if answer == "yes" else (second, first)
    return Scene(f"is the {first} {relation} the {second}?", answer, form, _pair(rng, *shown, relation))


def _colour(rng: random.Random, drawings: Sequence[str], objects: Objects) -> Scene:
    shapes = rng.sample(tuple(SHAPES), rng.randint(1, 3))
    colours = rng.sample(tuple(SHAPES[shapes[0]]), len(shapes))
    ids = [SHAPES[shape][colour] for shape, colour in zip(shapes, colours, strict=True)]
    if len(ids) < 3 and rng.random() < 0.5:
        ids.append(OBJECTS[rng.choice(WORDS)])
    return Scene(f"what colour is the {shapes[0]}?", colours[0], "colour", _in_cells(rng, ids))


def _presence(rng: random.Random, drawings: Sequence[str], objects: Objects) -> Scene:
    words = rng.sample(WORDS, 5)
    shown = words[: rng.randint(1, 4)]
    answer = rng.choice(("yes", "no"))
    asked = rng.choice(shown) if answer == "yes" else words[4]
    placed = _in_cells(rng, [OBJECTS[word] for word in shown])
    return Scene(f"is there {with_article(asked)}?", answer, "presence", placed)


_PLANNERS: dict[str, Planner] = {
    "counting": _counting,
    "position": _position,
    "colour": _colour,
    "presence": _presence,
}


def _in_cells(rng: random.Random, ids: Sequence[str]) -> tuple[Placed, ...]:
    """Drawings in random quarters of the canvas, one in each: never touching."""
    return tuple(_at(rng, id, cell, LARGE) for id, cell in zip(ids, rng.sample(CELLS, len(ids)), strict=True))


def _pair(rng: random.Random, first: str, second: str, relation: str) -> tuple[Placed, ...]:
    """Two drawings such that ``first`` is ``relation`` (left of, right of, above, below) ``second``."""
    dx, dy = RELATIONS[relation]
    slide = rng.randint(-24, 24)  # along the other axis, the same for both
    places = [(64 + sign * 32 * dx + slide * abs(dy), 64 + sign * 32 * dy + slide * abs(dx)) for sign in (1, -1)]
    return tuple(_at(rng, OBJECTS[w], place, LARGE) for w, place in zip((first, second), places, strict=True))


def _at(rng: random.Random, id: str, centre: tuple[int, int], sides: tuple[int, int], inset: int = 0) -> Placed:
    """A drawing of a random side near ``centre``, moved inwards as far as it needs to stay on the canvas.

    ``inset`` moves it up to as many units more towards the middle.
    """
    side = rng.randint(*sides)
    half = (side + 1) // 2
    slack = (LARGE[1] + 4 - side) // 2 if sides is LARGE else 0  # room left in a quarter of the canvas
    x, y = (value + rng.randint(-slack, slack) for value in centre)
    low, high = half + rng.randint(0, inset), UNIT - half - rng.randint(0, inset)
    return Placed(id, min(max(x, low), high), min(max(y, low), high), side)
