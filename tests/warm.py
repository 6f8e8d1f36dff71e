"""The ``ghostvis`` command as a process of its own, without its seconds of imports: ``python -P tests/warm.py``.

A server imports what commands import, and does nothing else. It reads an order a line, forks, and the child is the
command: its own folder, environment, output and exit. Where there is no fork, use the command itself.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

LIBRARIES = ("torch._dynamo", "torchvision.transforms", "matplotlib.figure", "pydantic_settings", "timm", "tokenizers")
PACKAGES = ("ghostvis_plugins", "components", "stages", "ghostvis_cli")
LEFT_OUT = {"ghostvis_cli.__main__", "ghostvis_plugins.testing"}  # the one runs, the other needs pytest


class Warm:
    """The server, from the side of the tests. A context manager."""

    def __init__(self, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Warm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()  # the end of its orders ends it

    def run(self, arguments: Sequence[str], folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """One command, as ``subprocess.run`` would run it with its output captured."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as output:
            paths = [Path(output) / name for name in ("stdout", "stderr")]
            order = {"argv": list(arguments), "cwd": str(folder), "env": env, "output": list(map(str, paths))}
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            assert answer, "the server is gone"
            said = [path.read_text(encoding="utf-8") for path in paths]
        return subprocess.CompletedProcess(list(arguments), int(answer), *said)


def serve() -> None:
    """Commands until the input ends."""
    for name in LIBRARIES:
        importlib.import_module(name)
    for name in PACKAGES:
        package = importlib.import_module(name)
        for found in pkgutil.walk_packages(package.__path__, f"{name}."):
            if found.name not in LEFT_OUT:
                importlib.import_module(found.name)
    gc.freeze()  # or each child would go through, and so copy, all of it
    answers = os.fdopen(os.dup(1), "w")
    while line := sys.stdin.readline():
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(order)
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        answers.flush()
    os._exit(0)


def become(order: dict[str, Any]) -> NoReturn:
    """The command, in a process that has only imported."""
    for number, path in ((1, order["output"][0]), (2, order["output"][1])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    importlib.invalidate_caches()
    sys.argv = ["ghostvis", *order["argv"]]
    from ghostvis_cli import app

    try:
        code = app.run(sys.argv[1:])
    except Exception:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # to take down what the server imported costs more than most commands do


if __name__ == "__main__":
    serve()
