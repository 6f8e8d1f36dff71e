"""Questions with a choice of answers that others publish: AI2D and ScienceQA.

The choices are lines "A. …" below the question, the answer is a letter. ``metadata``: ``kind`` "choice",
``question`` without choices, ``choices``, ``right`` (the number of the right one), and what names the question.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from components.datasets.published import Layout, Published, Source, embedded, words
from components.datasets.tables import BOOL, INT, KEY, PICTURE, STRING, Row, Schema, Table, list_of
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Conversation, Image, Split, assistant, user

__all__ = ["AI2D", "SCIENCEQA", "lettered"]


def lettered(choices: Sequence[str | None], right: int | None) -> tuple[str, str]:
    """The choices as lines "A. …", and the letter of the right one. Raises DataError for what cannot be asked."""
    if right is None:
        raise DataError("empty answer: nobody says which choice is right")
    texts = [(choice or "").strip() for choice in choices]
    if not 2 <= len(texts) <= 26 or not all(texts):
        raise DataError(f"{len(texts)} choices, or an empty one: {texts}")
    if not 0 <= right < len(texts):
        raise DataError(f"the right choice is number {right} of {len(texts)}")
    letters = [chr(ord("A") + number) for number in range(len(texts))]
    return "\n".join(f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True)), letters[right]


def _choice(
    source: Source, picture: Image | None, question: str, choices: Sequence[str | None], right: int | None, **more: Any
) -> Conversation:
    lines, letter = lettered(choices, right)
    text = f"{question}\n{lines}{source.options.suffix}"
    parts = (text,) if picture is None else (picture, text)
    metadata = {"kind": "choice", "question": question, "choices": list(choices), "right": right, **more}
    return Conversation((user(*parts), assistant(letter)), metadata=metadata)


# AI2D


def _ai2d_table(row: Row, source: Source) -> Conversation:
    answer = words(row["answer"], "answer")
    if not answer.isdecimal():
        raise DataError(f"the answer is '{answer}', not the number of a choice")
    return _choice(
        source, embedded(row["image"]), words(row["question"], "question"), row["options"] or (), int(answer)
    )


def _ai2d_rows(files: Sequence[Path]) -> Iterator[Row]:
    """The questions of every picture, a file each. Raises DataError for a file that is not one."""
    for path in files:
        try:
            document = json.loads(path.read_bytes())
            image = Path(document["imageName"]).name
            for question, about in document["questions"].items():
                yield {**about, "question": question, "imageName": image}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a question file of AI2D: {error}") from error


def _ai2d_choose(source: Source, table: Table) -> Iterator[bool | None]:
    """Test questions are those of the published list; letters instead of words need the pictures with letters."""
    path = source.folder / "ai2d_test_ids.csv"
    try:
        test = {line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: the list of test pictures cannot be read, and without it one would train on the test",
            hint="It is at https://s3-us-east-2.amazonaws.com/prior-datasets/ai2d_test_ids.csv.",
        ) from error
    lettered_too = (source.images / "abc_images").is_dir()
    for image, letters in zip(table.column("imageName"), table.column("abcLabel"), strict=True):
        belongs = (Path(image).stem in test) == (source.split == "test")
        yield (lettered_too or not letters) if belongs else None


def _ai2d_official(row: Row, source: Source) -> Conversation:
    file = row["imageName"]
    picture = source.picture(f"abc_images/{file}" if row["abcLabel"] else f"images/{file}", "ai2d")
    more = {"image": file, "question_id": row["questionId"] or ""}
    return _choice(
        source, picture, words(row["question"], "question"), row["answerTexts"], row["correctAnswer"], **more
    )


_AI2D_FILES: dict[Split, tuple[str, ...]] = {"train": ("questions/*.json",), "test": ("questions/*.json",)}

AI2D = Published(
    name="ai2d",
    repo="lmms-lab/ai2d",
    url="https://ai2-website.s3.amazonaws.com/data/ai2d-all.zip (training questions are there only)",
    license="non-commercial research",
    size="1 GB, the test split alone 0.14 GB",
    validation=0.05,
    layouts=(
        Layout(
            files={"test": ("data/test-*.parquet",)},
            schema=Schema(
                required={"question": STRING, "options": list_of(STRING), "answer": STRING, "image": PICTURE}
            ),
            convert=_ai2d_table,
        ),
        Layout(
            files=_AI2D_FILES,
            schema=Schema(
                required={
                    "imageName": STRING,
                    "question": STRING,
                    "answerTexts": list_of(STRING),
                    "correctAnswer": INT,
                    "abcLabel": BOOL,
                },
                optional={"questionId": STRING},
            ),
            convert=_ai2d_official,
            read=_ai2d_rows,
            choose=_ai2d_choose,
            group="imageName",
            hub=False,
        ),
    ),
)


# ScienceQA


def _scienceqa(row: Row, source: Source, picture: Image | None, **more: Any) -> Conversation:
    hint = (row["hint"] or "").strip()
    question = words(row["question"], "question")
    if hint:
        question = f"Context: {hint}\n{question}"
    more |= {name: row[name] or "" for name in ("subject", "topic", "grade")}
    return _choice(source, picture, question, row["choices"] or (), row["answer"], **more)


def _scienceqa_table(row: Row, source: Source) -> Conversation:
    return _scienceqa(row, source, row["image"])


def _scienceqa_choose(source: Source, table: Table) -> Iterable[bool | None]:
    wanted = {"train": "train", "validation": "val", "test": "test"}[source.split]
    return (split == wanted or None for split in table.column("split"))


def _scienceqa_official(row: Row, source: Source) -> Conversation:
    file = f"{row['split']}/{row[KEY]}/{row['image']}" if row["image"] else ""
    return _scienceqa(row, source, source.picture(file, "images") if file else None, question_id=row[KEY], image=file)


_SCIENCE: dict[str, Any] = {"question": STRING, "choices": list_of(STRING), "answer": INT}
_ABOUT: dict[str, Any] = {"hint": STRING, "subject": STRING, "topic": STRING, "grade": STRING}
_PROBLEMS: dict[Split, tuple[str, ...]] = {
    "train": ("problems.json",),
    "validation": ("problems.json",),
    "test": ("problems.json",),
}

SCIENCEQA = Published(
    name="scienceqa",
    repo="derek-thomas/ScienceQA",
    url="https://scienceqa.github.io",
    license="CC-BY-NC-SA-4.0",
    size="0.6 GB",
    layouts=(
        Layout(
            files={
                "train": ("data/train-*.parquet",),
                "validation": ("data/validation-*.parquet",),
                "test": ("data/test-*.parquet",),
            },
            schema=Schema(required={**_SCIENCE, "image": PICTURE}, optional=_ABOUT),
            convert=_scienceqa_table,
        ),
        Layout(
            files=_PROBLEMS,
            schema=Schema(
                required={KEY: STRING, **_SCIENCE, "split": STRING},
                optional={"image": STRING, **_ABOUT},
            ),
            convert=_scienceqa_official,
            keys=("split",),
            choose=_scienceqa_choose,
            hub=False,
        ),
    ),
)
