"""Whether a chat format says what a foreign chat template says: both are asked, and the strings compared.

Templates are programs, and telling one by a few words of it (:func:`components.chat_formats.detect`) is a guess. Two
short conversations settle it when a foreign tokenizer is loaded for the first time; afterwards the format is saved
by name. The template runs in Jinja's sandbox, as in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Conversation, Message, assistant, system, user

from .chat_formats import CONFIG_KEY
from .rendering import render, render_prompt
from .tokenizers import Tokenizer

PROBES: tuple[tuple[tuple[Message, ...], bool], ...] = (  # messages, and whether the assistant's turn is opened
    ((user("Hi!"), assistant("Hello. How can I help?"), user("1 + 1 = ?")), True),
    ((system("Be brief."), user("Hi!"), assistant("Hello."), user("Bye!"), assistant("Goodbye.")), False),
)


def check_template(tokenizer: Tokenizer, template: str, config: Mapping[str, Any], where: str) -> None:
    """Raises DataError, saying ``where``, when ``template`` spells a probe otherwise than the tokenizer's format does.

    ``config`` is ``tokenizer_config.json``, whose special tokens a template may name.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    known = {name: _content(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    variables: dict[str, Any] = {name: token for name, token in known.items() if token is not None}
    variables.update(tokenizer.format.arguments, raise_exception=refuse)
    for messages, opened in PROBES:
        conversation = Conversation(messages, id="probe")
        ours = tokenizer.spell((render_prompt if opened else render)(conversation, tokenizer, 0).ids)
        plain = [{"role": message.role, "content": message.text} for message in messages]
        try:
            theirs = environment.from_string(template).render(messages=plain, add_generation_prompt=opened, **variables)
        except Exception as error:  # a template may fail in any way a program can
            raise DataError(
                f"{where}: the chat template cannot be run: {type(error).__name__}: {error}", hint=_hint(tokenizer)
            ) from error
        if ours != theirs:
            raise DataError(
                f"{where}: the chat template is of no known format; the nearest is '{tokenizer.format.name}', which "
                f"writes {ours!r} where the template writes {_cut(theirs, len(ours) + 200)!r}",
                hint=_hint(tokenizer),
            )


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
