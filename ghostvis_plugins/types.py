"""The data that travels between data sets, training, evaluation and chat. Torch-free by contract.

:class:`Conversation` is the one sample type: messages with a role and content parts, the shape of the
OpenAI chat API. A :class:`Document` is plain text for language-model pretraining. Nothing else is ever
passed around, so a data set, a task, the chat and the server all speak the same language.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
Split: TypeAlias = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text. It can never turn into a control token, whatever it contains."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """One picture, as a path or as encoded bytes (PNG, JPEG, WebP, GIF, TIFF, BMP): exactly one of the two."""

    path: str | None = None
    data: bytes | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.data is None):
            raise ValueError("an Image takes exactly one of path= and data=")

    def read(self) -> bytes:
        """The encoded bytes. Raises OSError when the file cannot be read."""
        return self.data if self.data is not None else Path(str(self.path)).read_bytes()

    def digest(self) -> str:
        """sha256 of the encoded bytes, hexadecimal: the picture's identity in every cache."""
        return hashlib.sha256(self.read()).hexdigest()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function call by the assistant; ``arguments`` is a JSON document."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool answered, in a message of role ``tool``."""

    content: str
    id: str = ""


Part: TypeAlias = Text | Image | ToolCall | ToolResult


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks, and the parts in the order they are read."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """All text parts joined, without images and tool parts."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(part for part in self.parts if isinstance(part, Image))


def _message(role: Role, content: Iterable[str | Part]) -> Message:
    return Message(role, tuple(Text(part) if isinstance(part, str) else part for part in content))


def system(*content: str | Part) -> Message:
    """A system message; strings become text parts."""
    return _message("system", content)


def user(*content: str | Part) -> Message:
    """A user message: ``user(Image(path="cat.jpg"), "what is this?")``."""
    return _message("user", content)


def assistant(*content: str | Part) -> Message:
    """An assistant message: the only role that is trained on."""
    return _message("assistant", content)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order. ``id`` names the sample in every error, ledger and log."""

    messages: tuple[Message, ...]
    id: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> tuple[Image, ...]:
        """Every picture of the conversation in reading order."""
        return tuple(image for message in self.messages for image in message.images)


@dataclass(frozen=True, slots=True)
class Document:
    """A text for next-token training: every token counts."""

    text: str
    id: str = ""


Sample: TypeAlias = Conversation | Document


@dataclass(frozen=True, slots=True)
class Length:
    """What a sample costs, known without decoding or tokenising it: UTF-8 bytes of text, and pictures."""

    text_bytes: int
    images: int = 0


def length_of(sample: Sample) -> Length:
    """The :class:`Length` of a sample that is already in memory."""
    if isinstance(sample, Document):
        return Length(len(sample.text.encode()))
    return Length(sum(len(message.text.encode()) for message in sample.messages), len(sample.images))


class SampleList:
    """The simplest data set: samples that are already in memory."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]

    def length(self, index: int) -> Length:
        return length_of(self._samples[index])


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """How an answer is drawn. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 keep every token."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished answer. ``logprobs`` are those of the sampled ``ids`` under the untruncated distribution."""

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Likelihood of one continuation: summed log-probability (nats) and the number of its tokens."""

    logprob: float
    tokens: int

    @property
    def mean_nll(self) -> float:
        """Mean negative log-likelihood per token, in nats."""
        return -self.logprob / max(self.tokens, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled answer in reinforcement learning; ``group`` is shared by the answers to one prompt."""

    prompt: Conversation
    completion: Completion
    group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalDoc:
    """One evaluation question. The last message of ``prompt`` is the user's (in a task of likelihoods, which asks
    nothing, the prompt is the whole conversation).

    ``target`` is what the task scores against (a string, several, or any JSON value);
    ``choices`` makes it a ranking by likelihood instead of a free answer;
    ``cluster`` groups documents that share a picture, for the bootstrap.
    """

    id: str
    prompt: Conversation
    target: Any
    choices: tuple[str, ...] = ()
    cluster: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSource:
    """Where the published weights of a checkpoint come from, and under which licence.

    The config of a component with pretrained weights lists its own in a class variable ``checkpoints``, by the name
    that its option ``checkpoint`` takes. ``hub`` is a repository of the Hugging Face hub, ``package`` one of the
    pinned packages of the cache.
    """

    license: str
    hub: str | None = None
    package: str | None = None

    @property
    def url(self) -> str | None:
        """A page about the weights."""
        return f"https://huggingface.co/{self.hub}" if self.hub else None
