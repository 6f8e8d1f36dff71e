"""Presets: what a dry run finds out without data, and that a speedrun goes on from wherever it was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ghostvis_cli.rehearsal import H100_FLOPS, UTILISATION, cards_of, rehearse
from ghostvis_cli.speedrun import presets
from stages.depth import Horizon

STAGES = ["tokenizer", "pretrain", "mid", "align", "sft"]


def test_a_presets_name_says_what_it_is_for() -> None:
    assert [cards_of(name) for name in ("cpu", "gpu", "smol", "1xh100", "8xh100")] == [0, 0, 0, 1, 8]
    assert {"cpu", "gpu", "tiny", "smol", "1xh100", "8xh100"} <= set(presets())


@pytest.mark.parametrize(("preset", "depth", "cards"), [("1xh100", 12, 1), ("8xh100", 20, 8)])
def test_the_large_presets_fit_together_without_their_data(
    preset: str, depth: int, cards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every model is put together on what the stage before leaves, in an empty folder, off line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = rehearse(presets()[preset], cards)
    assert [row["stage"] for row in rows] == STAGES
    words, pretrain, mid, align, sft = rows
    horizon = Horizon.of(depth, 32_768)
    assert pretrain["tokens"] == pytest.approx(horizon.tokens, rel=0.001)
    assert pretrain["flops"] == pytest.approx(6 * horizon.parameters * horizon.tokens, rel=0.1)  # and some attention
    assert pretrain["seconds"] == pytest.approx(pretrain["flops"] / (cards * H100_FLOPS * UTILISATION))
    assert pretrain["parameters"] == mid["parameters"] < align["parameters"] == sft["parameters"]
    assert words["flops"] is None
    assert all(row["peak_bytes"] < 75e9 for row in rows[1:])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("preset", ["tiny", "gpu", "smol"])
def test_the_small_presets_are_rehearsed_as_well(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = rehearse(presets()[preset], 0)
    assert [row["recipe"] for row in rows] == presets()[preset]
    assert all(row["seconds"] is None for row in rows)
    assert rows[-1]["flops"] > 0


TINY = {
    "1-words": '[stage]\nname = "tokenizer"\nvocab_size = 400\nmax_samples = 200\neval_samples = 20\n',
    "2-text": '[stage]\nname = "pretrain"\nsteps = 6\ntrain = { backbone = 1e-3 }\n',
    "3-mid": '[stage]\nname = "mid"\nsteps = 6\n',
}
SHARED = (
    "batch_tokens = 256\nmicro_tokens = 256\neval_samples = 0\nshow_samples = 0\ncheckpoint_every = 2\n"
    'eval = ["chat_perplexity"]\n[backbone]\nname = "gpt"\ndepth = 1\nmax_positions = 256\n'
)
DATA = '[dataset.chatterbot]\nform = "documents"\n'
RUN = """
import sys
from pathlib import Path
from ghostvis_plugins import layers
layers.recipe_folders = lambda: [Path("recipes")]
from ghostvis_cli import app
sys.exit(app.run(["speedrun", "--preset", "own", "--eval-limit", "4"]))
"""


def start(folder: Path) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": root, "NO_COLOR": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", RUN], cwd=folder, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def kill_when(process: subprocess.Popen[str], seen: Path) -> None:
    """A power cut as soon as a file is there."""
    end = time.monotonic() + 240
    while not seen.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    assert seen.exists(), process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_a_speedrun_goes_on_from_wherever_it_was_killed(tmp_path: Path) -> None:
    """Killed within a stage, between two, and before the evaluation; it ends as one that nobody disturbed."""
    for folder in ("killed", "whole"):
        for name, text in TINY.items():
            file = tmp_path / folder / "recipes/own" / f"{name}.toml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + (SHARED if name != "1-words" else "") + DATA)
    runs = tmp_path / "killed/runs"
    kill_when(start(tmp_path / "killed"), runs / "own-1-words/model/config.json")
    kill_when(start(tmp_path / "killed"), runs / "own-2-text/checkpoints/step_2")
    kill_when(start(tmp_path / "killed"), runs / "own-3-mid/resolved.json")
    for folder in ("killed", "whole"):
        process = start(tmp_path / folder)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert said.count("is complete") == (2 if folder == "killed" else 0)
    for stage in ("2-text", "3-mid"):
        one, two = (
            [json.loads(line) for line in (tmp_path / f / f"runs/own-{stage}/metrics.jsonl").read_text().splitlines()]
            for f in ("killed", "whole")
        )
        assert [(row["step"], row["loss"], row["data_hash"]) for row in one] == [
            (row["step"], row["loss"], row["data_hash"]) for row in two
        ]
    assert (runs / "own/report.md").is_file()
