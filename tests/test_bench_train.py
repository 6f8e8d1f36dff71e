"""The training benchmark: both sides do the same work, every row runs in small, and a failed one is an exit code."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[1]
ROWS = ["qwen", "sft-256", "sft-64", "sft-mix", "align-256", "align-64", "encoder", "gpt-12", "gpt-20"]


@pytest.fixture(scope="module")
def sides() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        yield importlib.import_module("sides")
    finally:
        sys.path.remove(str(ROOT / "bench"))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "bench/train.py", "--tiny", "--steps", "2", "--warm", "1", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 9), group=st.integers(0, 4), micro=st.integers(1, 5), tokens=st.integers(1, 5))
def test_both_sides_learn_the_same_tokens(sides: ModuleType, count: int, group: int, micro: int, tokens: int) -> None:
    work, peers = (importlib.import_module(f"sides.{name}") for name in ("work", "peers"))
    made = work.questions(
        count, (1, 4), (1, 6), 50, tokens_per_image=tokens, image_size=16, text_only=0.3, group=group, steps=2
    )
    for samples in made.steps:
        rendered = [sample.render("x", tokens, made.marker) for sample in samples]
        batches = peers.Padded(made, samples, micro, False).batches
        learnt = [i for r in rendered for i, wanted in zip(r.ids, r.loss_mask, strict=True) if wanted]
        assert [i for _, labels, *_ in batches for i in labels[labels != peers.IGNORED].tolist()] == learnt
        assert sum(int((ids == made.marker).sum()) for ids, *_ in batches) == sum(r.ids.count(50) for r in rendered)
        assert sum(0 if pixels is None else len(pixels) for *_, pixels, _ in batches) == sum(
            len(r.images) for r in rendered
        )
        assert math.isclose(sum(share for *_, share in batches), 1)


def test_a_weight_that_stays_or_a_loss_that_is_no_number_is_seen(sides: ModuleType) -> None:
    measuring = importlib.import_module("sides.measuring")
    net = torch.nn.Linear(2, 2)

    class Still:
        def __init__(self, loss: float = 1.0) -> None:
            self.losses = [loss]

        def model(self) -> torch.nn.Module:
            return net

    before = measuring.checksums(net)
    with pytest.raises(RuntimeError, match="did not move: \\['weight'\\]"):
        measuring.check_learnt(Still(), before)
    net.weight.data.add_(1e-3)
    measuring.check_learnt(Still(), before)
    frozen = {name: (False, bits) for name, (_, bits) in before.items()}
    net.requires_grad_(False)
    with pytest.raises(RuntimeError, match="moved though frozen"):
        measuring.check_learnt(Still(), frozen)
    with pytest.raises(RuntimeError, match="not finite"):
        measuring.check_learnt(Still(math.nan), measuring.checksums(net))


def test_the_largest_size_that_fits_is_taken(sides: ModuleType) -> None:
    measuring = importlib.import_module("sides.measuring")

    class Full:
        def __init__(self) -> None:
            self.size, self.forgot = 0, 0

        def prepare(self, micro: int) -> None:
            self.size = micro

        def run(self, count: int) -> list[float]:
            if self.size > 5:
                raise torch.OutOfMemoryError
            return [1.0] * count

        def forget(self) -> None:
            self.forgot += 1

    side = Full()
    assert measuring.settle(side, [16, 8, 4, 2], 1, torch.device("cpu")) == side.size == 4
    assert side.forgot == 2
    with pytest.raises(torch.OutOfMemoryError):
        measuring.settle(Full(), [16, 8], 1, torch.device("cpu"))


@pytest.mark.slow
def test_every_row_runs_in_small(tmp_path: Path) -> None:
    done = run("--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ROWS
    for row in rows:
        assert row["our_figure"] > 0
        assert f"| {row['name']} |" in done.stdout
        if row["name"].startswith("gpt"):
            assert row["peer_figure"] is None
            assert "--nanochat" in row["peer_name"]
        else:
            assert row["ratio"] == pytest.approx(row["our_figure"] / row["peer_figure"])
    # Fewer products than in the counted operations cannot be a ceiling.
    assert rows[0]["ceiling"]["of_counted_flops"] == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_a_failed_row_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    done = run("--only", "gpt-12", "qwen", "--set", "backbone.softcap=20", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 1
    first, second = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert first["our_figure"] > 0
    assert "failed" not in first
    assert second["failed"].startswith("ours: ConfigError")
    assert second["peer_figure"] > 0
    assert "failed: ours: ConfigError" in done.stdout
