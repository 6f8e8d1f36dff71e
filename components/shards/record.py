"""A sample inside a tar: ``KEY.json`` with what is said, and ``KEY.0.jpg``, ``KEY.1.png``, … with its pictures.

The JSON is a stable encoding of the contract's types: keys in order, pictures by the name of their file. Pictures are
the encoded bytes as the data set gave them, never compressed again. What is written reads back as an equal sample,
save that a picture that was a path is bytes, and that a tuple in the metadata is a list.

Any WebDataset reader can use the tars: keys hold no dot, and members of one sample are neighbours.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import (
    Conversation,
    Document,
    Image,
    Message,
    Part,
    Sample,
    Text,
    ToolCall,
    ToolResult,
)

FORMAT_VERSION = 1
LONGEST_KEY = 80
"""Bytes of a key: with the longest suffix it fits the 100 bytes that every tar reader knows."""

BLOCK = tarfile.BLOCKSIZE
MARK = "ghostvis"  # the JSON key that says which version of the encoding this is
_ROLES = ("system", "user", "assistant", "tool")
_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tif"),
    (b"MM\x00*", "tif"),
)


def key_of(id: str) -> str:
    """The name of a sample in a tar. Another id gives another key; simple ids stay as they are.

    Everything but letters, digits, ``-``, ``_`` and single slashes is percent-encoded (a dot as well: WebDataset ends
    the key there), and of a long id the end is replaced by a hash.
    """
    text = quote(id, safe="/").replace(".", "%2E").replace("~", "%7E")
    text = re.sub(r"/(?=/)|^/|/$|(?:^|(?<=/))_(?=_)", lambda found: f"%{ord(found[0]):02X}", text)
    if len(text) <= LONGEST_KEY:
        return text
    mark = hashlib.sha256(id.encode()).hexdigest()[:16]
    return f"{text[: LONGEST_KEY - 17].rstrip('/')}~{mark}"


def suffix_of(data: bytes) -> str:
    """The file name's ending for the encoded bytes of a picture; ``img`` for bytes that are none we know."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        return "heic" if data[8:12] in (b"heic", b"heix", b"mif1", b"msf1") else "avif"
    return next((suffix for magic, suffix in _MAGIC if data.startswith(magic)), "img")


def encode(sample: Sample) -> dict[str, bytes]:
    """The files of a sample by suffix: ``json``, and ``N.SUFFIX`` for each picture.

    Raises DataError for what cannot be kept exactly: text that is not Unicode, metadata that are not JSON, a picture
    that cannot be read, an empty id.
    """
    if not sample.id:
        raise DataError("a sample without an id cannot be found again")
    files: dict[str, bytes] = {}
    document: dict[str, Any] = {MARK: FORMAT_VERSION, "id": sample.id}
    if isinstance(sample, Document):
        document["text"] = sample.text
    else:
        document["messages"] = [
            {"role": message.role, "parts": [_part(part, files) for part in message.parts]}
            for message in sample.messages
        ]
        if sample.metadata:
            document["metadata"] = _metadata(sample.metadata)
    try:
        text = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        files["json"] = text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"text is not valid Unicode: {error.reason} ({text[error.start]!r})") from error
    return files


def _part(part: Part, files: dict[str, bytes]) -> dict[str, str]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, ToolCall):
        return {"type": "tool_call", "name": part.name, "arguments": part.arguments, "id": part.id}
    if isinstance(part, ToolResult):
        return {"type": "tool_result", "content": part.content, "id": part.id}
    try:
        data = part.read()
    except OSError as error:
        raise DataError(f"image {part.path}: cannot be read: {error.strerror or error}") from error
    name = f"{len(files)}.{suffix_of(data)}"
    files[name] = data
    return {"type": "image", "file": name}


def _metadata(metadata: Mapping[str, Any]) -> Any:
    plain = _plain(metadata)
    try:
        if json.loads(json.dumps(plain, allow_nan=False)) == plain:
            return plain
    except (TypeError, ValueError) as error:
        raise DataError(f"its metadata cannot be kept as JSON: {error}") from error
    raise DataError("its metadata cannot be kept as JSON: a key is not a string")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def is_ours(text: bytes) -> bool:
    """Whether a JSON file is one that :func:`encode` wrote, of whatever version."""
    return text.startswith(b'{"%s":' % MARK.encode())


def decode(files: Mapping[str, bytes]) -> Sample:
    """The sample that :func:`encode` made these files of. Raises DataError that says what is wrong with them."""
    try:
        document = json.loads(files["json"])
        version = document[MARK]
        if version != FORMAT_VERSION:
            raise DataError(
                f"its record has format_version {version!r}, and this version of GhostVis reads {FORMAT_VERSION}"
            )
        if "text" in document:
            return Document(document["text"], id=document["id"])
        messages = tuple(_message(message, files) for message in document["messages"])
        return Conversation(messages, id=document["id"], metadata=document.get("metadata", {}))
    except KeyError as error:
        raise DataError(f"its record lacks {error.args[0]!r}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"its record cannot be read: {error}") from error


def _message(message: Mapping[str, Any], files: Mapping[str, bytes]) -> Message:
    if message["role"] not in _ROLES:
        raise DataError(f"its record has an unknown role {message['role']!r}")
    return Message(message["role"], tuple(_decoded(part, files) for part in message["parts"]))


def _decoded(part: Mapping[str, str], files: Mapping[str, bytes]) -> Part:
    kind = part["type"]
    if kind == "text":
        return Text(part["text"])
    if kind == "image":
        return Image(data=files[part["file"]])
    if kind == "tool_call":
        return ToolCall(part["name"], part["arguments"], part["id"])
    if kind == "tool_result":
        return ToolResult(part["content"], part["id"])
    raise DataError(f"its record has a part of unknown type {kind!r}")


def pack(sample: Sample) -> bytes:
    """The members of a sample in a tar, byte for byte, as the WebDataset library writes them.

    Nothing of machine or moment is in them: the same sample gives the same bytes everywhere. Raises DataError.
    """
    from webdataset.writer import TarWriter  # here, because the library imports torch

    files = encode(sample)
    buffer = io.BytesIO()
    writer = TarWriter(buffer, encoder=False, mtime=0)
    writer.write({"__key__": key_of(sample.id), **files})
    size = writer.tarstream.offset
    writer.close()  # which adds the end of an archive
    return buffer.getvalue()[:size]


def unpack(data: bytes) -> dict[str, bytes]:
    """Files by full name of a stretch of a tar. Raises DataError for one that is no whole number of members."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                if not member.isreg():
                    raise DataError(f"its member {member.name} is no file but a link or a folder")
                handle = tar.extractfile(member)
                files[member.name] = handle.read() if handle is not None else b""
                if len(files[member.name]) != member.size:
                    raise DataError(f"its file {member.name} is cut off")
    except tarfile.TarError as error:
        raise DataError(f"its tar members cannot be read: {error}") from error
    return files


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member's name, as WebDataset splits it: the key ends at the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    base, _, suffix = file.partition(".")
    return folder + slash + base, suffix.lower()
