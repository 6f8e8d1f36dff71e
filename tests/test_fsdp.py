"""Weights shared out to two processes: what they learn, save and leave is what one process does."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from miniature import BACKBONE, registry, values, write_tokenizer
from safetensors.torch import load_file
from test_distributed import assert_same, two_processes
from test_parallel import model
from torch import Tensor

from components.optimizers.config import Muon
from components.optimizers.muon import build as build_muon
from components.trackers.jsonl import read_metrics
from ghostvis_plugins.errors import ConfigError
from stages import checkpoint
from stages.config import PretrainConfig
from stages.distributed import Distributed
from stages.loop import MEASURED
from stages.optim import apply_table
from stages.parallel import Sharded, shards_weights
from stages.runner import run

TIED = {
    **{"model_type": "qwen3", "dim": 16, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn": 32},
    **{"vocab_size": 330, "max_positions": 128, "rope_theta": 1e4, "qk_norm": True, "tie": True},
}


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in read_metrics(run_dir)]


def parts(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by name and by file; numbers that all ranks have are in any of these."""
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= {key if t.ndim == 0 else f"{path.name}: {key}": t for key, t in load_file(path).items()}
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each run alone (``one``), and shared out to two processes (``two``)."""
    folder = tmp_path_factory.mktemp("fsdp")
    start = write_tokenizer(folder / "tokenizer")
    often: dict[str, Any] = {
        "backbone": {**BACKBONE, "depth": 2},
        "stage__fsdp_above": 0,
        "stage__checkpoint_every": 6,
        "stage__eval_every": 6,
        "stage__keep_checkpoints": 9,
    }
    everything = {"projector": 1e-2, "backbone": 1e-2}
    cases = {
        "pretrain": values(start, "pretrain", dataset={"texts": {}}, **often),
        # One or two samples a step: often one rank has nothing to do, or only text where the other has pictures.
        "align": values(start, stage__train={"projector": 1e-2}, stage__batch_tokens=20, **often),
        "sft": values(
            start,
            "sft",
            stage__train={**everything, "encoder.layers": 1e-2},
            stage__features="none",
            stage__batch_tokens=40,
            stage__show_samples=1,
            encoder__layers=2,
            **often,
        ),
        "decoder": values(
            start,
            stage__train={"projector": 1e-2, "backbone.layers.-1:": 1e-2},
            **{**often, "backbone": {"name": "decoder", "weights": "random", "architecture": TIED}},
        ),
        "broken": values(
            start, stage__train=everything, dataset__colours__broken=5, stage__max_bad_fraction=0.2, **often
        ),
    }
    low = values(start, "pretrain", dataset={"texts": {}}, dtype="bfloat16", **often)
    for name, given in cases.items():
        run(given, registry(), folder / "one" / name)
    low_async = {**low, "stage": {**low["stage"], "checkpoint_async": True}}
    more = [("low", low), ("low-async", low_async)]
    runs = [[str(folder / "two" / name), given, False] for name, given in [*cases.items(), *more]]
    two_processes(runs, folder)
    for source, target in (
        ("two/low-async", "two/low-resumed"),
        ("one/sft", "two/sft-resumed"),
        ("two/sft", "one/resumed"),
    ):
        shutil.copytree(folder / source, folder / target)
        shutil.rmtree(folder / target / "checkpoints" / "step_12")
    later = [("low-resumed", low_async), ("sft-resumed", cases["sft"])]
    two_processes([[str(folder / "two" / name), given, True] for name, given in later], folder)
    run(cases["sft"], registry(), folder / "one" / "resumed", resume=True)
    return folder


@pytest.mark.parametrize("name", ["pretrain", "align", "sft", "decoder", "broken"])
def test_shared_out_weights_learn_the_same(results: Path, name: str) -> None:
    assert_same(results / "one" / name, results / "two" / name)


def test_checkpoints_are_for_any_number_of_ranks(results: Path) -> None:
    assert_same(results / "one" / "sft", results / "two" / "sft-resumed")
    assert_same(results / "two" / "sft", results / "one" / "resumed")


def test_the_same_layout_continues_to_the_bit_also_in_bfloat16(results: Path) -> None:
    """What resumes from a checkpoint that was written while training went on is what never did such a thing."""
    whole, behind, resumed = (results / "two" / name for name in ("low", "low-async", "low-resumed"))
    assert rows(whole) == rows(behind) == rows(resumed)
    for run_dir, step in ((behind, 6), (behind, 12), (resumed, 12)):
        first, second = (parts(folder / f"checkpoints/step_{step}") for folder in (whole, run_dir))
        assert first.keys() == second.keys()
        assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    saved = load_file(whole / "checkpoints" / "step_12" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}  # what is computed in is no weight
    exported = load_file(whole / "model" / "model.safetensors")
    assert all(torch.equal(exported[name], tensor) for name, tensor in saved.items())


def test_each_rank_keeps_half_of_each_tensor(results: Path) -> None:
    folder = results / "two" / "sft" / "checkpoints" / "step_12"
    assert checkpoint.verify(folder) is None
    halves = [load_file(folder / f"optimizer-{rank}-of-00002.safetensors") for rank in ("00001", "00002")]
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if f"{name}/exp_avg" in halves[0] and tensor.shape[0] > 1:
            rows = [len(half[f"{name}/exp_avg"]) for half in halves]
            assert sum(rows) == len(tensor)
            assert abs(rows[0] - rows[1]) <= 1
    sizes = [sum(tensor.nbytes for tensor in half.values()) for half in halves]
    assert max(sizes) < 0.55 * sum(sizes)


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_muon_needs_whole_matrices_and_says_so(group: None) -> None:
    net = model().to_empty(device="cpu")
    config = PretrainConfig(steps=1, fsdp_above=1e3)
    apply_table(net, config.train)
    with pytest.raises(ConfigError, match="fsdp_above = 1000 shares out tensors"):
        Sharded(net, Distributed(), config, lambda groups: build_muon(Muon(), groups=groups), "float32")


def test_a_disk_that_fails_one_rank_is_the_systems_error(group: None, tmp_path: Path) -> None:
    """Not the library's own, which no caller expects and the loop could not act upon."""
    (tmp_path / "full").write_text("no folder")
    with pytest.raises(OSError, match="full") as caught:
        checkpoint._write_shards({"a/exp_avg": torch.ones(3)}, tmp_path / "full", Distributed())
    assert caught.value.errno in (errno.EEXIST, errno.ENOTDIR)


def test_it_is_for_large_models_in_several_processes() -> None:
    net = model()
    size = sum(parameter.numel() for parameter in net.parameters())
    two = Distributed(0, 2)
    assert shards_weights(net, PretrainConfig(steps=1, fsdp_above=size - 1), two)
    assert not shards_weights(net, PretrainConfig(steps=1, fsdp_above=size), two)
    assert not shards_weights(net, PretrainConfig(steps=1), two)
    assert not shards_weights(net, PretrainConfig(steps=1, fsdp_above=0), Distributed())
