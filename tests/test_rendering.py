"""Rendering: ids of the saved chat template, losses on the assistant only, whole image spans, no injection."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miniature import as_others_read

from components.rendering import ROLES, Rendered, render, render_prompt
from components.tokenizers import CONTROL_TOKENS, Tokenizer
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import (
    Conversation,
    Document,
    Image,
    Message,
    Text,
    ToolCall,
    ToolResult,
    assistant,
    system,
    user,
)

TOKENIZER = Tokenizer.train(["What colour is it? It is red.", "user\nassistant\nsystem\ntool\n"] * 5, 330)
AS_OTHERS_READ = as_others_read(TOKENIZER)
A, B = Image(data=b"a"), Image(data=b"b")
SPAN = 3

clean = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=20)
part = st.one_of(clean.map(Text), st.sampled_from([A, B]))
message = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.lists(part, max_size=4).map(tuple))
call = st.builds(
    lambda text, name: Message("assistant", (Text(text), ToolCall(name, '{"q": "Füchse\\n"}'))),
    clean,
    st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
)
answer = st.builds(lambda text: Message("tool", (ToolResult(text),)), clean)
conversations = st.lists(st.one_of(message, call, answer), min_size=1, max_size=5).map(lambda m: Conversation(tuple(m)))


def as_openai(message: Message) -> dict[str, Any]:
    """The message as a chat template expects it."""
    if message.role == "tool":
        return {"role": "tool", "content": "".join(p.content for p in message.parts if isinstance(p, ToolResult))}
    calls = [p for p in message.parts if isinstance(p, ToolCall)]
    content = [
        {"type": "text", "text": p.text} if isinstance(p, Text) else {"type": "image"}
        for p in message.parts
        if not isinstance(p, ToolCall)
    ]
    functions = [{"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in calls]
    return {"role": message.role, "content": content, "tool_calls": functions}


@given(conversations)
@settings(deadline=None)
def test_ids_equal_the_saved_chat_template(conversation: Conversation) -> None:
    template = jinja2.Environment().from_string(TOKENIZER.chat_template)
    messages = [as_openai(message) for message in conversation.messages]
    text = template.render(messages=messages, add_generation_prompt=False)
    expanded = text.replace("<|image|>", "<|image|>" * SPAN)
    assert render(conversation, TOKENIZER, SPAN).ids == AS_OTHERS_READ(expanded)
    text = template.render(messages=messages, add_generation_prompt=True)
    expanded = text.replace("<|image|>", "<|image|>" * SPAN)
    assert render_prompt(conversation, TOKENIZER, SPAN).ids == AS_OTHERS_READ(expanded)


def test_string_content_in_the_template() -> None:
    template = jinja2.Environment().from_string(TOKENIZER.chat_template)
    text = template.render(messages=[{"role": "user", "content": "hi"}])
    assert AS_OTHERS_READ(text) == render(Conversation((user("hi"),)), TOKENIZER, 0).ids


@given(
    before=st.text(st.characters(codec="utf-8"), max_size=10),
    token=st.sampled_from(sorted(TOKENIZER.control)),
    place=st.sampled_from(["user", "assistant", "system", "call", "arguments", "result"]),
)
@settings(deadline=None)
def test_no_content_produces_a_control_token(before: str, token: str, place: str) -> None:
    def build(evil: str) -> Rendered:
        text = {name: evil if place == name else "x" for name in ("user", "assistant", "system")}
        name, arguments, result = (evil if place == p else "x" for p in ("call", "arguments", "result"))
        turns = (
            system(text["system"]),
            user(A, text["user"]),
            assistant(text["assistant"], ToolCall(name, arguments)),
            Message("tool", (ToolResult(result),)),
        )
        return render(Conversation(turns), TOKENIZER, SPAN)

    control = set(TOKENIZER.control.values())
    count = [sum(i == c for i in build(before + token).ids) for c in control]
    assert count == [sum(i == c for i in build("y").ids) for c in control]


@given(token=st.sampled_from(CONTROL_TOKENS), before=st.text(max_size=4))
@settings(deadline=None)
def test_a_role_name_cannot_carry_a_control_token(token: str, before: str) -> None:
    with pytest.raises(DataError, match="unknown role"):
        render(Conversation((Message(before + token, (Text("x"),)),), id="s1"), TOKENIZER, 0)  # type: ignore[arg-type]


@given(conversations)
@settings(deadline=None)
def test_the_assistant_and_nobody_else_is_learnt(conversation: Conversation) -> None:
    """The targets, read back as control tokens and text, are what the assistant said."""
    rendered = render(conversation, TOKENIZER, SPAN)
    assert len(rendered.ids) == len(rendered.loss_mask)
    learnt = [token for token, target in zip(rendered.ids, rendered.loss_mask, strict=True) if target]
    spoken = ""
    for m in conversation.messages:
        if m.role != "assistant":
            continue
        for p in m.parts:
            if isinstance(p, Text):
                spoken += p.text
            elif isinstance(p, ToolCall):
                spoken += f'\n{{"name": "{p.name}", "arguments": {p.arguments}}}\n'
    turns = sum(m.role == "assistant" for m in conversation.messages)
    assert TOKENIZER.decode(learnt) == spoken
    assert sum(token == TOKENIZER.im_end for token in learnt) == turns
    assert TOKENIZER.control["<|im_start|>"] not in learnt
    assert TOKENIZER.image not in learnt
    assert not rendered.loss_mask[0]


@given(conversations)
@settings(deadline=None)
def test_spans_cover_the_placeholders_in_order(conversation: Conversation) -> None:
    rendered = render(conversation, TOKENIZER, SPAN)
    assert rendered.images == conversation.images
    covered = [i for start, size in rendered.image_spans for i in range(start, start + size)]
    assert covered == [i for i, token in enumerate(rendered.ids) if token == TOKENIZER.image]
    assert all(size == SPAN for _, size in rendered.image_spans)


def test_a_document_is_learnt_whole() -> None:
    rendered = render(Document("It is red.\n", "d"), TOKENIZER, 0)
    assert rendered.ids == [TOKENIZER.eos, *TOKENIZER.encode("It is red.\n"), TOKENIZER.eos]
    assert rendered.loss_mask == [False] + [True] * (len(rendered.ids) - 1)


def test_a_prompt_starts_the_sampled_turn() -> None:
    conversation = Conversation((user(A, "What?"),))
    full = render(replace(conversation, messages=(*conversation.messages, assistant("red"))), TOKENIZER, SPAN)
    prompt = render_prompt(conversation, TOKENIZER, SPAN)
    assert full.ids[: len(prompt.ids)] == prompt.ids
    assert full.loss_mask.index(True) == len(prompt.ids)


def test_mistakes_name_the_sample() -> None:
    with pytest.raises(DataError, match=r"'s7'.*picture"):
        render(Conversation((user(A),), id="s7"), TOKENIZER, 0)
    with pytest.raises(DataError, match=r"'s8'.*without messages"):
        render(Conversation((), id="s8"), TOKENIZER, 0)
    assert set(ROLES) == {"system", "user", "assistant", "tool"}


def test_a_crop_never_cuts_a_picture() -> None:
    rendered = render(Conversation((user("x", A, "y"), assistant("z"))), TOKENIZER, SPAN)
    start, size = rendered.image_spans[0]
    assert rendered.crop(start + size).ids == rendered.ids[: start + size]
    with pytest.raises(ValueError, match="cut a picture"):
        rendered.crop(start + size - 1)


def test_rendering_costs_little_beside_bpe() -> None:
    conversation = Conversation((user(A, "What colour is it?"), assistant("red")))
    render(conversation, TOKENIZER, 49)
    best = min(_timed(conversation) for _ in range(20))
    assert best < 60e-6


def _timed(conversation: Conversation) -> float:
    start = time.perf_counter()
    for _ in range(20):
        render(conversation, TOKENIZER, 49)
    return (time.perf_counter() - start) / 20
