"""Arrows point one way, and the contract costs no torch. Read from the syntax tree, so nothing can hide in a branch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostvis_plugins.settings import ROOT

LAYERS = ("ghostvis_plugins", "components", "stages", "ghostvis_cli")  # each may import those before it
HEAVY = ("torch", "torchvision", "timm", "numpy", "textual", "webdataset", "pydantic_settings", "matplotlib")
MODULES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


def imports(node: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """``(line, absolute module)`` of every import below a node."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            yield from ((inner.lineno, alias.name) for alias in inner.names)
        elif isinstance(inner, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - inner.level + 1] if inner.level else []
            yield inner.lineno, ".".join([*base, inner.module] if inner.module else base)


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_arrows_point_one_way(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    above = LAYERS[LAYERS.index(layer) + 1 :]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    wrong = [(line, name) for line, name in imports(tree, package_of(path)) if name.split(".")[0] in above]
    assert not wrong


def test_the_check_above_sees_every_spelling() -> None:
    code = "import stages.x\nfrom stages import y\ndef f():\n    from ..stages import z\n"
    found = [name for _, name in imports(ast.parse(code), "components.encoders")]
    assert found == ["stages.x", "stages", "components.stages"]


def top_level_imports(path: Path) -> set[str]:
    """Modules that importing a file imports: neither in functions nor for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    todo: list[ast.stmt] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If):
            todo += [] if "TYPE_CHECKING" in ast.dump(node.test) else node.body
            todo += node.orelse
        elif isinstance(node, ast.Try | ast.With | ast.ClassDef):
            todo += node.body
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {name.split(".")[0] for _, name in imports(node, package_of(path))}
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "ghostvis_plugins").glob("*.py")), ids=name_of)
def test_the_contract_imports_nothing_heavy(path: Path) -> None:
    allowed = {"pydantic_settings"} if path.name == "config.py" else set()
    assert not top_level_imports(path) & set(HEAVY) - allowed


def test_importing_the_contract_loads_no_torch() -> None:
    modules = [f"ghostvis_plugins.{path.stem}" for path in (ROOT / "ghostvis_plugins").glob("*.py")]
    code = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "torchvision", "timm", "numpy", "textual"} & set(done.stdout.split())


@pytest.mark.parametrize(
    "path", sorted((*ROOT.glob("components/**/builtin.py"), ROOT / "stages" / "builtin.py")), ids=name_of
)
def test_the_built_ins_use_the_public_contract_only(path: Path) -> None:
    """The proof that the contract is enough for everybody. Declarations may be in several files."""
    found = {name for _, name in imports(ast.parse(path.read_text()), package_of(path))}
    assert {name for name in found if not name.endswith(".builtin")} <= {
        "__future__", "collections.abc", "ghostvis_plugins",
    }  # fmt: skip


@pytest.mark.parametrize("folder", sorted((ROOT / "examples").glob("*/")), ids=lambda path: path.name)
def test_an_example_plugin_is_short_and_imports_the_contract_only(folder: Path) -> None:
    lines = 0
    for path in folder.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        lines += sum(bool(line.strip()) for line in text.splitlines())
        ours = {name for _, name in imports(ast.parse(text), "x") if name.split(".")[0] in LAYERS}
        assert all(name.startswith("ghostvis_plugins") for name in ours)
    assert 0 < lines <= 30
