"""Checkpoints: complete and verified, or invisible; also when the process dies in the middle of writing one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ghostvis_plugins.errors import DataError
from stages import checkpoint
from stages.checkpoint import MANIFEST, MODEL, OPTIMIZER, STATE

ROOT = Path(__file__).resolve().parents[1]


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net[2].bias = None
    return net


def trained(net: nn.Module, steps: int = 3) -> tuple[torch.optim.AdamW, list[str]]:
    """An optimizer with state, over the parameters in an order of its own."""
    named = sorted(net.named_parameters(), reverse=True)
    optimizer = torch.optim.AdamW([{"params": [p for _, p in named], "lr": 0.1, "peak_lr": 0.1}])
    for _ in range(steps):
        net(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer, [name for name, _ in named]


def save(root: Path, step: int, seed: int = 0) -> nn.Module:
    net = model(seed)
    checkpoint.write(root, checkpoint.take(step, net, *trained(net), {"data_hash": "abc"}))
    return net


def quiet(message: str) -> None:
    raise AssertionError(f"unexpected warning: {message}")


def test_a_checkpoint_restores_everything(tmp_path: Path) -> None:
    net = model(1)
    optimizer, names = trained(net)
    checkpoint.write(tmp_path, checkpoint.take(4, net, optimizer, names, {"data_hash": "abc", "best": None}))
    found = checkpoint.latest(tmp_path, quiet)
    assert found is not None
    assert found.step == 4
    assert found.state()["data_hash"] == "abc"
    other = model(2)
    fresh, _ = trained(other, steps=1)
    found.load_model(other)
    found.load_optimizer(fresh, names)
    for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(optimizer.state_dict()["state"].values(), fresh.state_dict()["state"].values(), strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    torch.manual_seed(5)
    batch = torch.randn(5, 3)
    for network, o in ((net, optimizer), (other, fresh)):  # and the next step is the same
        network(batch).square().sum().backward()
        o.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_there_is_no_pickle_in_it(tmp_path: Path) -> None:
    save(tmp_path, 1)
    files = {path.name for path in (tmp_path / "step_1").iterdir()}
    assert files == {MODEL, OPTIMIZER, STATE, MANIFEST}
    manifest = json.loads((tmp_path / "step_1" / MANIFEST).read_text())
    assert manifest["format_version"] == 1
    assert manifest["files"][MODEL]["size"] == (tmp_path / "step_1" / MODEL).stat().st_size


def test_shared_weights_are_stored_once(tmp_path: Path) -> None:
    net = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    net["b"].weight = net["a"].weight
    checkpoint.write(tmp_path, checkpoint.take(1, net, torch.optim.SGD(net.parameters()), [], {}))
    other = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    other["b"].weight = other["a"].weight
    checkpoint.at_step(tmp_path, 1).load_model(other)
    assert torch.equal(other["b"].weight, net["a"].weight)


def damage(folder: Path, kind: str) -> None:
    path = folder / (MANIFEST if "manifest" in kind else MODEL)
    data = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(data[:-9])
    elif kind == "flipped":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif kind == "removed" or kind == "no manifest":
        path.unlink()
    elif kind == "half a manifest":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "newer manifest":
        path.write_text(data.decode().replace('"format_version": 1', '"format_version": 2'))
    elif kind == "hollow manifest":
        path.write_text('{"format_version": 1, "files": {}}')


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("truncated", "bytes instead of"),
        ("flipped", "was altered"),
        ("removed", "is missing"),
        ("no manifest", "has no manifest"),
        ("half a manifest", "cannot be read"),
        ("newer manifest", "format is 2"),
        ("hollow manifest", "other files"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_loudly(tmp_path: Path, kind: str, reason: str) -> None:
    save(tmp_path, 3)
    save(tmp_path, 12)  # 12 comes after 3 as a number, not as text
    assert checkpoint.latest(tmp_path, quiet).step == 12  # type: ignore[union-attr]
    damage(tmp_path / "step_12", kind)
    warnings: list[str] = []
    found = checkpoint.latest(tmp_path, warnings.append)
    assert found is not None
    assert found.step == 3
    assert len(warnings) == 1
    assert "step_12" in warnings[0]
    assert reason in warnings[0]
    with pytest.raises(DataError, match=reason):
        checkpoint.at_step(tmp_path, 12)
    damage(tmp_path / "step_3", kind)
    assert checkpoint.latest(tmp_path, warnings.append) is None
    save(tmp_path, 12)  # the run comes here again and writes it anew
    assert checkpoint.latest(tmp_path, quiet).step == 12  # type: ignore[union-attr]


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (2, 4, 9, 10, 11):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, 2, protected=[4])
    assert sorted(int(folder.name[5:]) for folder in tmp_path.iterdir()) == [4, 10, 11]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(DataError, match=r"another model: 0\.weight"):
        checkpoint.at_step(tmp_path, 1).load_model(
            nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, False))
        )
    with pytest.raises(DataError, match="another model"):
        checkpoint.at_step(tmp_path, 1).load_model(nn.Sequential(nn.Linear(3, 4)))


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
import torch
torch.set_num_threads(1)
import test_checkpoint as t
from stages import checkpoint

root = Path(sys.argv[1])
operations = {name: getattr(checkpoint, name) for name in ("_flush", "save_file", "_write_json", "_describe")}

def die_before(number):
    count = iter(range(100))
    def wrap(operation):
        def call(*arguments):
            if next(count) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments)
        return call
    for name, operation in operations.items():
        setattr(checkpoint, name, wrap(operation))

for number in range(14):
    t.save(root / str(number), 1)
    child = os.fork()
    if child == 0:
        die_before(number)
        t.save(root / str(number), 2)
        os._exit(0)
    print(number, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_a_killed_writer_leaves_the_previous_one(tmp_path: Path) -> None:
    """A process dies before each of its file operations in turn, until one gets through."""
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    codes = dict(map(int, line.split()) for line in result.stdout.splitlines())
    # 0-1 tensors, 2 state, 3-5 hashes, 6 manifest, 7-10 flush files, 11 flush folder, (rename), 12 flush parent
    assert codes == {number: 0 if number == 13 else -signal.SIGKILL for number in range(14)}
    for number in codes:
        root = tmp_path / str(number)
        found = checkpoint.latest(root, quiet)
        assert found is not None
        assert found.step == (1 if number < 12 else 2)
        save(root, 3)  # a later write clears what was left behind
        assert not list(root.glob(".partial*"))


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_flush", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert [folder.name for folder in tmp_path.iterdir()] == ["step_1"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here memory can be page-locked")
def test_what_cannot_be_page_locked_is_copied_all_the_same() -> None:
    class OfADevice(torch.Tensor):
        is_cuda = True

    tensor = torch.randn(3, 4).as_subclass(OfADevice)
    copied = checkpoint._copy_to_host(tensor)
    assert copied.data_ptr() != tensor.data_ptr()
    assert torch.equal(copied, tensor)
