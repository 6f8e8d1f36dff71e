"""Versions and the commit, for resolved.json and ``doctor``. Reads metadata; imports nothing heavy."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata

from .settings import ROOT, read_toml


def ghostvis_version() -> str:
    """The installed version, or that of ``pyproject.toml`` in a checkout that is not installed."""
    try:
        return metadata.version("ghostvis")
    except metadata.PackageNotFoundError:
        return str(read_toml(ROOT / "pyproject.toml")["project"]["version"])


def package_version(name: str) -> str | None:
    """The version of an installed distribution, without importing it; None when it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """The three that a result depends on most."""
    return {
        "ghostvis": ghostvis_version(),
        "python": platform.python_version(),
        "torch": package_version("torch"),
    }


def git_commit() -> str | None:
    """The commit of the checkout ghostvis runs from, ``-dirty`` with local changes; None outside a checkout."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
