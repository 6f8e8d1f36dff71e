"""The ``ghostvis`` command: one Typer application, one module per command group.

Command modules hold signatures and import what they do inside their functions: help, listings and completion must
not pay for torch, pydantic or a terminal interface. A test asserts what is imported.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from ghostvis_plugins import ExitCode, GhostVisError
from ghostvis_plugins.manager import PluginInfo, Registry

from . import (
    chat,
    checkpoints,
    components,
    config,
    data,
    doctor,
    evaluate,
    plugins,
    recipes,
    runs,
    slurm,
    speedrun,
    train,
    weights,
)
from .output import epilog, note, rich_help, warn
from .session import debugging, registry, take_global_options

GROUPS = (
    speedrun,
    train,
    slurm,
    runs,
    evaluate,
    chat,
    data,
    weights,
    checkpoints,
    components,
    plugins,
    recipes,
    config,
    doctor,
)

EXIT_CODES = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "the run itself failed",
    ExitCode.USAGE: "wrong command line",
    ExitCode.CONFIG: "invalid configuration",
    ExitCode.MISSING: "no such component, plugin, stage, recipe or model",
    ExitCode.ENVIRONMENT: "network, device, package or weights out of reach",
    ExitCode.DATA: "unreadable image, checkpoint or data",
    ExitCode.REQUEUE: "stopped by SIGTERM or SIGUSR1, checkpoint saved: continue with --resume",
    ExitCode.INTERRUPTED: "interrupted",
}


def build_app() -> typer.Typer:
    """The application without the commands of plugins."""
    app = typer.Typer(
        name="ghostvis",
        no_args_is_help=True,
        rich_markup_mode="rich" if rich_help() else None,
        pretty_exceptions_enable=False,
        epilog=epilog("Exit codes:", *(f"{code.value:3}  {meaning}" for code, meaning in EXIT_CODES.items())),
    )
    app.callback()(_global_options)
    for group in GROUPS:
        group.register(app)
    return app


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script: runs one command and exits with its documented code."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """One command; returns its exit code. A user's mistake is a message, not a traceback."""
    try:
        arguments = take_global_options(argv)
        app = build_app()
        add_plugin_commands(app, registry())
        app(args=arguments, prog_name="ghostvis")
    except GhostVisError as error:
        if debugging():
            raise
        note(f"ghostvis: error: {error}")
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return int(ExitCode.OK)


def add_plugin_commands(app: typer.Typer, found: Registry) -> None:
    """Let each plugin add its commands to a fresh application first, so that a bad one spoils only itself."""
    with_commands = [info for info in found.plugins if info.commands]
    known = set(typer.main.get_group(app).commands) if with_commands else set()
    for info in with_commands:
        try:
            own = _commands_of(found, info)
            names = set(typer.main.get_group(own).commands)
            if names & known:
                raise ValueError(f"command '{min(names & known)}' exists already")
        except (Exception, SystemExit) as error:
            found.mark_broken(info, error)
            warn(f"plugin '{info.name}' ({info.dist}) is left out: {info.error}")
            continue
        known |= names
        app.registered_commands += own.registered_commands
        app.registered_groups += own.registered_groups


def _commands_of(found: Registry, info: PluginInfo) -> typer.Typer:
    own = typer.Typer()
    with contextlib.redirect_stdout(sys.stderr):
        found.call_commands_hook(info, own)
    if own.registered_callback is not None:
        raise ValueError("ghostvis_commands must not set a callback")
    if not own.registered_commands and not own.registered_groups:
        raise ValueError("ghostvis_commands added no command")
    return own


def _version(value: bool) -> None:
    if value:
        from ghostvis_plugins.versions import ghostvis_version

        print(f"ghostvis {ghostvis_version()}")
        raise typer.Exit


def _global_options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (or GHOSTVIS_DEBUG=1).")] = False,
    no_plugins: Annotated[bool, typer.Option("--no-plugins", help="Load no third-party plugin.")] = False,
    plugin: Annotated[
        list[str] | None, typer.Option("--plugin", help="Load a plugin from a Python file.", metavar="FILE")
    ] = None,
) -> None:
    """Train a vision-language model end to end, and talk to it.

    Begin with ghostvis speedrun, then ghostvis chat. Every command has --help, with examples.
    """
    # The options are listed here for --help; take_global_options has applied and removed them.
