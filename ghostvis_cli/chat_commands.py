"""Slash commands of the chat: the built-in ones, and those that plugins add as components of kind ``chat_command``.

A command gets the text after its name and the session, and returns what to show. Commands that concern the screen
(``/help``, ``/regen``, ``/quit``) have no ``run``: the line chat and the full-screen chat carry them out themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ghostvis_plugins.errors import ConfigError, GhostVisError, MissingError, did_you_mean

from .chat_paths import split_paths

if TYPE_CHECKING:
    from ghostvis_plugins.api import ComponentSpec
    from ghostvis_plugins.manager import Registry

    from .chat_session import Attachment, ChatSession

Run = Callable[[str, "ChatSession"], str]


@dataclass(frozen=True, slots=True)
class Command:
    """One slash command; ``usage`` names its arguments."""

    name: str
    usage: str
    summary: str
    run: Run | None = None

    @property
    def title(self) -> str:
        return f"/{self.name} {self.usage}".rstrip()


def commands(registry: Registry | None = None, warn: Callable[[str], None] | None = None) -> dict[str, Command]:
    """Every command by name. A plugin's command that takes a built-in name is left out, and ``warn`` hears of it."""
    found = {command.name: command for command in BUILT_IN}
    for spec in registry.specs("chat_command") if registry else []:
        if spec.name in found:
            if warn:
                warn(f"chat command '/{spec.name}' of a plugin is left out: the name is taken")
            continue
        assert registry is not None
        found[spec.name] = Command(spec.name, "", spec.summary, _plugin_run(registry, spec))
    return found


def parse(line: str, known: Mapping[str, Command]) -> tuple[Command, str] | None:
    """The command and its arguments; None for a line that is a message. Raises MissingError for an unknown one."""
    if not line.startswith("/"):
        return None
    name, _, arguments = line[1:].partition(" ")
    if name in known:
        return known[name], arguments.strip()
    if "/" in name:  # a path, not a command
        return None
    raise MissingError(f"unknown command '/{name}'.{did_you_mean(name, known)}", hint="/help lists the commands.")


def help_text(known: Mapping[str, Command]) -> str:
    """One line per command."""
    width = max(len(command.title) for command in known.values())
    return "\n".join(f"{command.title.ljust(width)}  {command.summary}" for command in known.values())


def _plugin_run(registry: Registry, spec: ComponentSpec) -> Run:
    def run(arguments: str, session: ChatSession) -> str:
        try:
            command = spec.load_build()(registry.make_config("chat_command", spec.name, {}))
            return str(command(arguments, session))
        except GhostVisError:
            raise
        except Exception as error:  # a plugin's defect must not end somebody's conversation
            reason = f"{type(error).__name__}: {error}"
            raise GhostVisError(
                f"command '/{spec.name}' of plugin {registry.provider(spec.kind, spec.name).dist} failed: {reason}"
            ) from error

    return run


# --- the built-in commands ----------------------------------------------------------------------------------------


def describe(attachment: Attachment) -> str:
    """``cat.jpg, 640 x 480``."""
    return f"{attachment.name}, {attachment.size[0]} x {attachment.size[1]}"


def _image(arguments: str, session: ChatSession) -> str:
    paths = split_paths(arguments)
    if not paths:
        raise ConfigError("/image needs a file", hint="For example: /image cat.jpg")
    added = [session.attach(path) for path in paths]
    return "\n".join(f"attached {describe(attachment)}" for attachment in added)


def _images(arguments: str, session: ChatSession) -> str:
    word, _, number = arguments.partition(" ")
    if word == "remove":
        if not number.strip().isdigit() or not 1 <= int(number) <= len(session.pending):
            raise ConfigError(f"/images remove needs a number from 1 to {len(session.pending)}")
        return f"removed {describe(session.pending.pop(int(number) - 1))}"
    if word:
        raise ConfigError(f"/images {word}: expected nothing or 'remove N'")
    sent = [f"sent      {describe(attachment)}" for attachment in session.attachments.values()]
    waiting = [f"pending {i} {describe(attachment)}" for i, attachment in enumerate(session.pending, start=1)]
    return "\n".join([*sent, *waiting]) or "no pictures; /image PATH attaches one"


def _system(arguments: str, session: ChatSession) -> str:
    if arguments:
        session.system = "" if arguments == "none" else arguments
    return f"system message: {session.system}" if session.system else "no system message"


def _new(arguments: str, session: ChatSession) -> str:
    session.reset()
    return "a new conversation"


def _set(arguments: str, session: ChatSession) -> str:
    for assignment in arguments.split():
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"/set {assignment}: expected KEY=VALUE", hint="For example: /set temperature=0.7")
        session.set(key, value)
    return ", ".join(f"{key} = {value:g}" for key, value in asdict(session.generation).items())


def _export(arguments: str, session: ChatSession) -> str:
    from .chat_export import export

    if not arguments:
        raise ConfigError("/export needs a file ending in .md or .json", hint="For example: /export chat.md")
    file = Path(split_paths(arguments)[0]).expanduser()
    export(session, file)
    return f"written to {file}"


BUILT_IN = (
    Command("image", "PATH...", "attach pictures to the next message", _image),
    Command("images", "[remove N]", "list the pictures, or take a pending one back", _images),
    Command("system", "[TEXT|none]", "show or set the system message", _system),
    Command("set", "[KEY=VALUE]...", "temperature, top_k, top_p, max_new_tokens, seed", _set),
    Command("regen", "", "draw the last answer again"),
    Command("new", "", "forget this conversation", _new),
    Command("export", "FILE", "write the conversation to a .md or .json file", _export),
    Command("help", "", "keys and commands"),
    Command("quit", "", "leave"),
)
