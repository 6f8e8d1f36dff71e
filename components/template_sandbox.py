"""Renders chat templates of strangers: a program of its own, which :mod:`components.chat_templates` runs.

Jinja's sandbox keeps a template from the machine, but not from looping for ever or doubling a string until the memory
is gone, and no list of forbidden filters would. So the operating system limits time and memory where it can (both on
Linux, time on macOS), and whoever runs this waits only so long. In goes ``{template, variables, calls}`` as JSON,
each call more variables; out comes ``{texts}`` or ``{error}``.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any, NoReturn

SECONDS = 5  # of computing
MEMORY = 2**30  # bytes of address space, Python's own 100 MB included
MAX_CHARACTERS = 1_000_000  # that a template may write


def limit() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, most in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, MEMORY)):
        with contextlib.suppress(OSError, ValueError):  # a lower limit is set, or the system has none of this kind
            resource.setrlimit(kind, (most, most))


def render(template: str, variables: dict[str, Any], calls: list[dict[str, Any]]) -> list[str]:
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    compiled = environment.from_string(template)
    texts = []
    for call in calls:
        text, pieces = "", compiled.generate({**variables, **call, "raise_exception": refuse})
        for piece in pieces:
            text += piece
            if len(text) > MAX_CHARACTERS:
                raise OverflowError(f"it writes more than {MAX_CHARACTERS:,} characters")
        texts.append(text)
    return texts


def main() -> None:
    limit()
    try:
        answer: dict[str, Any] = {"texts": render(**json.load(sys.stdin))}
    except Exception as error:  # a template may fail in any way a program can
        answer = {"error": f"{type(error).__name__}: {error}"[:1000]}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
