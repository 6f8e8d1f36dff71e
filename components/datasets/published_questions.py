"""Questions about pictures that others publish, with a short answer: VQAv2, OK-VQA, A-OKVQA, GQA, TextVQA, ST-VQA,
DocVQA and ChartQA.

Where several people answered, the most frequent answer is learnt (the first of them in the publisher's order where
several are as frequent) and all are kept in ``metadata["answers"]``, which an official metric needs. The option
``suffix`` follows each question and is the one that evaluations of these sets use: a small model loses 5 to 20
points where training and evaluation ask differently. ``metadata``: ``kind`` "question", ``answers``, ``question_id``,
``question`` without the suffix, ``image``, and what else the publisher says about the question.

Test answers of VQAv2, A-OKVQA, TextVQA, ST-VQA and DocVQA are kept by their evaluation servers: these sets have no test
split here, and the field compares on validation. OK-VQA and COCO-based sets have none at all.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from components.datasets.published import ITEM, Convert, Layout, Published, Source, embedded, words
from components.datasets.published_choices import lettered
from components.datasets.tables import BOOL, INT, KEY, NOT_READ, PICTURE, STRING, Row, Schema, Table, list_of, struct_of
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Conversation, Image, assistant, user

ANSWER = list_of(struct_of(answer=STRING))
COCO_2014 = "https://cocodataset.org/#download (folders train2014 and val2014, 19 GB)"
COCO_2017 = "https://cocodataset.org/#download (folders train2017 and val2017, 19 GB)"


def most_frequent(answers: Iterable[str | None]) -> str:
    """The answer that most people gave, the first of them in a tie. Raises DataError where nobody said anything."""
    counts = Counter(text.strip() for text in answers if text is not None and text.strip())
    if not counts:
        raise DataError("empty answer")
    return counts.most_common(1)[0][0]  # equal counts stay in the order of the first occurrence


def asked(
    source: Source, picture: Image, question: str | None, answers: Sequence[str | None], image: object = "", **more: Any
) -> Conversation:
    """The conversation of one question."""
    text = words(question, "question")
    given = [answer for answer in answers if answer is not None]
    metadata = {"kind": "question", "question": text, "answers": given, "image": str(image), **more}
    return Conversation(
        (user(picture, text + source.options.suffix), assistant(most_frequent(answers))), metadata=metadata
    )


# VQAv2 and OK-VQA: questions and annotations in two files, joined by the question's number


def _vqa_table(row: Row, source: Source) -> Conversation:
    answers = [given.get("answer") if isinstance(given, dict) else given for given in row["answers"] or ()]
    return asked(
        source,
        embedded(row["image"]),
        row["question"],
        answers,
        row.get("image_id") or "",
        question_id=row["question_id"],
        question_type=row["question_type"] or "",
        answer_type=row["answer_type"] or "",
    )


class _Joined:
    """The questions that belong to annotations: found by number, read when they are asked for."""

    def __init__(self, table: Table) -> None:
        self._table = table
        found = (number if isinstance(number, int) else -1 for number in table.column("question_id"))
        numbers = np.fromiter(found, dtype=np.int64, count=len(table))
        self._order = np.argsort(numbers, kind="stable")
        self._sorted = numbers[self._order]

    def __getitem__(self, number: int) -> str:
        place = int(np.searchsorted(self._sorted, number))
        if place == len(self._sorted) or self._sorted[place] != number:
            raise DataError(f"question {number} has an annotation, and no question file has it")
        question: str = self._table.row(int(self._order[place]))["question"]
        return question


def _questions(name: str) -> Callable[[Source, Table], _Joined]:
    """Reads the question file beside the annotations; ``{}`` in its name is the subset of COCO."""

    def prepare(source: Source, table: Table) -> _Joined:
        subset = _subset(source)
        file = name.format(subset)
        for folder in dict.fromkeys((source.files[0].parent, source.folder, source.folder / "Questions")):
            if (folder / file).is_file():
                schema = Schema(required={"question_id": INT, "question": STRING})
                return _Joined(Table([folder / file], schema, at="questions", keys=("question_id",)))
        raise DataError(
            f"{source.files[0]}: its questions, {file}, are not beside it",
            hint=f"Questions and annotations of {source.name} are two downloads; put both into one folder.",
        )

    return prepare


def _subset(source: Source) -> str:
    return {"train": "train2014", "validation": "val2014"}[source.split]


def _vqa_official(row: Row, source: Source) -> Conversation:
    subset = _subset(source)
    file = f"COCO_{subset}_{row['image_id']:012d}.jpg"
    return asked(
        source,
        source.picture(file, subset, f"images/{subset}", f"coco/{subset}", f"Images/mscoco/{subset}"),
        source.extra[row["question_id"]],
        [(given or {}).get("answer") for given in row["answers"]],
        row["image_id"],
        question_id=row["question_id"],
        question_type=row["question_type"] or "",
        answer_type=row["answer_type"] or "",
    )


def _annotations(prefix: str) -> Layout:
    """The layout of the VQA challenge, which OK-VQA shares."""
    return Layout(
        files={
            "train": (f"Annotations/{prefix}mscoco_train2014_annotations.json",),
            "validation": (f"Annotations/{prefix}mscoco_val2014_annotations.json",),
        },
        at="annotations",
        schema=Schema(
            required={"question_id": INT, "image_id": INT, "answers": ANSWER},
            optional={"question_type": STRING, "answer_type": STRING},
        ),
        convert=_vqa_official,
        prepare=_questions(f"{prefix}OpenEnded_mscoco_{{}}_questions.json"),
        pictures=COCO_2014,
        hub=False,
    )


VQAV2 = Published(
    name="vqav2",
    repo="lmms-lab/VQAv2",
    url="https://visualqa.org/download.html (training questions are there only)",
    license="CC-BY-4.0",
    size="0.1 GB of questions and annotations, 19 GB of pictures",
    hidden="the answers are kept by the evaluation server",
    layouts=(
        Layout(
            files={"validation": ("data/validation-*.parquet",)},
            schema=Schema(
                required={"question_id": INT, "question": STRING, "answers": ANSWER, "image": PICTURE},
                optional={"image_id": INT, "question_type": STRING, "answer_type": STRING},
            ),
            convert=_vqa_table,
        ),
        _annotations("v2_"),
    ),
)

OKVQA = Published(
    name="okvqa",
    repo="lmms-lab/OK-VQA",
    url="https://okvqa.allenai.org/download.html (training questions are there only)",
    license="none stated",
    size="10 MB of questions and annotations, 19 GB of pictures",
    hidden="the set has a training and a validation split only",
    layouts=(
        Layout(
            files={"validation": ("data/val2014-*.parquet",)},
            schema=Schema(
                required={"question_id": STRING, "question": STRING, "answers": list_of(STRING), "image": PICTURE},
                optional={"question_type": STRING, "answer_type": STRING},
            ),
            convert=_vqa_table,
        ),
        _annotations(""),
    ),
)


# A-OKVQA


CHOICE_SUFFIX = "\nAnswer with the option's letter from the given choices directly."
SHORT_SUFFIX = "\nAnswer the question using a single word or phrase."


def _aokvqa(row: Row, source: Source, picture: Image, answers: Sequence[str], image: object) -> Conversation:
    form = source.options.form
    question = words(row["question"], "question")
    right = row["correct_choice_idx"]
    suffix = source.options.suffix
    if form == "choices":
        lines, answer = lettered(row["choices"] or (), right)
        text = f"{question}\n{lines}" + (CHOICE_SUFFIX if suffix is None else suffix)
    else:
        text, answer = question + (SHORT_SUFFIX if suffix is None else suffix), most_frequent(answers)
    metadata = {
        "kind": "question",
        "question": question,
        "answers": list(answers),
        "choices": list(row["choices"] or ()),
        "right": right,
        "rationales": list(row["rationales"] or ()),
        "difficult_direct_answer": bool(row["difficult_direct_answer"]),
        "question_id": row["question_id"],
        "image": str(image),
    }
    return Conversation((user(picture, text), assistant(answer)), metadata=metadata)


def _aokvqa_table(row: Row, source: Source) -> Conversation:
    try:
        answers = ast.literal_eval(row["direct_answers"] or "[]")  # the hub's copy has them as Python's text of a list
        answers = [answer for answer in answers if isinstance(answer, str)]
    except (ValueError, SyntaxError, TypeError) as error:
        raise DataError(f"direct_answers is not a list: {row['direct_answers']!r}") from error
    return _aokvqa(row, source, embedded(row["image"]), answers, "")


def _aokvqa_official(row: Row, source: Source) -> Conversation:
    subset = {"train": "train2017", "validation": "val2017"}[source.split]
    picture = source.picture(f"{row['image_id']:012d}.jpg", subset, f"images/{subset}", f"coco/{subset}")
    return _aokvqa(row, source, picture, row["direct_answers"], row["image_id"])


_AOKVQA = {"question_id": STRING, "question": STRING, "choices": list_of(STRING), "correct_choice_idx": INT}

AOKVQA = Published(
    name="aokvqa",
    repo="HuggingFaceM4/A-OKVQA",
    url="https://aokvqa.allenai.org/download.html",
    license="none stated",
    size="1.3 GB with pictures",
    hidden="the answers are kept by the evaluation server",
    layouts=(
        Layout(
            files={"train": ("data/train-*.parquet",), "validation": ("data/validation-*.parquet",)},
            schema=Schema(
                required={**_AOKVQA, "direct_answers": STRING, "image": PICTURE},
                optional={"difficult_direct_answer": BOOL, "rationales": list_of(STRING)},
            ),
            convert=_aokvqa_table,
        ),
        Layout(
            files={"train": ("aokvqa_v1p0_train.json",), "validation": ("aokvqa_v1p0_val.json",)},
            schema=Schema(
                required={**_AOKVQA, "direct_answers": list_of(STRING), "image_id": INT},
                optional={"difficult_direct_answer": BOOL, "rationales": list_of(STRING)},
            ),
            convert=_aokvqa_official,
            pictures=COCO_2017,
            hub=False,
        ),
    ),
)


# GQA: questions in one table, pictures in another


def _gqa(row: Row, source: Source, picture: Image, number: str) -> Conversation:
    return asked(
        source,
        picture,
        row["question"],
        [row["answer"]],
        row["imageId"],
        question_id=number,
        full_answer=row["fullAnswer"] or "",
    )


def _gqa_table(row: Row, source: Source) -> Conversation:
    return _gqa(row, source, source.extra(source, row["imageId"]), row["id"])


def _gqa_pictures(source: Source, table: Table) -> Callable[[Source, str], Image]:
    instructions = source.files[0].parent
    folder = instructions.parent / instructions.name.replace("_instructions", "_images")
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise DataError(
            f"{folder}: the pictures of {instructions.name} are not there",
            hint="Questions and pictures of GQA are two folders of the repository; fetch both.",
        )
    pictures = Table(files, Schema(required={"id": STRING, "image": PICTURE}))
    places = {number: row for row, number in enumerate(pictures.column("id"))}

    def picture(source: Source, number: str) -> Image:
        if number not in places:
            raise DataError(f"the picture {number} is not in {folder}")
        return embedded(pictures.row(places[number], ("image",))["image"]) if source.reads else NOT_READ

    return picture


def _gqa_official(row: Row, source: Source) -> Conversation:
    return _gqa(row, source, source.picture(f"{row['imageId']}.jpg", "images", "gqa/images"), row[KEY])


GQA = Published(
    name="gqa",
    repo="lmms-lab/GQA",
    url="https://cs.stanford.edu/people/dorarad/gqa/download.html",
    license="none stated; pictures: CC-BY-4.0",
    size="0.2 GB of questions, 11 GB of pictures",
    layouts=(
        Layout(
            files={
                "train": ("train_balanced_instructions/train-*.parquet",),
                "validation": ("val_balanced_instructions/val-*.parquet",),
                "test": ("testdev_balanced_instructions/testdev-*.parquet",),
            },
            beside={
                "train": ("train_balanced_images/train-*.parquet",),
                "validation": ("val_balanced_images/val-*.parquet",),
                "test": ("testdev_balanced_images/testdev-*.parquet",),
            },
            schema=Schema(
                required={"id": STRING, "imageId": STRING, "question": STRING, "answer": STRING},
                optional={"fullAnswer": STRING},
            ),
            convert=_gqa_table,
            prepare=_gqa_pictures,
        ),
        Layout(
            files={
                "train": ("questions1.2/train_balanced_questions.json",),
                "validation": ("questions1.2/val_balanced_questions.json",),
                "test": ("questions1.2/testdev_balanced_questions.json",),
            },
            schema=Schema(
                required={KEY: STRING, "imageId": STRING, "question": STRING, "answer": STRING},
                optional={"fullAnswer": STRING},
            ),
            convert=_gqa_official,
            pictures="https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip (20 GB)",
            hub=False,
        ),
    ),
)


# TextVQA, ST-VQA, DocVQA: text in pictures


def _from(**columns: str) -> Convert:
    """A conversion of tables with question, answers and an embedded picture; ``columns`` go into the metadata."""

    def convert(row: Row, source: Source) -> Conversation:
        more = {name: row[column] for name, column in columns.items()}
        image = more.pop("image", "") or ""
        return asked(source, embedded(row["image"]), row["question"], row["answers"] or (), image, **more)

    return convert


def _textvqa_official(row: Row, source: Source) -> Conversation:
    picture = source.picture(f"{row['image_id']}.jpg", "train_images", "textvqa/train_images")
    number = row["question_id"]
    return asked(source, picture, row["question"], row["answers"], row["image_id"], question_id=number)


TEXTVQA = Published(
    name="textvqa",
    repo="lmms-lab/textvqa",
    url="https://textvqa.org/dataset/",
    license="CC-BY-4.0",
    size="8.1 GB",
    hidden="the answers are kept by the evaluation server",
    layouts=(
        Layout(
            files={"train": ("data/train-*.parquet",), "validation": ("data/validation-*.parquet",)},
            schema=Schema(
                required={"question_id": INT, "question": STRING, "answers": list_of(STRING), "image": PICTURE},
                optional={"image_id": STRING, "ocr_tokens": list_of(STRING)},
            ),
            convert=_from(image="image_id", question_id="question_id", ocr_tokens="ocr_tokens"),
        ),
        Layout(
            files={"train": ("TextVQA_0.5.1_train.json",), "validation": ("TextVQA_0.5.1_val.json",)},
            at="data",
            schema=Schema(
                required={"question_id": INT, "question": STRING, "image_id": STRING, "answers": list_of(STRING)}
            ),
            convert=_textvqa_official,
            pictures="https://textvqa.org/dataset/ (folder train_images, 6.6 GB, for training and validation)",
            hub=False,
        ),
    ),
)


def _stvqa_table(row: Row, source: Source) -> Conversation:
    pair = row["qas"][row[ITEM]] or {}
    return asked(source, embedded(row["image"]), pair.get("question"), pair.get("answers") or ())


def _stvqa_official(row: Row, source: Source) -> Conversation:
    picture = source.picture(row["file_path"], "train", "train_imgs", "images")
    number = row["question_id"]
    return asked(source, picture, row["question"], row["answers"], row["file_path"], question_id=number)


STVQA = Published(
    name="stvqa",
    repo="vikhyatk/st-vqa",
    url="https://rrc.cvc.uab.es/?ch=11 (after registration)",
    license="none stated",
    size="3 GB",
    hidden="the answers are kept by the evaluation server",
    validation=0.05,
    layouts=(
        Layout(
            files={"train": ("data/train-*.parquet",)},
            schema=Schema(
                required={"image": PICTURE, "qas": list_of(struct_of(question=STRING, answers=list_of(STRING)))}
            ),
            convert=_stvqa_table,
            repeat="qas",
        ),
        Layout(
            files={"train": ("train_task_3.json",)},
            at="data",
            schema=Schema(
                required={"file_path": STRING, "question": STRING, "answers": list_of(STRING)},
                optional={"question_id": INT},
            ),
            convert=_stvqa_official,
            group="file_path",
            pictures="https://rrc.cvc.uab.es/?ch=11 (the pictures of Task 3)",
            hub=False,
        ),
    ),
)


def _docvqa_official(row: Row, source: Source) -> Conversation:
    picture = source.picture(row["image"], {"train": "train", "validation": "val"}[source.split], "spdocvqa_images")
    return asked(
        source,
        picture,
        row["question"],
        row["answers"],
        row["image"],
        question_id=row["questionId"],
        question_types=row["question_types"] or (),
    )


def _docvqa_layout(ending: str) -> Layout:
    """The files of the first release, and of the second, which says the types of the questions."""
    return Layout(
        files={"train": (f"train_v1.0{ending}.json",), "validation": (f"val_v1.0{ending}.json",)},
        at="data",
        schema=Schema(
            required={"questionId": INT, "question": STRING, "answers": list_of(STRING), "image": STRING},
            optional={"question_types": list_of(STRING)},
        ),
        convert=_docvqa_official,
        pictures="https://rrc.cvc.uab.es/?ch=17 (Task 1, the folder documents or spdocvqa_images)",
        hub=False,
    )


DOCVQA = Published(
    name="docvqa",
    repo="lmms-lab/DocVQA",
    url="https://rrc.cvc.uab.es/?ch=17 (after registration)",
    license="none stated",
    size="9.6 GB",
    hidden="the answers are kept by the evaluation server",
    layouts=(
        Layout(
            files={"train": ("DocVQA/train-*.parquet",), "validation": ("DocVQA/validation-*.parquet",)},
            schema=Schema(
                required={"questionId": STRING, "question": STRING, "answers": list_of(STRING), "image": PICTURE},
                optional={"docId": INT, "question_types": list_of(STRING)},
            ),
            convert=_from(image="docId", question_id="questionId", question_types="question_types"),
        ),
        _docvqa_layout("_withQT"),
        _docvqa_layout(""),
    ),
)


# ChartQA


def _chartqa_table(row: Row, source: Source) -> Conversation:
    origin = {0: "human", 1: "augmented"}.get(row["human_or_machine"], "")
    return asked(source, embedded(row["image"]), row["query"], row["label"] or (), origin=origin)


def _chartqa_official(row: Row, source: Source) -> Conversation:
    folder = {"train": "train", "validation": "val", "test": "test"}[source.split]
    picture = source.picture(row["imgname"], f"{folder}/png", "png")
    return asked(source, picture, row["query"], [row["label"]], row["imgname"])


CHARTQA = Published(
    name="chartqa",
    repo="HuggingFaceM4/ChartQA",
    url="https://github.com/vis-nlp/ChartQA",
    license="GPL-3.0",
    size="1 GB",
    layouts=(
        Layout(
            files={
                "train": ("data/train-*.parquet",),
                "validation": ("data/val-*.parquet",),
                "test": ("data/test-*.parquet",),
            },
            schema=Schema(
                required={"query": STRING, "label": list_of(STRING), "image": PICTURE},
                optional={"human_or_machine": INT},
            ),
            convert=_chartqa_table,
        ),
        Layout(
            files={
                "train": ("train/train_human.json", "train/train_augmented.json"),
                "validation": ("val/val_human.json", "val/val_augmented.json"),
                "test": ("test/test_human.json", "test/test_augmented.json"),
            },
            schema=Schema(required={"imgname": STRING, "query": STRING, "label": STRING}),
            convert=_chartqa_official,
            hub=False,
        ),
    ),
)
