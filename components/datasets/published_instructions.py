"""Conversations about pictures that others publish: LLaVA's, ShareGPT4V's, The Cauldron.

In LLaVA's files a picture stands where the text says ``<image>``; one that is named and nowhere marked stands before
the first question, and more marks than pictures make a bad sample. Nobody learns from a turn of the assistant that
nothing precedes, nor from a question at the end without an answer: both are left off. ``metadata``: ``kind``
"instruction", and ``image`` (the file) or ``source`` (the set that The Cauldron took it from).
"""

from __future__ import annotations

from collections.abc import Sequence

from components.datasets.published import Layout, Published, Source, embedded, words
from components.datasets.tables import PICTURE, STRING, Row, Schema, list_of, struct_of
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Conversation, Image, Message, Part, Text

MARK = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def _llava(row: Row, source: Source) -> Conversation:
    turns = [_turn(turn) for turn in row["conversations"] or ()]
    while turns and turns[0][0] == "assistant":
        del turns[0]
    if turns and turns[-1][0] == "user":
        del turns[-1]
    spoken = [role for role, _ in turns if role != "system"]
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise DataError(f"the turns do not alternate: {', '.join(spoken) or 'there are none'}")
    file = row["image"]
    pictures = [source.picture(file, "train2017", "coco/train2017", "images")] if file else []
    messages = _placed(turns, pictures)
    return Conversation(messages, metadata={"kind": "instruction", "image": file or ""})


def _turn(turn: Row | None) -> tuple[str, str]:
    turn = turn or {}
    speaker = turn.get("from")
    if speaker not in ROLES:
        raise DataError(f"a turn is from '{speaker}'; known: {', '.join(ROLES)}")
    role = ROLES[speaker]
    return role, words(turn.get("value"), "answer" if role == "assistant" else "question")


def _placed(turns: Sequence[tuple[str, str]], pictures: Sequence[Image]) -> tuple[Message, ...]:
    """Messages with the pictures where the users' turns have marks for them."""
    marks = sum(text.count(MARK) for role, text in turns if role == "user")
    if marks > len(pictures):
        raise DataError(f"{marks} marks {MARK} for {len(pictures)} pictures")
    left = list(pictures)
    first: list[Part] = [left.pop(0) for _ in range(len(pictures) - marks)]  # named, and nowhere marked
    messages: list[Message] = []
    for role, text in turns:
        parts: list[Part] = []
        if role == "user":
            parts, first = first, []
            for place, piece in enumerate(text.split(MARK)):
                if place:
                    parts.append(left.pop(0))
                if piece.strip():
                    parts.append(Text(piece.strip()))
        else:
            parts.append(Text(text))
        messages.append(Message(role, tuple(parts)))  # type: ignore[arg-type]
    return tuple(messages)


_LLAVA_SCHEMA = Schema(
    required={"conversations": list_of(struct_of(**{"from": STRING, "value": STRING}))}, optional={"image": STRING}
)
_LLAVA_PICTURES = (
    "https://github.com/haotian-liu/LLaVA#visual-instruction-tuning (folders coco/train2017, gqa/images, "
    "ocr_vqa/images, textvqa/train_images, vg/VG_100K, vg/VG_100K_2; or COCO's train2017 for llava_instruct_150k)"
)

LLAVA_INSTRUCT = Published(
    name="llava_instruct",
    repo="liuhaotian/LLaVA-Instruct-150K",
    license="CC-BY-4.0, OpenAI terms",
    size="0.2 GB (150k) to 1 GB (mix665k), and 19 GB or more of pictures",
    layouts=(
        Layout(
            files={"train": ("{file}",)},
            schema=_LLAVA_SCHEMA,
            convert=_llava,
            group="image",
            pictures=_LLAVA_PICTURES,
        ),
    ),
)

SHAREGPT4V = Published(
    name="sharegpt4v",
    repo="Lin-Chen/ShareGPT4V",
    license="CC-BY-NC-4.0, OpenAI terms",
    size="0.1 GB (cap100k) to 1.5 GB, and the pictures",
    layouts=(
        Layout(
            files={"train": ("{file}",)},
            schema=_LLAVA_SCHEMA,
            convert=_llava,
            group="image",
            pictures="the list in https://github.com/ShareGPT4Omni/ShareGPT4V (folders coco, sam, llava, wikiart, …)",
        ),
    ),
)


def _cauldron(row: Row, source: Source) -> Conversation:
    pictures = [embedded(picture) for picture in row["images"] or ()]
    messages: list[Message] = []
    turns = [turn or {} for turn in row["texts"] or ()]
    for number, turn in enumerate(turns):
        question = words(turn.get("user"), "question")
        answer = words(turn.get("assistant"), "answer")
        messages.append(Message("user", (*(pictures if number == 0 else ()), Text(question))))
        messages.append(Message("assistant", (Text(answer),)))
    if not messages:
        raise DataError("no turns in it")
    origin = turns[0].get("source") or ""
    return Conversation(tuple(messages), metadata={"kind": "instruction", "source": origin})


THE_CAULDRON = Published(
    name="the_cauldron",
    repo="HuggingFaceM4/the_cauldron",
    license="prompts CC-BY-4.0; each set its own",
    size="169 GB for all sets",
    layouts=(
        Layout(
            files={"train": ("{subset}/train-*.parquet",)},
            schema=Schema(
                required={
                    "images": list_of(PICTURE),
                    "texts": list_of(struct_of(user=STRING, assistant=STRING, source=STRING)),
                }
            ),
            convert=_cauldron,
        ),
    ),
)
