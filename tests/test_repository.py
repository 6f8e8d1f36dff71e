"""The repository speaks of itself alone: no machine, no registry address, no lock file with either, no dead file."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Written so that this file does not match itself.
FORBIDDEN = {
    "a folder of one machine": r"/(?:work|root|home/[a-z]+)/[a-z]",
    "a registry address": r"index-" + r"url\s*[=:]|/simple" + r"/[a-z]|registry\s*=\s*.?http|files\.python" + "hosted",
    "an issue number": r"\b(?:issue|card|task) ?#\d+",
}
TEXT = {".py", ".md", ".toml", ".json", ".jinja", ".tcss", ".txt", ".sh", ""}


def tracked() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.decode().split("\0") if name]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_tracked_file_names(what: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in tracked()
        if path.suffix in TEXT and path.is_file()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(FORBIDDEN[what], line)
    ]
    assert not found, "\n".join(found)


def test_no_lock_file_is_committed() -> None:
    assert not [path for path in tracked() if path.name in ("uv.lock", "poetry.lock", "Pipfile.lock")]


def test_every_module_is_imported_or_named_somewhere() -> None:
    """A file that nothing imports, names as a target or runs is dead."""
    sources = {path: path.read_text(encoding="utf-8") for path in tracked() if path.suffix in (".py", ".toml", ".md")}
    used = {
        path: _named(text) | (_imported(path, text) if path.suffix == ".py" else set())
        for path, text in sources.items()
    }
    packages = ("ghostvis_plugins", "ghostvis_cli", "components", "stages")
    dead = []
    for path in sources:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if path.suffix != ".py" or parts[0] not in packages or parts[-1] in ("__init__", "__main__"):
            continue
        if not any(".".join(parts) in names for other, names in used.items() if other != path):
            dead.append(".".join(parts))
    assert not dead


def _named(text: str) -> set[str]:
    """Dotted names, as in ``"components.resamplers.pooling:build"``."""
    return set(re.findall(r"\b[a-z_]+(?:\.[a-z_]+)+\b", text))


def _imported(path: Path, text: str) -> set[str]:
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts).rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            base = own.rsplit(".", node.level - 1)[0] if node.level > 1 else own
            target = ".".join(filter(None, [base if node.level else "", node.module or ""]))
            found |= {target, *(f"{target}.{name.name}" for name in node.names)}
    return found
