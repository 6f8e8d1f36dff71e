"""What could come next while a slash command is typed: its name, its files, its settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ghostvis_plugins.types import Generation

from .chat_commands import Command
from .chat_paths import IMAGE_SUFFIXES, to_path

MAX_SUGGESTIONS = 50


@dataclass(frozen=True, slots=True)
class Suggestion:
    """``text`` is the whole line with the suggestion in it; ``label`` and ``note`` are what a list shows."""

    text: str
    label: str
    note: str = ""


def complete(line: str, known: Mapping[str, Command]) -> list[Suggestion]:
    """Suggestions for a line that begins with a slash; none for anything else, and none that change nothing."""
    if not line.startswith("/") or "\n" in line:
        return []
    name, blank, arguments = line[1:].partition(" ")
    if not blank:
        found = [
            Suggestion(f"/{command.name} " if command.usage else f"/{command.name}", command.title, command.summary)
            for command in known.values()
            if command.name.startswith(name)
        ]
    elif name in ("image", "export"):
        found = _files(f"/{name} ", arguments, pictures=name == "image")
    elif name == "set":
        head, _, word = arguments.rpartition(" ")
        before = f"/set {head} " if head else "/set "
        keys = asdict(Generation())
        found = [Suggestion(f"{before}{key}=", f"{key}=") for key in keys if key.startswith(word) and "=" not in word]
    else:
        found = []
    return [suggestion for suggestion in found if suggestion.text.rstrip() != line.rstrip()][:MAX_SUGGESTIONS]


def _files(command: str, typed: str, *, pictures: bool) -> list[Suggestion]:
    """Folders and pictures whose path begins with what was typed; blanks in it are escaped."""
    folder, name = os.path.split(str(to_path(typed, quoted=False)) if typed else "")
    if typed.endswith("/"):
        folder, name = str(to_path(typed, quoted=False)), ""
    try:
        entries = sorted(os.scandir(folder or "."), key=lambda entry: (not entry.is_dir(), entry.name.lower()))
    except OSError:  # no such folder, or not ours to read: nothing to suggest
        return []
    found = []
    for entry in entries:
        is_folder = entry.is_dir()
        if not entry.name.startswith(name) or (entry.name.startswith(".") and not name.startswith(".")):
            continue
        if is_folder or not pictures or Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
            path = os.path.join(folder, entry.name) + ("/" if is_folder else "")
            found.append(Suggestion(command + path.replace(" ", "\\ "), entry.name + ("/" if is_folder else "")))
    return found
