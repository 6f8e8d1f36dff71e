"""What a user can do wrong, and the exit code each mistake ends with.

Every error a person can cause is a :class:`GhostVisError`: its message says what is wrong, where the
value came from and what to do. The command line prints it on one or a few lines, without a traceback
(``--debug`` shows one), and exits with the code of its class. Anything else that is raised is a defect.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """Documented exit codes of every ``ghostvis`` command and of its workers."""

    OK = 0
    FAILED = 1  # the run itself failed
    USAGE = 2  # wrong command line (typer's own code)
    CONFIG = 3  # invalid configuration: unknown key, wrong value, dimensions that do not fit
    MISSING = 4  # a component, plugin, stage, recipe, preset or model does not exist
    ENVIRONMENT = 5  # no network, no CUDA, an optional dependency or weights out of reach
    DATA = 6  # unreadable or corrupt input: image, checkpoint, package, data set
    REQUEUE = 85  # stopped by SIGTERM or SIGUSR1 with a checkpoint saved: start it again with --resume
    INTERRUPTED = 130


class GhostVisError(Exception):
    """A mistake that is reported in plain words. ``hint`` says what to do about it."""

    exit_code: ExitCode = ExitCode.FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class ConfigError(GhostVisError):
    """A value that cannot be used, wherever it came from."""

    exit_code = ExitCode.CONFIG


class MissingError(GhostVisError):
    """A name that nothing provides."""

    exit_code = ExitCode.MISSING


class UnavailableError(GhostVisError):
    """Something outside the project is out of reach: network, device, optional package, weights."""

    exit_code = ExitCode.ENVIRONMENT


class DataError(GhostVisError):
    """Input that cannot be read or that is not what it claims to be."""

    exit_code = ExitCode.DATA


class RequeueError(GhostVisError):
    """A run that was asked to stop, has saved its state, and can be continued: no mistake, and not the end."""

    exit_code = ExitCode.REQUEUE


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'siglip'?"`` when a known name is close to ``name``, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
