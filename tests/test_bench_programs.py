"""The measuring programs that the documents name run, in small, and print finite figures."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = {
    "checkpoints": "--depth 1 --tokens 32 --rounds 1",
    "ranks": "--ranks 1 2 --depth 1 --tokens 32 --steps 2",
    "lora": "--tokens 8 --steps 1",
    "overhead": "--blocks 1",
}
LONG = ("ranks", "lora", "overhead")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in SMALL])
def test_it_runs(name: str) -> None:
    command = [sys.executable, f"bench/{name}.py", *SMALL[name].split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = [
        float(word.replace(",", "")) for word in re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?|\bnan\b", done.stdout)
    ]
    assert len(figures) > 5
    assert all(map(math.isfinite, figures))
