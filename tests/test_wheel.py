"""The wheel holds all that a checkout has, and nothing of the tests; it works from anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ghostvis_plugins.settings import ROOT

PIP = [sys.executable, "-m", "pip", "--quiet"]
OFFLINE = ["--no-index", "--no-deps"]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("ghostvis-*.whl")
    return found


def test_contents(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"ghostvis_plugins/plugins.toml", "ghostvis_plugins/py.typed"} <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "components", "ghostvis_cli", "ghostvis_plugins", "stages",
    }  # fmt: skip
    for folder in ("components", "ghostvis_cli", "ghostvis_plugins", "stages"):
        kept = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py")}
        assert kept <= names
    recipes = {
        f"ghostvis_cli/recipes/{path.relative_to(ROOT / 'recipes')}" for path in (ROOT / "recipes").rglob("*.toml")
    }
    assert recipes
    assert recipes <= names


def test_installed_it_works_in_a_folder_with_its_own_components(wheel: Path, tmp_path: Path) -> None:
    target, here = tmp_path / "site", tmp_path / "here"
    subprocess.run([*PIP, "install", *OFFLINE, "--target", str(target), str(wheel)], check=True, capture_output=True)
    (here / "components").mkdir(parents=True)
    (here / "components" / "__init__.py").write_text("raise SystemExit('the wrong components')")
    (here / "stages.py").write_text("raise SystemExit('the wrong stages')")
    env = {**os.environ, "PYTHONPATH": str(target), "GHOSTVIS_CONFIG_DIR": str(tmp_path)}

    def ghostvis(*arguments: str) -> dict:
        command = [sys.executable, "-m", "ghostvis_cli", *arguments, "--json"]
        done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert {info["status"] for info in ghostvis("plugins", "list")["plugins"]} == {"active"}
    assert ghostvis("config", "show", "--recipe", "cpu/3-align")["origins"]["engine.name"] == "packaged plugins.toml"
    where = "import ghostvis_cli, components, stages; print(components.__file__, stages.__file__)"
    done = subprocess.run([sys.executable, "-c", where], cwd=here, env=env, capture_output=True, text=True, check=True)
    assert all(Path(word).is_relative_to(target) for word in done.stdout.split())
