"""A sample becomes ids, a loss mask and image spans: one function for training, evaluation, RL, chat and serving.

ChatML, built segment by segment: control tokens by number, everything else through a tokenizer that
cannot produce one. A picture is ``tokens_per_image`` placeholder ids, which the model replaces by the
picture's vectors. Only what the assistant says is learnt, with the ``<|im_end|>`` that ends it::

    <|im_start|>user⏎<|image|>…<|image|>What is this?<|im_end|>⏎<|im_start|>assistant⏎A cat.<|im_end|>⏎
                                                                                    ^^^^^^^^^^^^^^^^

A tool's answer is a turn of role ``tool`` around ``<tool_response>``; a call by the assistant is
``<tool_call>`` around ``{"name": …, "arguments": …}`` and is learnt like its text.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace

from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Conversation, Document, Image, Message, Sample, Text, ToolCall, ToolResult

from .tokenizers import TOOL_CALL, TOOL_CALL_END, TOOL_RESPONSE, TOOL_RESPONSE_END, Tokenizer

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Rendered:
    """One sample as ids. ``loss_mask[t]`` says that token ``t`` is a target, predicted from those before it."""

    ids: list[int]
    loss_mask: list[bool]
    image_spans: list[tuple[int, int]]  # (start, length) of each picture's placeholders, in reading order
    images: tuple[Image, ...]
    id: str
    is_document: bool = False
    inputs: list[int] | None = None  # what the model reads where that is not ``ids``, which stay the targets

    @property
    def targets(self) -> int:
        """Number of tokens that are learnt."""
        return sum(self.loss_mask)

    def crop(self, length: int) -> Rendered:
        """The first ``length`` tokens. Raises ValueError where that would cut a picture."""
        if any(start + size > length for start, size in self.image_spans):
            raise ValueError(f"cropping {self.id!r} to {length} tokens would cut a picture")
        return replace(self, ids=self.ids[:length], loss_mask=self.loss_mask[:length])

    def drop_words(self, share: float, tokenizer: Tokenizer, generator: random.Random) -> Rendered:
        """A ``share`` of the answers' tokens is read as random ones, wherever another word of the answer follows.

        Word dropout (Bowman et al. 2016): a decoder that cannot rely on its own last words learns to look. The last
        word of an answer stays, and with it every answer of one word: nothing in the answer is guessed from it.
        """
        inputs = list(self.ids)
        for place, follows in enumerate(self.loss_mask[1:]):
            within = follows and self.loss_mask[place] and self.ids[place + 1] not in tokenizer.control_ids
            if within and generator.random() < share and inputs[place] not in tokenizer.control_ids:
                inputs[place] = generator.choice(tokenizer.plain_ids)
        return replace(self, inputs=inputs)


def render(sample: Sample, tokenizer: Tokenizer, tokens_per_image: int) -> Rendered:
    """Ids, mask and spans of a sample for training.

    A document is ``<|endoftext|>`` text ``<|endoftext|>``, and everything but the first token is a target.

    Raises DataError, naming the sample, for a picture where the model takes none (``tokens_per_image`` 0),
    for an unknown role and for a conversation without messages.
    """
    if isinstance(sample, Document):
        text = tokenizer.encode(sample.text)
        ids = [tokenizer.eos, *text, tokenizer.eos]
        return Rendered(ids, [False] + [True] * (len(ids) - 1), [], (), sample.id, is_document=True)
    return _Builder(tokenizer, tokens_per_image, sample.id).conversation(sample).finish()


def render_prompt(conversation: Conversation, tokenizer: Tokenizer, tokens_per_image: int) -> Rendered:
    """The same, followed by the header of the assistant's turn: what generation starts from."""
    builder = _Builder(tokenizer, tokens_per_image, conversation.id).conversation(conversation)
    builder.header("assistant")
    return builder.finish()


class _Builder:
    def __init__(self, tokenizer: Tokenizer, tokens_per_image: int, name: str) -> None:
        self.tokenizer, self.tokens_per_image, self.name = tokenizer, tokens_per_image, name
        self.ids: list[int] = []
        self.mask: list[bool] = []
        self.spans: list[tuple[int, int]] = []
        self.images: list[Image] = []

    def finish(self) -> Rendered:
        return Rendered(self.ids, self.mask, self.spans, tuple(self.images), self.name)

    def conversation(self, conversation: Conversation) -> _Builder:
        if not conversation.messages:
            raise DataError(f"sample {self.name!r}: a conversation without messages")
        for message in conversation.messages:
            self.message(message)
        return self

    def message(self, message: Message) -> None:
        self.header(message.role)
        learnt = message.role == "assistant"
        text = ""  # neighbouring texts are one text: the template would join them, too
        for part in message.parts:
            if type(part) is Text:
                text += part.text
                continue
            self.text(text, learnt)
            text = ""
            if type(part) is Image:
                self.picture(part)
            elif type(part) is ToolCall:
                name = json.dumps(part.name, ensure_ascii=False)
                call = f'\n{{"name": {name}, "arguments": {part.arguments}}}\n'
                self.wrapped(TOOL_CALL, call, TOOL_CALL_END, learnt)
            elif type(part) is ToolResult:
                self.wrapped(TOOL_RESPONSE, f"\n{part.content}\n", TOOL_RESPONSE_END, learnt)
            else:
                raise DataError(f"sample {self.name!r}: {type(part).__name__} is not a message part")
        self.text(text, learnt)
        self.control(self.tokenizer.im_end, learnt)
        self.text("\n", False)

    def header(self, role: str) -> None:
        if role not in ROLES:
            raise DataError(f"sample {self.name!r}: unknown role {role!r}; roles are {', '.join(ROLES)}")
        self.control(self.tokenizer.im_start, False)
        self.text(f"{role}\n", False)

    def wrapped(self, start: str, text: str, end: str, learnt: bool) -> None:
        self.control(self.tokenizer.control[start], learnt)
        self.text(text, learnt)
        self.control(self.tokenizer.control[end], learnt)

    def control(self, token: int, learnt: bool) -> None:
        self.ids.append(token)
        self.mask.append(learnt)

    def text(self, text: str, learnt: bool) -> None:
        if text:
            ids = self.tokenizer.encode_tuple(text)
            self.ids.extend(ids)
            self.mask.extend([learnt] * len(ids))

    def picture(self, image: Image) -> None:
        if self.tokens_per_image <= 0:
            raise DataError(
                f"sample {self.name!r} holds a picture, and the model has no vision path",
                hint="choose an encoder, a resampler and a projector, or data without pictures",
            )
        self.spans.append((len(self.ids), self.tokens_per_image))
        self.images.append(image)
        self.ids.extend([self.tokenizer.image] * self.tokens_per_image)
        self.mask.extend([False] * self.tokens_per_image)
