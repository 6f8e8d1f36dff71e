"""The command line as a user has it: the installed command as a process, in a folder where the tiny preset has run.

Also the commands of the documentation, and how they are run. ``conftest.py`` makes the fixtures known to all tests.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from warm import Warm

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONSAFEPATH": "1", "NO_COLOR": "1", "COLUMNS": "120"}
GHOSTVIS = [sys.executable, "-m", "ghostvis_cli"]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md"]

Run = Callable[..., "subprocess.CompletedProcess[str]"]

# What stands in for the long part of a command from the documentation, or for what a test must not do.
SHORT = {
    "cpu/1-tokenizer": ["--set", "stage.max_samples=300"],
    "stage": ["--set", "stage.steps=2", "--set", "stage.eval_samples=8", "--set", "stage.eval_every=0"],
    "eval": ["--limit", "20"],
}
NOT_RUN = {"make speedrun", "make test", "pip install"}  # .ci/run and test_plugins run these


def ghostvis(folder: Path, *arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in ``folder``; the installed one, whatever the folder holds."""
    env = {**ENVIRONMENT, **environment}
    done = subprocess.run([*GHOSTVIS, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    return checked(done, code)


def checked(done: subprocess.CompletedProcess[str], code: int) -> subprocess.CompletedProcess[str]:
    assert done.returncode == code, f"{done.args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="session")
def warm() -> Iterator[Run]:
    """The same for commands by the dozen: each a process, forked from one that has imported what they import."""
    if not hasattr(os, "fork"):
        yield ghostvis
        return
    with Warm(ENVIRONMENT) as server:

        def run(folder: Path, *arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
            return checked(server.run(arguments, folder, {**ENVIRONMENT, **environment}), code)

        yield run


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of a test run have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def trained(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the rehearsal preset has run from nothing: once, however many processes ask for it."""
    done = shared / "trained"
    with FileLock(shared / "trained.lock"):
        if not done.exists():
            fresh = tmp_path_factory.mktemp("fresh")
            ghostvis(fresh, "speedrun", "--preset", "tiny", "--eval-limit", "40")
            fresh.rename(done)
    return done


@pytest.fixture(scope="module")
def copied(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it, whose tests come one after the other and see what those before them left."""
    return shutil.copytree(trained, tmp_path_factory.mktemp("copy") / "home", symlinks=True)


@pytest.fixture
def home(copied: Path) -> Iterator[Path]:
    """That copy, for a test; its own runs don't stay the newest model."""
    yield copied
    (copied / "runs/latest").unlink()
    (copied / "runs/latest").symlink_to("tiny-4-sft/model")


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the example packages are installed."""
    site = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    packages = [str(ROOT / "examples" / name) for name in ("ghostvis-patchmean", "ghostvis-swatches")]
    subprocess.run([*install, str(site), *packages], check=True, capture_output=True)
    return {"PYTHONPATH": str(site)}


def documented_commands(*, readme: bool) -> list[tuple[str, str]]:
    """Every ``ghostvis`` line of the shell blocks of the README, or of the other documents, and its file, in order."""
    found: dict[str, str] = {}
    for file in DOCS:
        blocks = re.findall(r"^```(\w*)\n(.*?)^```|((?:^    .*\n)+)", file.read_text(), flags=re.M | re.S)
        for language, fenced, indented in blocks:
            if language not in ("", "sh", "bash"):
                continue
            for line in (fenced or indented).replace("\\\n", " ").splitlines():
                command = re.sub(r"\s+#.*$", "", line.strip()).replace(".venv/bin/", "")
                if command.startswith(("ghostvis ", "make ", "pip ")):
                    found.setdefault(command, file.relative_to(ROOT).as_posix())
    return [(command, file) for command, file in found.items() if (file == "README.md") == readme]


def make_data_of_a_reader(home: Path) -> None:
    """What the documentation supposes in /data and in the working folder."""
    from published_files import chartqa_official, vqav2_official

    chartqa_official(home / "data/ChartQA")
    vqav2_official(home / "data/vqa")
    (home / "data/coco").symlink_to(home / "data/vqa/pictures")
    said = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello, you"}]}
    (home / "mine.jsonl").write_text(f"{json.dumps(said)}\n" * 40)


def run_documented(home: Path, warm: Run, installed: dict[str, str], command: str, file: str) -> None:
    """Run a command of ``file``, shortened; those that other tests run are left to them."""
    if any(command.startswith(prefix) for prefix in NOT_RUN):
        return
    words = [word.replace("runs/cpu", "runs/tiny") for word in shlex.split(command)[1:]]
    if words[0] == "train" and "--dry-run" not in words:
        words += SHORT["cpu/1-tokenizer"] if "cpu/1-tokenizer" in words else SHORT["stage"]
    if words[0] == "eval":
        words += SHORT["eval"]
    if words[0] == "speedrun" and "--dry-run" not in words:
        pytest.skip("the fixture runs it")
    if words[0] == "chat" and "--prompt" not in words:
        words += ["--prompt", "hello"]  # off a terminal there is nobody to talk to
    if not (home / "tests").exists():
        (home / "tests").symlink_to(ROOT / "tests")
        (home / "examples").symlink_to(ROOT / "examples")
        make_data_of_a_reader(home)
        if file != "README.md":  # whose reader has trained it
            (home / "runs/seeing").symlink_to("tiny-3-align")
    words = [word.replace("=/data/", f"={home}/data/") for word in words]
    warm(home, *words, **(installed if file.startswith("examples/") else {}))
