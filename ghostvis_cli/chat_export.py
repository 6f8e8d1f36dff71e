"""A conversation as a file: Markdown to read, JSON in the shape of the OpenAI chat API to use elsewhere."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghostvis_plugins.errors import ConfigError, DataError
from ghostvis_plugins.types import Image, Message, Text, ToolResult

from .output import SCHEMA

if TYPE_CHECKING:
    from .chat_session import ChatSession


def export(session: ChatSession, file: Path) -> None:
    """Write the conversation to a new ``.md`` or ``.json`` file. Raises ConfigError and DataError."""
    writers = {".md": as_markdown, ".json": as_json}
    if file.suffix not in writers:
        raise ConfigError(f"{file}: the name must end in .md or .json")
    try:
        with file.open("x", encoding="utf-8", errors="backslashreplace") as target:  # never over somebody's file
            target.write(writers[file.suffix](session))
    except FileExistsError as error:
        raise DataError(f"{file} exists already", hint="Choose another name.") from error
    except OSError as error:
        raise DataError(f"cannot write {file}: {error.strerror or error}") from error


def as_markdown(session: ChatSession) -> str:
    """Turns under headings; pictures by name."""
    blocks = [f"# Chat with {session.model.name}"]
    for message in session.conversation.messages:
        blocks.append(f"## {message.role}")
        blocks += [f"[image: {session.attachments[image].name}]" for image in message.images]
        blocks.append(message.text)
    return "\n\n".join(blocks) + "\n"


def as_json(session: ChatSession) -> str:
    """Messages with their pictures inside, the model's name and the settings."""
    document = {
        "schema": SCHEMA,
        "model": session.model.name,
        "generation": asdict(session.generation),
        "messages": [_message(message, session) for message in session.conversation.messages],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _message(message: Message, session: ChatSession) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, Text):
            content.append({"type": "text", "text": part.text})
        elif isinstance(part, Image):
            encoded = base64.b64encode(part.read()).decode()
            url = f"data:{_media_type(part.read())};base64,{encoded}"
            name = session.attachments[part].name
            content.append({"type": "image_url", "image_url": {"url": url}, "name": name})
        elif isinstance(part, ToolResult):
            content.append({"type": "text", "text": part.content})
        else:
            content.append({"type": "text", "text": f"{part.name}({part.arguments})"})
    return {"role": message.role, "content": content}


def _media_type(data: bytes) -> str:
    signatures = {
        b"\x89PNG": "image/png",
        b"\xff\xd8": "image/jpeg",
        b"GIF8": "image/gif",
        b"RIFF": "image/webp",
        b"BM": "image/bmp",
        b"II*": "image/tiff",
        b"MM\0": "image/tiff",
    }
    return next((kind for start, kind in signatures.items() if data.startswith(start)), "application/octet-stream")
