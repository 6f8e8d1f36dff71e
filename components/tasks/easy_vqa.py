"""easy-VQA on its published test split: 9,673 questions about 1,000 pictures; tags "open" and "yes_no"."""

from __future__ import annotations

from collections.abc import Iterator

from components.datasets.config import EasyVQA
from components.datasets.easy_vqa import build as build_dataset
from components.tasks.answers import AnswerTask, conversations
from components.tasks.config import EasyVQATask


def build(config: EasyVQATask) -> AnswerTask:
    """One document per question. Raises UnavailableError when the package cannot be had."""
    dataset, train = (build_dataset(EasyVQA(questions_per_sample=1), split=split) for split in (config.split, "train"))

    def train_answers() -> Iterator[tuple[str, str]]:
        return ((sample.messages[-2].text, sample.messages[-1].text) for sample in conversations(train))

    return AnswerTask("easy_vqa", "1", dataset, train_answers, config.max_new_tokens)
