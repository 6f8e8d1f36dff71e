"""Two real processes learn what one learns, in other micro-batches, and one continues what the other began."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import registry, values, write_tokenizer
from safetensors.torch import load_file

from components.trackers.jsonl import read_metrics
from ghostvis_plugins.errors import ConfigError, UnavailableError
from stages.checkpoint import verify
from stages.distributed import Distributed, autocast, choose_device
from stages.loop import MEASURED
from stages.runner import run

ROOT = Path(__file__).resolve().parents[1]
DEATH = {"name": "killer", "at": 8}


def alone(runs: list[Any], folder: Path) -> int:
    """Run them in one process; its exit status."""
    with (folder / "alone.txt").open("w") as log:
        command = [sys.executable, "tests/miniature.py", json.dumps(runs)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, timeout=300).returncode


def two_processes(runs: list[Any], folder: Path, program: Sequence[str] = ("tests/miniature.py",)) -> None:
    """Run them in two processes joined by gloo, as torchrun would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(2):
        with (folder / f"rank{rank}.txt").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *program, json.dumps(runs)],
                    cwd=ROOT,
                    env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(ROOT)},
                    stdout=log,
                    stderr=log,
                )
            )
    try:
        codes = [process.wait(300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], (folder / "rank0.txt").read_text() + (folder / "rank1.txt").read_text()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each run alone (``one``) and in two processes (``two``)."""
    folder = tmp_path_factory.mktemp("distributed")
    start = write_tokenizer(folder / "tokenizer")
    everything = {"projector": 1e-2, "backbone": 1e-2}
    plain = values(start, stage__train=everything, stage__checkpoint_every=6, stage__keep_checkpoints=9)
    text_alone = {"dataset": {"texts": {}}, "stage__checkpoint_every": 6, "stage__keep_checkpoints": 9}
    cases = {
        "plain": plain,
        "adamw": values(start, "pretrain", **text_alone),
        "muon": values(start, "pretrain", optimizer={"name": "muon"}, **text_alone),
        # One or two samples a step: often one rank has nothing to do, or only text where the other has pictures.
        "starved": values(start, stage__train={"projector": 1e-2}, stage__batch_tokens=20, stage__steps=20),
        "sft": values(start, "sft", stage__train=everything, stage__batch_tokens=40, optimizer={"name": "muon"}),
        "broken": values(
            start,
            stage__train=everything,
            dataset__colours__broken=5,
            dataset__colours__mute=2,
            stage__max_bad_fraction=0.2,
        ),
    }
    for name, given in cases.items():
        run(given, registry(), folder / "one" / name)
    resumed = folder / "two" / "resumed"
    shutil.copytree(folder / "one" / "plain", resumed)
    shutil.rmtree(resumed / "checkpoints" / "step_12")
    other_micro = {**plain, "stage": {**plain["stage"], "micro_tokens": 57, "pack_tokens": 100}}
    # Dies in step 8 with a look-ahead of several steps; two processes without any continue from step 6.
    ahead = {**plain["stage"], "workers": 2, "prefetch": 9}
    status = alone([[str(folder / "two" / "killed"), {**plain, "stage": ahead, "tracker": DEATH}, False]], folder)
    assert status == -signal.SIGKILL, (folder / "alone.txt").read_text()
    later = {**plain, "stage": {**plain["stage"], "workers": 1, "prefetch": 0}}
    background = {**plain, "stage": {**plain["stage"], "checkpoint_async": True, "checkpoint_every": 4}}
    runs = [[str(folder / "two" / name), given, False] for name, given in [*cases.items(), ("async", background)]]
    runs += [[str(folder / "two" / "micro"), other_micro, False], [str(resumed), plain, True]]
    runs += [[str(folder / "two" / "killed"), later, True]]
    two_processes(runs, folder)
    shutil.copytree(folder / "two" / "async", folder / "two" / "async-resumed")
    shutil.rmtree(folder / "two" / "async-resumed" / "checkpoints" / "step_12")
    two_processes([[str(folder / "two" / "async-resumed"), background, True]], folder)
    for name in ("adamw", "muon"):
        resumed = folder / "one" / f"{name}-resumed"
        shutil.copytree(folder / "two" / name, resumed)
        shutil.rmtree(resumed / "checkpoints" / "step_12")
        run(cases[name], registry(), resumed, resume=True)
    return folder


def assert_same(one: Path, two: Path) -> None:
    first, second = read_metrics(one), read_metrics(two)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        for key in ("step", "data_hash", "tokens", "target_tokens", "samples", "images", "bad_samples"):
            assert a[key] == b[key], key
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-6)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
    assert second[-1]["val_loss"] == pytest.approx(first[-1]["val_loss"], rel=1e-5)
    assert second[-1]["val_accuracy"] == pytest.approx(first[-1]["val_accuracy"], rel=1e-6)
    weights = [load_file(run_dir / "model" / "model.safetensors") for run_dir in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "adamw", "muon", "starved", "sft", "broken"])
def test_two_processes_equal_one(results: Path, name: str) -> None:
    assert_same(results / "one" / name, results / "two" / name)


def test_two_processes_with_other_micro_batches_equal_one(results: Path) -> None:
    assert_same(results / "one" / "plain", results / "two" / "micro")


def test_two_processes_continue_what_one_began(results: Path) -> None:
    assert_same(results / "one" / "plain", results / "two" / "resumed")


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_one_process_continues_what_two_began(results: Path, name: str) -> None:
    assert_same(results / "two" / name, results / "one" / f"{name}-resumed")


def test_every_rank_keeps_its_share_of_the_optimizer_state(results: Path) -> None:
    """Together they hold what one process holds, each tensor once, and matrices of one shape are on both ranks."""
    for name in ("adamw", "muon"):
        whole = load_file(results / "one" / name / "checkpoints" / "step_12" / "optimizer.safetensors")
        shards = [
            load_file(results / "two" / name / "checkpoints" / "step_12" / f"optimizer-{rank}-of-00002.safetensors")
            for rank in ("00001", "00002")
        ]
        assert shards[0].keys().isdisjoint(shards[1])
        assert whole.keys() == shards[0].keys() | shards[1].keys()
        sizes = [sum(tensor.nbytes for tensor in shard.values()) for shard in shards]
        assert sum(sizes) == sum(tensor.nbytes for tensor in whole.values())
        assert max(sizes) < 0.7 * sum(sizes)


def test_two_processes_continue_what_died(results: Path) -> None:
    assert_same(results / "one" / "plain", results / "two" / "killed")


@pytest.mark.parametrize("name", ["async", "async-resumed"])
def test_checkpoints_written_meanwhile_change_nothing(results: Path, name: str) -> None:
    """Bit for bit, also where two processes went on from one of them."""
    plain, other = results / "two" / "plain", results / "two" / name
    rows = [
        [{key: value for key, value in row.items() if key not in MEASURED} for row in read_metrics(run_dir)]
        for run_dir in (plain, other)
    ]
    assert rows[0] == rows[1]
    folder = Path("checkpoints") / "step_12"
    files = sorted(path.name for path in (plain / folder).iterdir())
    assert "optimizer-00002-of-00002.safetensors" in files
    assert [f for f in files if (plain / folder / f).read_bytes() != (other / folder / f).read_bytes()] == []
    assert [step for step in (4, 8) if verify(other / f"checkpoints/step_{step}") is not None] == []


def test_ranks_share_one_ledger(results: Path) -> None:
    """Each bad picture is seen by one rank only, and both must know, or one would stop and the other wait."""
    found = [
        {json.loads(line)["id"] for line in (results / world / "broken" / "bad_samples.jsonl").read_text().splitlines()}
        for world in ("one", "two")
    ]
    assert found[0] == found[1]
    assert len(found[0]) > 2


def test_only_the_main_rank_talks(results: Path) -> None:
    assert "trained" in (results / "rank0.txt").read_text()
    assert "trained" not in (results / "rank1.txt").read_text()


def test_one_process_needs_no_group() -> None:
    dist = Distributed()
    tensor = torch.ones(2)
    assert dist.sum_(tensor) is tensor
    assert dist.gather("x") == ["x"]
    dist.barrier()


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(UnavailableError, match="cuda:1: this machine has none"):
            choose_device("cuda:1")
    with pytest.raises(ConfigError, match="float16"):
        autocast("float16", torch.device("cpu"))
    with autocast("bfloat16", torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
