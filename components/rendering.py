"""A sample becomes ids, a loss mask and image spans: one function for training, evaluation, RL, chat and serving.

Built segment by segment, as the tokenizer's chat format says (:mod:`components.chat_formats`): control tokens by
number, everything else through a tokenizer that cannot produce one. A picture is ``tokens_per_image`` placeholder
ids, which the model replaces by the picture's vectors. Only what the assistant says is learnt, with the token that
ends it. In our own format, ChatML::

    <|im_start|>user⏎<|image|>…<|image|>What is this?<|im_end|>⏎<|im_start|>assistant⏎A cat.<|im_end|>⏎
                                                                                    ^^^^^^^^^^^^^^^^

A tool's answer is a turn of role ``tool`` around ``<tool_response>``; a call by the assistant is
``<tool_call>`` around ``{"name": …, "arguments": …}`` and is learnt like its text.

Texts between two control tokens are tokenised together, as they are in a template's string, save that what is learnt
and what is not never share a token: a prompt is the beginning of the conversation that it leads to.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace

from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Conversation, Document, Image, Part, Sample, Text, ToolCall, ToolResult

from .chat_formats import ROLES
from .tokenizers import Tokenizer

__all__ = ["ROLES", "Rendered", "render", "render_prompt"]


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

    A document is its text between the format's document tokens (ours: ``<|endoftext|>``), and everything but the
    first token is a target.

    Raises DataError, naming the sample, for a picture where the model takes none (``tokens_per_image`` 0),
    for an unknown role, for a conversation without messages and for tool calls that the format cannot say.
    """
    if isinstance(sample, Document):
        text = tokenizer.encode(sample.text)
        ids = [tokenizer.document[0], *text, tokenizer.document[1]]
        return Rendered(ids, [False] + [True] * (len(ids) - 1), [], (), sample.id, is_document=True)
    return _Builder(tokenizer, tokens_per_image, sample.id).conversation(sample).finish()


def render_prompt(conversation: Conversation, tokenizer: Tokenizer, tokens_per_image: int) -> Rendered:
    """The same, followed by the header of the assistant's turn: what generation starts from."""
    builder = _Builder(tokenizer, tokens_per_image, conversation.id).conversation(conversation, open_end=True)
    builder.pieces(tokenizer.headers["assistant"])
    builder.pieces(tokenizer.thought)
    return builder.finish()


