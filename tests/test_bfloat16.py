"""Runs whose weights are bfloat16: they learn, may be cut anywhere, and two processes do what one does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import registry, values, write_tokenizer
from safetensors.torch import load_file
from test_distributed import two_processes

from components.trackers.jsonl import read_metrics
from ghostvis_plugins.errors import ConfigError
from stages.loop import MEASURED
from stages.runner import run

BACKBONE = {
    "name": "decoder",
    "weights": "random",
    "dtype": "bfloat16",
    "architecture": {
        "model_type": "qwen2", "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 48,
        "vocab_size": 512, "max_positions": 128, "rope_theta": 1e4, "norm_eps": 1e-6, "qkv_bias": True, "tie": True,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("bfloat16")
    write_tokenizer(home / "tokenizer")
    run(given(home), registry(), home / "run")
    return home


def given(home: Path, **more: Any) -> dict[str, Any]:
    options = {
        "stage__steps": 20,
        "stage__train": {"projector": 1e-2, "backbone": 1e-2},
        "stage__checkpoint_every": 8,
        "stage__keep_checkpoints": 9,
        "stage__clip": 0.5,
        "backbone": BACKBONE,
        "optimizer": {"name": "adamw"},
    }
    return values(home / "tokenizer", "sft", **{**options, **more})


def learnt(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in read_metrics(folder)]


def test_it_learns_and_leaves_bfloat16_weights(finished: Path) -> None:
    rows = learnt(finished / "run")
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    weights = load_file(finished / "run/model/model.safetensors")
    types = {name: tensor.dtype for name, tensor in weights.items() if name.startswith(("backbone.", "projector."))}
    assert {dtype for name, dtype in types.items() if name.startswith("backbone.")} == {torch.bfloat16}
    assert {dtype for name, dtype in types.items() if name.startswith("projector.")} == {torch.float32}
    state = load_file(finished / "run/checkpoints/step_20/optimizer.safetensors")
    assert {tensor.dtype for name, tensor in state.items() if name.endswith("/low")} == {torch.int16}


def test_a_resumed_run_is_the_same_run(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    for left in ("model", "checkpoints/step_16", "checkpoints/step_20"):
        shutil.rmtree(tmp_path / "run" / left)
    run(given(finished), registry(), tmp_path / "run", resume=True)
    assert learnt(tmp_path / "run") == learnt(finished / "run")
    for file in ("model/model.safetensors", "checkpoints/step_20/optimizer.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (finished / "run" / file).read_bytes()


def test_two_processes_learn_what_one_learns(finished: Path, tmp_path: Path) -> None:
    """As far as bfloat16 gradients are the same sums; and one goes on from what two saved."""
    two_processes([[str(tmp_path / "two"), given(finished), False]], tmp_path)
    one, two = learnt(finished / "run"), learnt(tmp_path / "two")
    assert [row["data_hash"] for row in one] == [row["data_hash"] for row in two]
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-3)
    assert two[-1]["loss"] == pytest.approx(one[-1]["loss"], rel=0.1)
    for left in ("model", "checkpoints/step_16", "checkpoints/step_20"):
        shutil.rmtree(tmp_path / "two" / left)
    run(given(finished), registry(), tmp_path / "two", resume=True)
    assert learnt(tmp_path / "two")[-1]["loss"] == pytest.approx(two[-1]["loss"], rel=0.1)


def test_muon_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the optimizer 'muon' trains float32 weights only"):
        run(given(finished, optimizer={"name": "muon"}), registry(), tmp_path / "run")
