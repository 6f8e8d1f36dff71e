"""Problems with known answers, as text: GSM8K, MATH, the auxiliary training set of MMLU, and ARC.

What can be checked is in ``metadata["answer"]``: the number behind ``####``, the contents of the last ``\\boxed{}``, or
the letter of the right choice.

- ``gsm8k``: openai/gsm8k (MIT, Cobbe et al. 2021). Published splits: train and test.
- ``math``: EleutherAI/hendrycks_math (MIT, Hendrycks et al. 2021), a folder per subject. Published: train and test.
- ``mmlu_aux``: cais/mmlu (MIT, Hendrycks et al. 2021; the questions come from ARC, OpenBookQA, MCTest and RACE, which
  have terms of their own). Training rows are ``auxiliary_train``, in the columns of the configuration "all" or, as in
  the configuration of that name, within a struct called ``train``. Validation and test are those of the benchmark.
- ``arc``: allenai/ai2_arc (CC BY-SA 4.0, Clark et al. 2018). Three splits are published. Choices are labelled A to E,
  some 1 to 5; here they are letters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from components.datasets.published import Layout, Published, Source, words
from components.datasets.published_choices import lettered
from components.datasets.tables import INT, STRING, Row, Schema, list_of, struct_of
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Conversation, assistant, user

_ANNOTATION = re.compile(r"<<[^<>]*>>")
_FINAL = re.compile(r"####\s*(\S[^\n]*?)\s*$")


def _choice(source: Source, question: str, choices: Sequence[str | None], right: int, **more: str) -> Conversation:
    """A question as the sets with pictures ask it (:func:`components.datasets.published_choices.lettered`)."""
    lines, letter = lettered(choices, right)
    question = words(question, "question")
    metadata = {"kind": "choice", "question": question, "choices": list(choices), "right": right, "answer": letter}
    return Conversation(
        (user(f"{question}\n{lines}{source.options.suffix}"), assistant(letter)), metadata=metadata | more
    )


def _gsm8k(row: Row, source: Source) -> Conversation:
    solution = words(row["answer"], "answer")
    final = _FINAL.search(solution)
    if final is None:
        raise DataError("the solution does not end with #### and a number")
    if source.options.annotations == "text":
        solution = _ANNOTATION.sub("", solution)
    return Conversation(
        (user(words(row["question"], "question")), assistant(solution)),
        metadata={"kind": "number", "answer": final[1].replace(",", "")},
    )


def _math(row: Row, source: Source) -> Conversation:
    solution = words(row["solution"], "solution")
    known = {"kind": "expression", "level": row["level"], "subject": row["type"]}
    final = boxed(solution)
    if final is not None:
        known["answer"] = final
    return Conversation((user(words(row["problem"], "problem")), assistant(solution)), metadata=known)


def boxed(text: str) -> str | None:
    """What the last ``\\boxed{…}`` or ``\\fbox{…}`` holds, its own braces included; None where there is none."""
    starts = [found.end() for found in re.finditer(r"\\f?box(?:ed)?\s*\{", text)]
    if not starts:
        return None
    depth = 1
    for place in range(starts[-1], len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0) if text[place - 1] != "\\" else 0
        if depth == 0:
            return text[starts[-1] : place].strip()
    return None


def _mmlu(row: Row, source: Source) -> Conversation:
    row = row.get("train") or row
    known = {"subject": row["subject"]} if row.get("subject") else {}
    if row.get("answer") is None:
        raise DataError("no answer")
    return _choice(source, row["question"], row["choices"] or (), row["answer"], **known)


def _arc(row: Row, source: Source) -> Conversation:
    choices = row["choices"] or {}
    labels, texts = choices.get("label") or [], choices.get("text") or []
    if len(labels) != len(texts):
        raise DataError(f"{len(labels)} labels for {len(texts)} choices")
    if row["answerKey"] not in labels:
        raise DataError(f"the answer {row['answerKey']!r} is none of {', '.join(labels)}")
    return _choice(source, row["question"], texts, labels.index(row["answerKey"]), question_id=row["id"])


_WORD_PROBLEM = Schema(required={"question": STRING, "answer": STRING})

GSM8K = Published(
    name="gsm8k",
    license="MIT",
    size="5 MB",
    repo="openai/gsm8k",
    url="https://github.com/openai/grade-school-math",
    layouts=(
        Layout(
            files={"train": ["{subset}/train-*.parquet"], "test": ["{subset}/test-*.parquet"]},
            schema=_WORD_PROBLEM,
            convert=_gsm8k,
        ),
        Layout(files={"train": ["**/train.jsonl"], "test": ["**/test.jsonl"]}, schema=_WORD_PROBLEM, convert=_gsm8k),
    ),
)

MATH = Published(
    name="math",
    license="MIT",
    size="6 MB",
    repo="EleutherAI/hendrycks_math",
    layouts=(
        Layout(
            files={"train": ["{subset}/train-*.parquet"], "test": ["{subset}/test-*.parquet"]},
            schema=Schema(required={"problem": STRING, "level": STRING, "type": STRING, "solution": STRING}),
            convert=_math,
        ),
    ),
)

_QUESTION = {"question": STRING, "subject": STRING, "choices": list_of(STRING), "answer": INT}

MMLU_AUX = Published(
    name="mmlu_aux",
    license="MIT; its sources their own",
    size="50 MB",
    repo="cais/mmlu",
    layouts=(
        Layout(
            files={
                "train": ["all/auxiliary_train-*.parquet"],
                "validation": ["all/validation-*.parquet"],
                "test": ["all/test-*.parquet"],
            },
            schema=Schema(required=_QUESTION),
            convert=_mmlu,
        ),
        Layout(
            files={"train": ["auxiliary_train/train-*.parquet"]},
            schema=Schema(required={"train": struct_of(**_QUESTION)}),
            convert=_mmlu,
        ),
    ),
)

ARC = Published(
    name="arc",
    license="CC-BY-SA-4.0",
    size="2 MB",
    repo="allenai/ai2_arc",
    layouts=(
        Layout(
            files={split: ["{subset}/" + f"{split}-*.parquet"] for split in ("train", "validation", "test")},
            schema=Schema(
                required={
                    "id": STRING,
                    "question": STRING,
                    "choices": struct_of(text=list_of(STRING), label=list_of(STRING)),
                    "answerKey": STRING,
                }
            ),
            convert=_arc,
        ),
    ),
)
