"""A JSON object becomes a sample: the shapes in which people keep conversations.

- ``{"messages": [{"role": "user", "content": …}, …]}``: the OpenAI chat API. ``content`` is a string or a list of
  parts: ``{"type": "text", "text": …}``, ``{"type": "image_url", "image_url": {"url": …}}``, or Hugging Face's
  ``{"type": "image", "image" | "path" | "url": …}``; one of them without a source stands for the next of the row's
  ``images``. An assistant may have ``tool_calls``; what a tool says has the role ``tool``.
- ``{"conversations": [{"from": "human", "value": …}, …]}``: ShareGPT and LLaVA.
- ``{"text": …}``: a document.

A row may list its pictures in ``images`` (or ``image``, one). Where no part places them, each ``<image>`` in what is
said places one, as in LLaVA, and a row without that marker shows them all at the start of the user's first turn. In a
row that lists no pictures, ``<image>`` is text like any other.

Everything else in the row is metadata. Every mistake is a DataError that says what is wrong, without saying where:
the reader knows the file and the line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import (
    Conversation,
    Document,
    Image,
    Message,
    Part,
    Role,
    Sample,
    Text,
    ToolCall,
    ToolResult,
)

MARKER = "<image>"
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_SPEAKERS: dict[str, Role] = {
    **_ROLES,
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
}
_SHAPES = ("messages", "conversations", "text")

Locate = Callable[[str], Image]
"""Turns what a row says about a picture (a path, a URL) into the picture. Raises DataError."""


def sample_of(row: Any, *, id: str, picture: Locate) -> Sample:
    """The sample that ``row`` describes. Raises DataError."""
    if not isinstance(row, Mapping):
        raise DataError(f"is not a JSON object but {_kind(row)}")
    shape = next((key for key in _SHAPES if row.get(key) is not None), None)
    if shape is None:
        raise DataError(f"has none of the keys {', '.join(_SHAPES)}")
    if shape == "text":
        document = text_of(row["text"], "text")
        if not document.strip():
            raise DataError("text is empty")
        return Document(document, id=id)
    turns = row[shape]
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise DataError(f"{shape} is not a list of messages")
    pictures = _Pictures(_listed(row), picture, turns)
    read = _openai if shape == "messages" else _sharegpt
    messages = [read(turn, f"message {place + 1}", pictures) for place, turn in enumerate(turns)]
    messages = pictures.placed(messages)
    for place, message in enumerate(messages, 1):
        if message.role == "assistant" and not any(_says(part) for part in message.parts):
            raise DataError(f"message {place}: the answer of the assistant is empty")
    metadata = {key: value for key, value in row.items() if key not in (shape, "images", "image")}
    return Conversation(tuple(messages), id=id, metadata=metadata)


def text_of(value: Any, where: str) -> str:
    """``value`` if it is text that can be written as UTF-8. Raises DataError."""
    if not isinstance(value, str):
        raise DataError(f"{where} is not text but {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} is not Unicode text: half of a surrogate pair at character {error.start}") from error
    return value


def _says(part: Part) -> bool:
    return bool(part.text.strip()) if isinstance(part, Text) else True


class _Pictures:
    """The pictures that a row lists, dealt out to the places where they are shown."""

    def __init__(self, listed: Sequence[str], picture: Locate, turns: Sequence[Any]) -> None:
        self.picture = picture
        self.listed = listed
        self.taken = 0
        self.marked = bool(listed) and not any(_has_image_part(turn) for turn in turns)

    def next(self, where: str) -> Image:
        if self.taken == len(self.listed):
            raise DataError(f"{where}: a place for picture {self.taken + 1}, and the row lists {len(self.listed)}")
        self.taken += 1
        return self.picture(self.listed[self.taken - 1])

    def text(self, text: str, where: str) -> tuple[Part, ...]:
        """``text`` as parts; its markers become pictures where the row's pictures have no other place."""
        if not self.marked or MARKER not in text:
            return (Text(text),) if text else ()
        parts: list[Part] = []
        for place, piece in enumerate(text.split(MARKER)):
            if place:
                parts.append(self.next(where))
                piece = piece.removeprefix("\n")
            if piece.strip():
                parts.append(Text(piece))
        return tuple(parts)

    def placed(self, messages: list[Message]) -> list[Message]:
        """``messages`` with pictures that no marker placed. Raises DataError for one that is shown nowhere."""
        if self.marked and not self.taken:
            first = next((place for place, message in enumerate(messages) if message.role == "user"), None)
            if first is not None:
                shown = tuple(self.next("") for _ in self.listed)
                messages[first] = Message("user", shown + messages[first].parts)
        if self.taken < len(self.listed):
            raise DataError(f"the row lists {len(self.listed)} pictures and shows {self.taken}")
        return messages