class _Builder:
    def __init__(self, tokenizer: Tokenizer, tokens_per_image: int, name: str) -> None:
        self.tokenizer, self.tokens_per_image, self.name = tokenizer, tokens_per_image, name
        self.format = tokenizer.format
        self.ids: list[int] = []
        self.mask: list[bool] = []
        self.spans: list[tuple[int, int]] = []
        self.images: list[Image] = []
        self.waiting = ""  # text that was not tokenised yet: what follows may belong to it
        self.waiting_learnt = False

    def finish(self) -> Rendered:
        self.flush()
        return Rendered(self.ids, self.mask, self.spans, tuple(self.images), self.name)

    def conversation(self, conversation: Conversation, open_end: bool = False) -> _Builder:
        """All turns. With ``open_end`` another one follows, so that the last one here is not the sampled one."""
        messages, chat = conversation.messages, self.format
        if not messages:
            raise DataError(f"sample {self.name!r}: a conversation without messages")
        self.pieces(self.tokenizer.begin)
        if chat.default_system is not None and messages[0].role != "system":
            self.pieces(self.tokenizer.headers["system"])
            self.text(chat.preamble + chat.default_system, False)
            self.end_turn(False)
        last = len(messages) - 1
        thinks = bool(chat.thought) and not open_end and any(message.role == "user" for message in messages)
        for place, message in enumerate(messages):
            learnt = message.role == "assistant"
            shared = chat.results_share_turn and message.role == "tool"
            if shared and place and messages[place - 1].role == "tool":
                self.text("\n", False)
            else:
                self.header(message.role)
            if chat.preamble and place == 0 and message.role == "system":
                self.text(chat.preamble, False)
            thought = learnt and thinks and place == last
            if thought:
                self.pieces(self.tokenizer.thought)
            self.message(_trimmed(message.parts, chat.trims, thought), learnt)
            if not (shared and place < last and messages[place + 1].role == "tool"):
                self.end_turn(learnt)
        return self

    def message(self, parts: tuple[Part, ...], learnt: bool) -> None:
        chat, tokenizer = self.format, self.tokenizer
        if chat.calls_stand_alone and any(type(part) is ToolCall for part in parts) and len(parts) > 1:
            raise DataError(
                f"sample {self.name!r}: a turn of the chat format '{chat.name}' holds one tool call and nothing else"
            )
        said = False
        for part in parts:
            if type(part) is Text:
                self.text(part.text, learnt)
                said = said or bool(part.text)
            elif type(part) is Image:
                self.picture(part)
                said = True
            elif type(part) is ToolCall:
                if said:
                    self.text(chat.call_gap, learnt)
                name = json.dumps(part.name, ensure_ascii=False)
                call = f'{{"name": {name}, "{chat.call_key}": {part.arguments}}}'
                self.wrapped(tokenizer.call_start, call, tokenizer.call_end, learnt)
                said = True
            elif type(part) is ToolResult:
                content = json.dumps(part.content, ensure_ascii=False) if chat.results_are_json else part.content
                self.wrapped(tokenizer.result_start, content, tokenizer.result_end, learnt)
            else:
                raise DataError(f"sample {self.name!r}: {type(part).__name__} is not a message part")

    def header(self, role: str) -> None:
        pieces = self.tokenizer.headers.get(role)
        if pieces is None:
            raise DataError(f"sample {self.name!r}: unknown role {role!r}; roles are {', '.join(ROLES)}")
        self.pieces(pieces)

    def end_turn(self, learnt: bool) -> None:
        self.control(self.tokenizer.im_end, learnt)
        gap = self.tokenizer.turn_gap
        if gap is None:
            self.text(self.format.after_end, False)
        else:  # nothing joins it: a control token or nothing follows
            self.ids += gap
            self.mask += [False] * len(gap)

    def wrapped(self, start: tuple[int | str, ...], text: str, end: tuple[int | str, ...], learnt: bool) -> None:
        self.pieces(start, learnt)
        self.text(text, learnt)
        self.pieces(end, learnt)

    def pieces(self, pieces: tuple[int | str, ...], learnt: bool = False) -> None:
        for piece in pieces:
            if type(piece) is int:
                self.control(piece, learnt)
            else:
                self.text(piece, learnt)  # type: ignore[arg-type]

    def control(self, token: int, learnt: bool) -> None:
        if self.waiting:
            self.flush()
        self.ids.append(token)
        self.mask.append(learnt)

    def text(self, text: str, learnt: bool) -> None:
        if learnt is self.waiting_learnt:
            self.waiting += text
        else:
            self.flush()
            self.waiting, self.waiting_learnt = text, learnt

    def flush(self) -> None:
        if self.waiting:
            ids = self.tokenizer.encode(self.waiting)
            self.ids += ids
            self.mask += [self.waiting_learnt] * len(ids)
            self.waiting = ""

    def picture(self, image: Image) -> None:
        if self.tokens_per_image <= 0:
            raise DataError(
                f"sample {self.name!r} holds a picture, and the model has no vision path",
                hint="choose an encoder, a resampler and a projector, or data without pictures",
            )
        self.flush()
        self.spans.append((len(self.ids), self.tokens_per_image))
        self.images.append(image)
        self.ids.extend([self.tokenizer.image] * self.tokens_per_image)
        self.mask.extend([False] * self.tokens_per_image)


def _trimmed(parts: tuple[Part, ...], trims: bool, after_thought: bool) -> tuple[Part, ...]:
    """The parts of a message without the white space that the format drops at the ends of its text."""
    if not (trims or after_thought):
        return parts
    kept: list[Part] = []
    for part in parts:
        if type(part) is Text and kept and type(kept[-1]) is Text:
            kept[-1] = Text(kept[-1].text + part.text)
        else:
            kept.append(part)
    if kept and type(kept[0]) is Text:
        kept[0] = Text(kept[0].text.lstrip() if trims else kept[0].text.lstrip("\n"))
    if trims and kept and type(kept[-1]) is Text:
        kept[-1] = Text(kept[-1].text.rstrip())
    return tuple(kept)
