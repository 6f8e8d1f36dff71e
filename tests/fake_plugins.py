"""Installed plugins for tests: a module and its distribution metadata in a folder on ``sys.path``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

GOOD = """
from ghostvis_plugins import encoder, hookimpl

@hookimpl
def ghostvis_components():
    yield encoder("dinov3", config="ghostvis_dino.config:Config", build="ghostvis_dino.model:build")
"""

Install = Callable[..., None]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of ``sys.path``; what is imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def install(site: Path) -> Iterator[Install]:
    """``install("ghostvis-dino", source)`` puts a distribution and its module ``ghostvis_dino`` into ``site``."""
    before = set(sys.modules)

    def install(dist: str, source: str, *, entry: str = "", version: str = "0.3.0") -> None:
        write_plugin(site, dist, source, entry=entry, version=version)
        importlib.invalidate_caches()

    yield install
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(site.parent)):
            del sys.modules[name]


def write_plugin(folder: Path, dist: str, source: str, *, entry: str = "", version: str = "0.3.0") -> None:
    """Files of an installed distribution that provides one plugin."""
    module = dist.replace("-", "_")
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[ghostvis]\n{entry or module.removeprefix('ghostvis_')} = {module}\n")
