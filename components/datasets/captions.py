"""Pictures with a caption that a person wrote: what the sets ``tuxpaint``, ``openclipart`` and ``gimp_help`` share.

A sample is a picture, a short request and the caption. Which split it is in depends on the caption alone: captions
are compared without case, punctuation, article and number at the end, mapped to the thing they vary
(:func:`components.datasets.concepts.base_concept`), and that is hashed, with the very key, the shares and the
exceptions of OpenMoji. So "A red apple." and OpenMoji's "green apple" are on the same side in every set, and no
caption occurs in two splits of any of the four. A picture with several captions, byte for byte the same, could
still be on two sides: its held-out samples are dropped, and counted in ``dropped``.

What is read from the source (captions, authors, sizes and hashes of the pictures, rendered drawings) is kept in the
cache under a hash of the names, sizes and times of the source's files.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeAlias

import PIL.Image

from components.cache import cache_dir, publish
from components.datasets.augmentation import augment
from components.datasets.concepts import base_concept
from components.datasets.pictures import TEST, VALIDATION
from components.datasets.splits import pick, split_of
from components.images import MAX_PIXELS, decode
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Conversation, Image, Length, Split, assistant, user

REQUESTS = (
    "Describe this picture.",
    "What does this picture show?",
    "What is in this picture?",
    "Write a caption for this picture.",
    "In a few words, what is shown here?",
    "What can you see here?",
    "Give this picture a caption.",
    "Tell me what this is.",
)
FEWEST = 30  # pairs; a source that gives fewer is not what it should be
VIEW_SIDE = 256  # pixels of an augmented view's longer side
SMALLEST = 16  # pixels of the shorter side: below it there is little to see
SPLITS: tuple[Split, ...] = ("train", "validation", "test")  # in this order a picture's samples are kept
INDEX_VERSION = 1  # raised when the same files give other pairs
INDEX = "index.json"
RENDERED = "rendered"  # the place of pictures that were rendered into the index's own folder

# Concepts that OpenMoji always trains on because it has more than four pictures of them: a test compares.
ALWAYS_TRAIN = frozenset({
    "arrow", "book", "bus and tram", "cat", "circle", "clock face", "cloud and sun", "diamond", "dog", "family",
    "hand", "heart", "index pointing", "input", "japanese button", "keycap", "medal", "media button", "monkey",
    "moon", "person", "punctuation mark", "running", "skyline", "smiling face", "square", "walking", "word arrow",
    "word button",
})  # fmt: skip

Folders: TypeAlias = Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Pair:
    """One picture and its caption. ``picture`` is PLACE/PATH, where PLACE names one of the source's folders."""

    id: str
    caption: str
    picture: str
    author: str = ""
    digest: str = ""  # sha256 of the picture's bytes
    bytes: int = 0  # of the picture


Scan: TypeAlias = Callable[[Folders, Path], tuple[list[Pair], int]]
"""Reads a source: its folders and an empty folder for rendered pictures → pairs in order, and how many were unusable.
"""


def normalise(caption: str) -> str:
    """What two captions are compared by: ``"A Red Apple. "`` → ``"red apple"``."""
    text = unicodedata.normalize("NFKC", caption).lower().replace("'", "").replace("’", "")
    text = " ".join(re.sub(r"[\W_]+", " ", text).split())
    return re.sub(r"^(?:(?:a|an|the) )+(?=\S)", "", re.sub(r"(?<=\D) \d{1,3}$", "", text))


def concept_of(caption: str) -> str:
    """The thing that a captioned picture is a variant of."""
    return base_concept(normalise(caption))


