"""``ghostvis chat``: one answer on stdout, a line at a time through a pipe, or a full-screen conversation.

Which one: with ``--prompt`` one answer; on a terminal the full-screen chat; else every line of stdin is a message.
Answers go to stdout and nothing else does, so the output of a pipe is the model's words.
"""

from __future__ import annotations

import json as json_module
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o
from .models import Model
from .output import SCHEMA, examples, note, warn

if TYPE_CHECKING:
    from ghostvis_plugins.types import Generation

    from .chat_commands import Command
    from .chat_session import Answer, Attachment, ChatModel, ChatSession, Reply

_ANSWER = "Answers"


def register(parent: typer.Typer) -> None:
    parent.command(
        "chat",
        epilog=examples(
            'ghostvis chat --image cat.jpg --prompt "what is this?"',
            'echo "hello" | ghostvis chat --temperature 0.7 --seed 1',
        ),
        rich_help_panel="Models",
    )(chat)


def chat(
    model: Model = None,
    image: Annotated[
        list[str] | None,
        typer.Option("--image", "-i", help="Picture for the first message; may be repeated.", metavar="PATH"),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Answer this and leave.", metavar="TEXT")] = None,
    system: Annotated[str, typer.Option("--system", help="System message.", metavar="TEXT")] = "",
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", help="0 always takes the likeliest token.", metavar="X", rich_help_panel=_ANSWER),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k", help="Draw among the N likeliest tokens; 0: all.", metavar="N", rich_help_panel=_ANSWER
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p",
            help="Draw among the likeliest tokens whose probabilities add up to X.",
            metavar="X",
            rich_help_panel=_ANSWER,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", help="Longest answer.", metavar="N", rich_help_panel=_ANSWER)
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of what is drawn.", metavar="N", rich_help_panel=_ANSWER)
    ] = None,
    engine: o.Engine = None,
    device: o.Device = None,
    json: o.Json = False,
) -> None:
    """Talk to a model about pictures."""
    from ghostvis_plugins.types import Generation

    from .chat_commands import commands
    from .chat_session import changed, read_attachment
    from .models import load_chat_model, resolve_model, setup
    from .session import registry

    # Everything that can be wrong is found before the model is loaded, which takes seconds.
    model_dir = resolve_model(model)
    generation = Generation(max_new_tokens=128)
    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    for key, value in given.items():
        if value is not None:
            generation = changed(generation, key, str(value))
    pictures = [read_attachment(path) for path in image or []]
    found = registry()
    choice = setup(found, engine=engine, device=device)
    known = commands(found, warn)

    def load() -> ChatModel:
        return load_chat_model(model_dir, found, choice)

    if prompt is None and not json and sys.stdin.isatty() and sys.stdout.isatty():
        _full_screen(load, known, system=system, generation=generation, pictures=pictures, model_dir=str(model_dir))
        return
    session = _session(load(), system, generation, pictures)
    with _closed_pipe_is_the_end():
        if prompt is not None:
            say(session, session.ask(prompt), json=json)
        else:
            converse(session, known, json=json)


def _session(model: ChatModel, system: str, generation: Generation, pictures: list[Attachment]) -> ChatSession:
    from .chat_session import ChatSession

    session = ChatSession(model, system=system, generation=generation)
    session.pending += pictures
    return session


def _full_screen(
    load: Any,
    known: dict[str, Command],
    *,
    system: str,
    generation: Generation,
    pictures: list[Attachment],
    model_dir: str,
) -> None:
    from .tui import ChatApp

    app = ChatApp(
        lambda: _session(load(), system, generation, pictures), commands=known, loading=f"loading {model_dir}"
    )
    app.run()
    if app.failure is not None:
        raise app.failure


def say(session: ChatSession, answer: Answer, *, json: bool) -> None:
    """Stream one answer to stdout, or print it as one JSON document on one line of its own."""
    reply = _drain(answer, sys.stdout.write if not json else None)
    if json:
        document = {
            "schema": SCHEMA,
            "answer": reply.text,
            "model": session.model.name,
            "finish_reason": reply.finish_reason,
            "tokens": reply.tokens,
            "seconds": round(reply.seconds, 4),
            "first_token_seconds": None if reply.first_token is None else round(reply.first_token, 4),
            "generation": asdict(session.generation),
        }
        print(json_module.dumps(document, ensure_ascii=False), flush=True)
    else:
        print(flush=True)


def _drain(answer: Answer, write: Any) -> Reply:
    while True:
        try:
            piece = next(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        if write:
            write(piece)
            sys.stdout.flush()


def converse(session: ChatSession, known: dict[str, Command], *, json: bool = False) -> None:
    """Every line of stdin is a message or a slash command; a picture's path at its start is attached.

    On a terminal a mistake is reported and the conversation goes on; in a pipe it ends with the mistake's exit code.
    """
    from ghostvis_plugins.errors import GhostVisError

    interactive = sys.stdin.isatty()
    for line in _lines(interactive):
        try:
            if not turn(session, known, line, json=json):
                return
        except GhostVisError as error:
            if not interactive:
                raise
            note(f"{error}")


def _lines(interactive: bool) -> Iterator[str]:
    while True:
        if interactive:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def turn(session: ChatSession, known: dict[str, Command], line: str, *, json: bool = False) -> bool:
    """Act on one line; False when the conversation is over."""
    from .chat_commands import help_text, parse
    from .chat_paths import leading_images

    command = parse(line, known)
    if command is None:
        paths, text = leading_images(line)
        for path in paths:
            note(f"attached {session.attach(path).name}")
        if text:
            say(session, session.ask(text), json=json)
        return True
    chosen, arguments = command
    if chosen.run is not None:
        note(chosen.run(arguments, session))
    elif chosen.name == "regen":
        say(session, session.regenerate(), json=json)
    elif chosen.name == "help":
        note(help_text(known))
    else:
        return False
    return True


@contextmanager
def _closed_pipe_is_the_end() -> Iterator[None]:
    """Whoever reads our output may have had enough (``| head``): then stop quietly."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at exit
