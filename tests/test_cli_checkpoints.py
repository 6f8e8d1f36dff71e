"""`ghostvis ckpt` over checkpoints of small models, whole and damaged; `train --max-restarts` over a killed worker."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import slow_runs
import torch
import typer
from torch import nn
from typer.testing import CliRunner

from ghostvis_cli import checkpoints
from ghostvis_plugins import MissingError
from stages import checkpoint


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Checkpoints 2, 4, … 10 of a model whose one layer changes by a tenth each time, and whose other never does."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"moves": nn.Linear(4, 4, bias=False), "stays": nn.Linear(4, 4)})
    for step in range(2, 12, 2):
        state = {"best": {"step": 4, "val_loss": 1.5}}
        checkpoint.write(
            tmp_path / "checkpoints", checkpoint.take(step, net, torch.optim.SGD(net.parameters()), [], state)
        )
        with torch.no_grad():
            net["moves"].weight.mul_(1.1)
    return tmp_path


def ckpt(*arguments: object, code: int = 0) -> Any:
    """The JSON document of a command."""
    app = typer.Typer()
    checkpoints.register(app)
    result = CliRunner().invoke(app, ["ckpt", *map(str, arguments), "--json"])
    assert result.exit_code == code, (result.output, result.exception)
    plain = CliRunner().invoke(app, ["ckpt", *map(str, arguments)])
    assert plain.exit_code == code
    return json.loads(result.stdout)


def test_list(run_dir: Path) -> None:
    found = ckpt("list", run_dir)["checkpoints"]
    assert [row["step"] for row in found] == [2, 4, 6, 8, 10]
    assert {row["best_step"] for row in found} == {4}
    folder = run_dir / "checkpoints" / "step_2"
    assert found[0]["bytes"] == sum(path.stat().st_size for path in folder.iterdir())


def test_verify(run_dir: Path) -> None:
    assert not any(row["damage"] for row in ckpt("verify", run_dir)["checkpoints"])
    (run_dir / "checkpoints" / "step_6" / "model.safetensors").write_bytes(b"")
    damage = {row["step"]: row["damage"] for row in ckpt("verify", run_dir, code=6)["checkpoints"]}
    assert "0 bytes instead of" in damage.pop(6)
    assert not any(damage.values())


def test_prune_never_counts_a_damaged_one(run_dir: Path) -> None:
    """The newest is damaged: it must not be the one that is kept."""
    (run_dir / "checkpoints" / "step_10" / "manifest.json").unlink()
    would = ckpt("prune", run_dir, "--keep", 1, "--keep-every", 3, "--dry-run")
    assert would["removed"] == [2]  # 4 is the best, 6 a multiple of 3, 8 the newest whole one
    assert would["damaged"] == [10]
    assert checkpoint.steps(run_dir / "checkpoints") == [2, 4, 6, 8, 10]
    ckpt("prune", run_dir, "--keep", 1)
    assert checkpoint.steps(run_dir / "checkpoints") == [4, 8, 10]


def test_diff(run_dir: Path) -> None:
    found = ckpt("diff", run_dir)
    assert found["steps"] == [8, 10]
    assert [change["tensor"] for change in found["changed"]] == ["moves.weight"]
    assert found["changed"][0]["relative"] == pytest.approx(0.1, rel=1e-5)
    assert found["same"] == 2
    assert ckpt("diff", run_dir, 2, 6)["changed"][0]["relative"] == pytest.approx(0.21, rel=1e-5)
    assert ckpt("diff", run_dir, 6, 6)["changed"] == []


def test_a_run_that_is_not_there() -> None:
    with pytest.raises(MissingError, match="no run with checkpoints: nowhere"):
        checkpoints.root_of("nowhere")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers in /proc")
def test_a_killed_worker_is_replaced_and_all_go_on(tmp_path: Path) -> None:
    home = slow_runs.make_home(tmp_path)
    process = slow_runs.train(home, "a", "--max-restarts", "1", nproc=2)
    slow_runs.wait_for_step(home, "a", 8, process)
    os.kill(slow_runs.workers_of(process)[1], signal.SIGKILL)
    assert slow_runs.end(process) == 0, slow_runs.log_of(home, "a")
    assert slow_runs.end(slow_runs.train(home, "whole", nproc=2, seconds=0)) == 0
    assert slow_runs.rows(home, "a") == slow_runs.rows(home, "whole")