def _listed(row: Mapping[str, Any]) -> list[str]:
    value = row.get("images") if row.get("images") is not None else row.get("image")
    value = [] if value is None else [value] if isinstance(value, str | Mapping) else value
    if not isinstance(value, Sequence):
        raise DataError(f"images is not a list but {_kind(value)}")
    return [_source(item, "images") for item in value]


def _source(value: Any, where: str) -> str:
    """The text that says where a picture is: itself, or under ``url`` or ``path``."""
    if isinstance(value, Mapping):
        value = value.get("url") or value.get("path")
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: says no file for a picture")
    return value


def _has_image_part(turn: Any) -> bool:
    content = turn.get("content") if isinstance(turn, Mapping) else None
    return isinstance(content, list) and any(
        isinstance(part, Mapping) and part.get("type") in ("image", "image_url") for part in content
    )


def _openai(turn: Any, where: str, pictures: _Pictures) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where} is not an object but {_kind(turn)}")
    role = _role(turn.get("role"), _ROLES, where)
    content = turn.get("content")
    if role == "tool":
        if isinstance(content, list):
            content = "".join(text_of(_part(part, where).get("text"), where) for part in content)
        return Message(role, (ToolResult(text_of(content, f"{where}: content"), str(turn.get("tool_call_id") or "")),))
    parts: list[Part] = []
    if isinstance(content, list):
        for part in content:
            parts += _parts(_part(part, where), where, pictures)
    elif content is not None:
        parts += pictures.text(text_of(content, f"{where}: content"), where)
    calls = turn.get("tool_calls") or []
    if calls and (role != "assistant" or not isinstance(calls, list)):
        raise DataError(f"{where}: tool_calls are a list in a message of the assistant")
    parts += [_call(call, where) for call in calls]
    if not parts and role == "user":
        raise DataError(f"{where}: the user says nothing")
    return Message(role, tuple(parts))


def _part(part: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(part, Mapping):
        raise DataError(f"{where}: a part is not an object but {_kind(part)}")
    return part


def _parts(part: Mapping[str, Any], where: str, pictures: _Pictures) -> tuple[Part, ...]:
    match part.get("type"):
        case "text":
            return pictures.text(text_of(part.get("text"), f"{where}: text"), where)
        case "image_url":
            return (pictures.picture(_source(part.get("image_url"), where)),)
        case "image":
            given = next((part[key] for key in ("image", "path", "url") if part.get(key) is not None), None)
            return (pictures.next(where) if given is None else pictures.picture(_source(given, where)),)
        case kind:
            raise DataError(f"{where}: a part of type {kind!r}; known are text, image_url and image")


def _call(call: Any, where: str) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise DataError(f"{where}: a tool call without the name of a function")
    arguments = function.get("arguments", "{}")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    try:
        json.loads(text_of(arguments, f"{where}: arguments"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: the arguments of {function['name']} are not JSON: {error}") from error
    return ToolCall(text_of(function["name"], f"{where}: name"), arguments, str(call.get("id") or ""))


def _sharegpt(turn: Any, where: str, pictures: _Pictures) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where} is not an object but {_kind(turn)}")
    role = _role(turn.get("from"), _SPEAKERS, where)
    text = text_of(turn.get("value"), f"{where}: value")
    if role == "tool":
        return Message(role, (ToolResult(text),))
    parts = pictures.text(text, where)
    if not parts and role == "user":
        raise DataError(f"{where}: the user says nothing")
    return Message(role, parts)


def _role(value: Any, known: Mapping[str, Role], where: str) -> Role:
    if not isinstance(value, str) or value not in known:
        raise DataError(f"{where}: the role {value!r} is none of {', '.join(known)}")
    return known[value]


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
