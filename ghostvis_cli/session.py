"""What one invocation of the command line shares: the registry, loaded once, and the options every command takes.

``--debug``, ``--no-plugins`` and ``--plugin FILE`` decide which plugins are imported, and plugins add commands, so
they are read before the parser exists. They become environment variables, which worker processes inherit.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ghostvis_plugins import ConfigError
from ghostvis_plugins.manager import Registry

from .output import warn


@cache
def registry() -> Registry:
    """The plugins of this invocation. Warns of each one that is broken, on stderr, once."""
    loaded = Registry.load()
    if "_GHOSTVIS_COMPLETE" in os.environ:
        return loaded  # the shell shows suggestions, and nothing else
    for message in loaded.warnings:
        warn(message)
    for info in loaded.plugins:
        if info.status == "broken":
            warn(f"plugin '{info.name}' ({info.dist}) is left out: {info.error}")
    return loaded


def take_global_options(argv: Sequence[str]) -> list[str]:
    """Apply the options that come before everything else and return the other arguments.

    Raises ConfigError for ``--plugin`` without a file.
    """
    rest: list[str] = []
    files: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word == "--debug":
            os.environ["GHOSTVIS_DEBUG"] = "1"
        elif word == "--no-plugins":
            os.environ["GHOSTVIS_PLUGINS"] = ""
        elif word == "--plugin" or word.startswith("--plugin="):
            file = word.partition("=")[2] or next(words, "")
            if not file or file.startswith("--"):
                raise ConfigError("--plugin needs a Python file, such as --plugin my_encoder.py")
            files.append(str(Path(file).expanduser().resolve()))
        else:
            rest.append(word)
    if files:
        given = os.environ.get("GHOSTVIS_PLUGIN_FILES", "")
        os.environ["GHOSTVIS_PLUGIN_FILES"] = os.pathsep.join([*given.split(os.pathsep), *files] if given else files)
    return rest


def debugging() -> bool:
    """Whether a traceback is wanted for a user's mistake too."""
    return os.environ.get("GHOSTVIS_DEBUG", "") not in ("", "0")
