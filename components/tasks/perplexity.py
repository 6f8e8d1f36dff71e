"""How likely a model finds what people answered in held-out dialogues.

The dialogues are the held-out splits of ``chitchat`` and, on request, ``chatterbot``, in the chat format of the model's
own tokenizer. Counted is what the assistant's side says, with the token that ends each of its turns. The headline
figure is the perplexity, exp of the mean negative log-likelihood per token; beside it are bits per byte of the
answers' UTF-8, which do not depend on how a tokenizer cuts them, so models with different ones compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from components.datasets.config import Chatterbot, Chitchat
from components.tasks.answers import conversations
from components.tasks.config import ChatPerplexityTask
from ghostvis_plugins.types import Conversation, EvalDoc


class PerplexityTask:
    """Every conversation as one document (:class:`ghostvis_plugins.protocols.LikelihoodTask`).

    A document's tag is the set, and its cluster the dialogue that it is a part of.
    """

    metric = "perplexity"
    measures: Literal["likelihood"] = "likelihood"

    def __init__(self, name: str, version: str, samples: Sequence[Conversation]) -> None:
        self.name, self.version = name, version
        self._samples = samples

    def docs(self) -> Sequence[EvalDoc]:
        return [_doc(sample) for sample in self._samples]


def _doc(sample: Conversation) -> EvalDoc:
    name = sample.id.partition("/")[0]
    # A long dialogue of chitchat is several samples, DIALOGUE/0, DIALOGUE/1, …: they rise and fall together.
    cluster = sample.id.rpartition("/")[0] if name == "chitchat" else sample.id
    return EvalDoc(id=sample.id, prompt=sample, target=None, cluster=cluster, tags=(name,))


def build(config: ChatPerplexityTask) -> PerplexityTask:
    """One document per dialogue, or part of one. Raises UnavailableError when a package cannot be had."""
    from components.datasets import chatterbot, chitchat

    samples: list[Conversation] = []
    for name in dict.fromkeys(config.sets):
        if name == "chitchat":
            dataset = chitchat.build(Chitchat(form="conversations", max_turns=config.max_turns), split=config.split)
        else:
            dataset = chatterbot.build(Chatterbot(form="conversations"), split=config.split)
        samples += conversations(dataset)
    return PerplexityTask("chat_perplexity", "1", samples)
