"""What the tests of shards share: small data sets as plugins, and shards written from samples."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import miniature
import PIL.Image
from pydantic import BaseModel, ConfigDict

from components.shards import index as indexes
from components.shards.index import NAME
from components.shards.writer import join, write_shard
from components.shards.writer import prepare as pack
from ghostvis_plugins import dataset
from ghostvis_plugins.manager import Registry
from ghostvis_plugins.types import Conversation, Document, Image, Sample, SampleList, Split, assistant, user


def picture(number: int, kind: str = "PNG", size: tuple[int, int] = (40, 30)) -> Image:
    """Noise that is another for every number."""
    import numpy as np

    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, kind)
    return Image(data=buffer.getvalue())


def samples(count: int = 12) -> list[Sample]:
    """Conversations about one or two pictures, and every fourth a document."""
    made: list[Sample] = []
    for number in range(count):
        if number % 4 == 3:
            made.append(Document(f"text of {number} 漢字 <|im_end|>\n", id=f"mixed/{number}"))
            continue
        pictures = [picture(number, "JPEG"), picture(number + 1000)][: 1 + number % 2]
        turns = (user(*pictures, f"What is {number}?"), assistant(f"number {number}"))
        made.append(Conversation(turns, id=f"mixed/{number}", metadata={"number": number, "tags": ["a", "b"]}))
    return made


def write(folder: Path, some: Sequence[Sample], per_shard: int = 4) -> Path:
    """Shards of ``some`` with their index."""
    parts = []
    for number, start in enumerate(range(0, len(some), per_shard)):
        made = write_shard(folder / f"mixed-train-{number:06d}.tar", map(pack, some[start : start + per_shard]))
        assert made is not None
        parts.append(made)
    shards, rows, pictures = join(parts)
    header = {"split": "train", "source": "mixed", "tokenizer": None, "plan": {}}
    indexes.write(folder / NAME, rows, pictures, shards, header)
    return folder


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = 24
    repeat: tuple[int, ...] = ()  # samples that have the id of the first one
    broken: tuple[int, ...] = ()  # samples whose picture is cut off
    surrogate: tuple[int, ...] = ()  # samples whose text is no Unicode
    silent: tuple[int, ...] = ()  # samples whose answer is empty


def build(config: Options, *, split: Split) -> SampleList:
    made: list[Sample] = []
    for number in range(config.size):
        image = picture(number)
        if number in config.broken:
            image = Image(data=image.read()[:-200])
        answer = "" if number in config.silent else f"answer {number}"
        question = "\ud800" if number in config.surrogate else f"question {number}?"
        id = "faulty/0" if number in config.repeat else f"faulty/{number}"
        made.append(Conversation((user(image, question), assistant(answer)), id=id))
    return SampleList(made)


def registry() -> Registry:
    return miniature.registry(dataset("faulty", config=Options, build=build))
