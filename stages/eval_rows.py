"""The evaluation row: one answer to one question, kept so that it never has to be computed twice.

``samples.jsonl`` is append-only. A row's key is a hash of everything its output depends on: the weights, the
task and its version, the document, the prompt (pictures included) and how the answer was drawn. A run that was
killed goes on where it stopped; other weights at the same path never meet a stale answer.

Fields, final: ``key``, ``weights``, ``task``, ``task_version``, ``condition``, ``doc``, ``prompt_hash``,
``generation``, ``output``, ``scores``; beside them ``target``, ``tags``, ``cluster`` and, by kind of question,
``finish_reason`` and ``tokens``, or ``choices`` and ``nll`` (mean nats per token), or, where only a likelihood is
measured, ``messages`` and ``cut`` (:mod:`stages.eval_likelihood`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Conversation, EvalDoc, Image, Text, ToolCall

Row = dict[str, Any]


def digest_of(value: Any) -> str:
    """sha256 of a JSON value in its canonical form, hexadecimal."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Hasher:
    """Hashes prompts by content; a picture's bytes are read once per picture."""

    def __init__(self) -> None:
        self._digests: dict[Image, str] = {}

    def image(self, image: Image) -> str:
        if image not in self._digests:
            try:
                self._digests[image] = image.digest()
            except OSError as error:
                raise DataError(f"cannot read the picture {image.path}: {error.strerror or error}") from error
        return self._digests[image]

    def conversation(self, prompt: Conversation) -> str:
        """Of roles, texts and picture contents; not of ids, paths or metadata."""
        messages: list[Any] = []
        for message in prompt.messages:
            parts: list[Any] = []
            for part in message.parts:
                if isinstance(part, Text):
                    parts.append(["text", part.text])
                elif isinstance(part, Image):
                    parts.append(["image", self.image(part)])
                elif isinstance(part, ToolCall):
                    parts.append(["tool_call", part.name, part.arguments, part.id])
                else:
                    parts.append(["tool_result", part.content, part.id])
            messages.append([message.role, parts])
        return digest_of(messages)

    def doc(self, doc: EvalDoc) -> str:
        """The prompt hash of a row: the conversation and the choices offered with it."""
        conversation = self.conversation(doc.prompt)
        return digest_of([conversation, list(doc.choices)]) if doc.choices else conversation


KEY_FIELDS = ("weights", "task", "task_version", "doc", "prompt_hash", "generation")


def key_of(row: Mapping[str, Any]) -> str:
    """The identity of an answer; equal keys mean that it need not be computed again."""
    return digest_of([row[field] for field in KEY_FIELDS])


class RowStore:
    """The rows of one ``samples.jsonl``, by key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rows: dict[str, Row] = {}
        self._load()
        self._file = path.open("ab")

    def _load(self) -> None:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # the line that a killed run was writing
            os.truncate(self.path, whole)
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                row = json.loads(line)
                self._rows[row["key"]] = row
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{self.path} line {number} is not an evaluation row: {error}",
                    hint="Remove the line or the file; what is missing is computed again.",
                ) from error

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> Row | None:
        return self._rows.get(key)

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows durably: they are on the disk when this returns."""
        rows = list(rows)
        lines = (json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n" for row in rows)
        self._file.write(b"".join(lines))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._rows.update((row["key"], row) for row in rows)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> RowStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
