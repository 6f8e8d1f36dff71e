"""The example packages, built and installed like anybody's, are found by name and conform."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ghostvis_plugins.settings import ROOT

EXAMPLES = {"ghostvis-patchmean": "encoder:patchmean", "ghostvis-swatches": "dataset:swatches"}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both packages installed by pip, without touching the network or this environment."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    packages = [str(ROOT / "examples" / name) for name in EXAMPLES]
    done = subprocess.run([*command, "--target", str(target), *packages], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def ghostvis(installed: Path, *arguments: str) -> dict:
    """The JSON a command prints in a process that sees the installed packages."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)])}
    command = [sys.executable, "-m", "ghostvis_cli", *arguments, "--json"]
    done = subprocess.run(command, env=env, cwd=installed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_installed_examples_are_listed(installed: Path) -> None:
    plugins = {info["dist"]: info for info in ghostvis(installed, "plugins", "list")["plugins"]}
    for dist, component in EXAMPLES.items():
        assert plugins[dist]["status"] == "active"
        assert plugins[dist]["components"] == [component]
        assert plugins[dist]["heavy"] == []
    rows = ghostvis(installed, "components", "list")["components"]
    assert set(EXAMPLES.values()) <= {f"{row['kind']}:{row['name']}" for row in rows}


@pytest.mark.parametrize("dist", EXAMPLES)
def test_installed_examples_conform(installed: Path, dist: str) -> None:
    report = ghostvis(installed, "plugins", "check", dist)
    assert report["ok"]
    assert [(row["component"], row["skipped"]) for row in report["components"]] == [(EXAMPLES[dist], [])]


def test_a_run_chooses_them_by_name(installed: Path) -> None:
    arguments = ["--encoder", "patchmean", "--dataset", "swatches", "--set", "dataset.swatches.size=5"]
    document = ghostvis(installed, "config", "show", "--recipe", "cpu/3-align", *arguments)
    assert document["values"]["encoder"] == {"name": "patchmean", "grid": 8, "dim": 64}
    assert document["values"]["dataset"]["swatches"]["size"] == 5
    assert document["plugins"]["ghostvis-patchmean"] == document["plugins"]["ghostvis-swatches"] == "0.1.0"
    assert str(installed) not in json.dumps(document)
