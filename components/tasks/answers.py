"""Tasks whose answer is free text and right when it matches after normalisation: easy-VQA and scenes.

Questions come from the data set of the same name, so that a prompt here has exactly the form that training
showed. Source of the comparison: :func:`components.metrics.normalize_answer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from components.metrics import exact_match
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Conversation, EvalDoc, Generation

if TYPE_CHECKING:
    from ghostvis_plugins.protocols import Dataset

Pairs = Callable[[], Iterable[tuple[str, str]]]


class AnswerTask:
    """Every conversation of a data set as one question: what precedes its last message, and that as the target.

    ``train_answers`` gives question and answer of every training sample: what a model could have learned without
    looking. The controls of an evaluation are counted from it.
    """

    metric = "exact_match"

    def __init__(self, name: str, version: str, dataset: Dataset, train_answers: Pairs, max_new_tokens: int) -> None:
        self.name = name
        self.version = version
        self.generation = Generation(max_new_tokens=max_new_tokens)
        self.train_answers = train_answers
        self._dataset = dataset

    def docs(self) -> Sequence[EvalDoc]:
        return [_doc(conversation) for conversation in conversations(self._dataset)]

    def score(self, doc: EvalDoc, answer: str) -> Mapping[str, float]:
        return {self.metric: exact_match(answer, doc.target)}


def _doc(sample: Conversation) -> EvalDoc:
    tags = [str(sample.metadata["kind"])]
    if "objects" in sample.metadata:
        tags.append(f"{sample.metadata['objects']} objects".replace("_", "-"))
    return EvalDoc(
        id=sample.id,
        prompt=Conversation(sample.messages[:-1], id=sample.id),
        target=sample.messages[-1].text,
        cluster=str(sample.metadata.get("image", sample.id)),
        tags=tuple(tags),
    )


def conversations(dataset: Dataset) -> Iterator[Conversation]:
    """The samples of ``dataset`` in order. Raises DataError for one that does not end with an answer to a question."""
    for index in range(len(dataset)):
        sample = dataset[index]
        if not isinstance(sample, Conversation) or [m.role for m in sample.messages[-2:]] != ["user", "assistant"]:
            raise DataError(f"sample '{sample.id}' does not end with a question and its answer")
        yield sample
