"""Whether a chat format says what a foreign chat template says: both are asked, and the strings compared.

Templates are programs, and telling one by a few words of it (:func:`components.chat_formats.detect`) is a guess. Two
short conversations settle it when a foreign tokenizer is loaded for the first time; afterwards the format is saved
by name. The template runs in Jinja's sandbox, as in transformers, and in a process of its own with limits.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Conversation, Message, assistant, system, user

from . import template_sandbox
from .chat_formats import CONFIG_KEY
from .rendering import render, render_prompt
from .tokenizers import Tokenizer

PATIENCE = 30  # seconds by the clock; a busy machine may take long to start Python
ENDED = {getattr(signal, name, None) for name in ("SIGXCPU", "SIGKILL")}  # by the limit of computing time

PROBES: tuple[tuple[tuple[Message, ...], bool], ...] = (  # messages, and whether the assistant's turn is opened
    ((user("Hi!"), assistant("Hello. How can I help?"), user("1 + 1 = ?")), True),
    ((system("Be brief."), user("Hi!"), assistant("Hello."), user("Bye!"), assistant("Goodbye.")), False),
)


def check_template(tokenizer: Tokenizer, template: str, config: Mapping[str, Any], where: str) -> None:
    """Raises DataError, saying ``where``, when ``template`` spells a probe otherwise than the tokenizer's format does.

    ``config`` is ``tokenizer_config.json``, whose special tokens a template may name.
    """
    known = {name: _content(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    variables: dict[str, Any] = {name: token for name, token in known.items() if token is not None}
    variables.update(tokenizer.format.arguments)
    calls = [
        {
            "messages": [{"role": message.role, "content": message.text} for message in messages],
            "add_generation_prompt": opened,
        }
        for messages, opened in PROBES
    ]
    answer = _run({"template": template, "variables": variables, "calls": calls})
    if "error" in answer:
        raise DataError(f"{where}: the chat template cannot be run: {answer['error']}", hint=_hint(tokenizer))
    for (messages, opened), theirs in zip(PROBES, answer["texts"], strict=True):
        conversation = Conversation(messages, id="probe")
        ours = tokenizer.spell((render_prompt if opened else render)(conversation, tokenizer, 0).ids)
        if ours != theirs:
            raise DataError(
                f"{where}: the chat template is of no known format; the nearest is '{tokenizer.format.name}', which "
                f"writes {ours!r} where the template writes {_cut(theirs, len(ours) + 200)!r}",
                hint=_hint(tokenizer),
            )


def _run(given: Mapping[str, Any]) -> dict[str, Any]:
    """What :mod:`components.template_sandbox` answers; ``error`` where it had to be ended."""
    command = [sys.executable, "-P", str(Path(template_sandbox.__file__))]
    try:
        done = subprocess.run(command, input=json.dumps(given).encode(), capture_output=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return {"error": f"it was not done after {PATIENCE} s"}
    if done.returncode == 0:
        return json.loads(done.stdout)  # type: ignore[no-any-return]
    if -done.returncode in ENDED:
        return {"error": f"it computed for more than {template_sandbox.SECONDS} s"}
    last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
    return {"error": f"its process ended with {done.returncode} {last}".rstrip()}


def _content(token: Any) -> str | None:
    """The text of a special token, which the file gives as a string or as a table."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _hint(tokenizer: Tokenizer) -> str:
    return (
        f'To use that format all the same, write "{CONFIG_KEY}": "{tokenizer.format.name}" into tokenizer_config.json.'
    )
