"""Every command of the README runs, in its order, where the tiny preset stands for the cpu one."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Run, documented_commands, run_documented

COMMANDS = documented_commands(readme=True)


def test_they_are_found() -> None:
    assert len(COMMANDS) > 15


@pytest.mark.parametrize(("command", "file"), COMMANDS)
def test_it_runs(home: Path, warm: Run, installed: dict[str, str], command: str, file: str) -> None:
    run_documented(home, warm, installed, command, file)