def split_of_caption(caption: str) -> Split:
    """The split of every sample with this caption, in every set."""
    concept = concept_of(caption)
    if concept in ALWAYS_TRAIN:
        return "train"
    return split_of(f"openmoji/{concept}", validation=VALIDATION, test=TEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a set says about all its samples."""

    name: str
    license: str
    attribution: str
    folders: dict[str, Path] = field(hash=False)


class CaptionDataset:
    """Captions of pictures, each in ``views`` views: the plain one, then augmented ones.

    ``metadata``: ``kind`` "caption", ``view``, ``concept``, ``image`` (the picture's hash), ``file``, ``author`` (""
    where the source names none), ``attribution`` and ``license``.
    """

    def __init__(self, source: Source, pairs: Sequence[Pair], *, views: int = 1, dropped: int = 0) -> None:
        self._source, self._pairs, self._views, self.dropped = source, pairs, views, dropped

    def __len__(self) -> int:
        return len(self._pairs) * self._views

    def __getitem__(self, index: int) -> Conversation:
        pair, view, id = self._locate(index)
        place, _, path = pair.picture.partition("/")
        image = Image(path=str(self._source.folders[place] / path))
        if view:
            image = Image(data=_view(image, random.Random(id)))
        return Conversation(
            (user(image, _request(id)), assistant(pair.caption)),
            id=id,
            metadata={
                "kind": "caption",
                "view": view,
                "concept": concept_of(pair.caption),
                "image": pair.digest[:16],
                "file": pair.picture,
                "author": pair.author,
                "attribution": self._source.attribution,
                "license": self._source.license,
            },
        )

    def length(self, index: int) -> Length:
        pair, _, id = self._locate(index)
        return Length(len(_request(id).encode()) + len(pair.caption.encode()), images=1)

    def _locate(self, index: int) -> tuple[Pair, int, str]:
        """The pair of a sample, its view, and its id."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self._source.name} has {len(self)} samples here; there is no number {index}")
        view, place = divmod(index, len(self._pairs))
        pair = self._pairs[place]
        return pair, view, f"{pair.id}/view {view}" if view else pair.id


def _request(id: str) -> str:
    return REQUESTS[pick(f"request/{id}", len(REQUESTS))]


def _view(image: Image, rng: random.Random) -> bytes:
    """Made small first: no encoder here looks closer, and large pictures would cost more than their features.

    Never mirrored: captions say "left", and many pictures have writing in them.
    """
    drawing = decode(image)
    drawing.thumbnail((VIEW_SIDE, VIEW_SIDE), PIL.Image.Resampling.BICUBIC)
    return augment(drawing.convert("RGBA"), rng, mirror=False)


def dataset(source: Source, scan: Scan, split: Split, *, views: int = 1, variant: str = "") -> CaptionDataset:
    """One split of a source, the training split in ``views`` views of each picture.

    ``variant`` names the options that change what ``scan`` gives.

    Raises DataError for a source with fewer than ``FEWEST`` pairs, or none of this split.
    """
    folder, pairs, dropped = _index(source.name, tuple(source.folders.items()), scan, variant)
    where = ", ".join(str(path) for path in source.folders.values())
    if len(pairs) < FEWEST:
        raise DataError(
            f"data set '{source.name}': only {len(pairs)} captioned pictures in {where}",
            hint=f"Point dataset.{source.name}.root at the folder with all files of the package.",
        )
    chosen, lost = divide(pairs)[split]
    if not chosen:
        raise DataError(f"data set '{source.name}': none of the {len(pairs)} captions in {where} falls into '{split}'")
    places = {**source.folders, RENDERED: folder / RENDERED}
    whole = Source(name=source.name, license=source.license, attribution=source.attribution, folders=places)
    views, dropped = (views, lost + dropped) if split == "train" else (1, lost)
    return CaptionDataset(whole, chosen, views=views, dropped=dropped)


def divide(pairs: Sequence[Pair]) -> dict[Split, tuple[list[Pair], int]]:
    """The pairs of every split, in order, and how many of it were dropped.

    Dropped are repetitions of a picture with the same caption, and samples of a picture that another split before
    this one (train, validation, test) has with another caption.
    """
    result: dict[Split, tuple[list[Pair], int]] = {}
    owner: dict[str, Split] = {}
    seen: set[tuple[str, str]] = set()
    for split in SPLITS:
        kept, candidates = [], [pair for pair in pairs if split_of_caption(pair.caption) == split]
        for pair in candidates:
            key = (pair.digest, normalise(pair.caption))
            if key not in seen and owner.setdefault(pair.digest, split) == split:
                seen.add(key)
                kept.append(pair)
        result[split] = kept, len(candidates) - len(kept)
    return result


def described(pairs: Sequence[Pair], folders: Folders) -> tuple[list[Pair], int]:
    """The pairs with hash and size of their pictures, and how many have a picture that cannot be used.

    That is one that no decoder knows, that has more than ``MAX_PIXELS`` pixels, or is smaller than ``SMALLEST``.
    """
    kept: list[Pair] = []
    for pair in pairs:
        place, _, path = pair.picture.partition("/")
        data = (folders[place] / path).read_bytes()
        if _usable(data):
            digest = hashlib.sha256(data).hexdigest()
            kept.append(Pair(pair.id, pair.caption, pair.picture, pair.author, digest, len(data)))
    return kept, len(pairs) - len(kept)


def _usable(data: bytes) -> bool:
    from io import BytesIO

    try:
        with PIL.Image.open(BytesIO(data), formats=("PNG", "JPEG")) as opened:
            width, height = opened.size
    except Exception:  # a decoder raises nearly anything on damaged bytes; the caller counts
        return False
    return min(width, height) >= SMALLEST and width * height <= MAX_PIXELS


@cache
def _index(name: str, folders: tuple[tuple[str, Path], ...], scan: Scan, variant: str) -> tuple[Path, list[Pair], int]:
    """The index's folder, the pairs and the number of unusable ones: from the cache where the files are the same."""
    table = dict(folders)
    try:
        mark = _fingerprint(table)
        target = cache_dir() / "captions" / "-".join(filter(None, (name, variant, f"v{INDEX_VERSION}", mark)))
        found = _read(target)
        if found is None:
            print(f"reading the captions of {name}, once", file=sys.stderr, flush=True)
            publish(target, lambda content: _write(content, table, scan), is_valid=lambda path: _read(path) is not None)
            found = _read(target)
    except OSError as error:
        raise DataError(f"data set '{name}': {error.filename}: cannot be read: {error.strerror or error}") from error
    if found is None:
        raise DataError(f"{target}: what was just written there cannot be read", hint="Try again.")
    return target, *found


def _fingerprint(folders: Folders) -> str:
    """16 digits that change when a file of the folders is added, removed, or written again."""
    digest = hashlib.sha256()
    for place, folder in sorted(folders.items()):
        for base, below, files in os.walk(folder):
            below.sort()
            for file in sorted(files):
                status = os.lstat(os.path.join(base, file))
                about = (place, os.path.relpath(base, folder), file, status.st_size, status.st_mtime_ns)
                digest.update(repr(about).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _write(content: Path, folders: Folders, scan: Scan) -> None:
    rendered = content / RENDERED
    rendered.mkdir()
    pairs, unusable = scan(folders, rendered)
    pairs, worse = described(pairs, {**folders, RENDERED: rendered})
    rows = [asdict(pair) for pair in pairs]
    (content / INDEX).write_text(json.dumps({"pairs": rows, "dropped": unusable + worse}), encoding="utf-8")


def _read(folder: Path) -> tuple[list[Pair], int] | None:
    """What an index holds; None where there is none, or a damaged one."""
    try:
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        pairs = [Pair(**row) for row in content["pairs"]]
        own = [pair for pair in pairs if pair.picture.startswith(f"{RENDERED}/")]
        if any(os.stat(folder / pair.picture).st_size != pair.bytes for pair in own):
            return None
        return pairs, int(content["dropped"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
