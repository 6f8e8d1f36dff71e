"""Reading safetensors: headers that lie, indexes that point elsewhere, and how much memory it takes."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from components.pretrained.tensors import TensorFolder, fill
from ghostvis_plugins import DataError, GhostVisError, MissingError

STATE = {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": STATE["a"]}, tmp_path / "one.safetensors")
    save_file({"b": STATE["b"]}, tmp_path / "two.safetensors")
    write_index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    return tmp_path


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_file_a_folder_and_shards(tmp_path: Path, sharded: Path) -> None:
    single = tmp_path / "single"
    single.mkdir()
    save_file(STATE, single / "model.safetensors")
    for path in (sharded, single, single / "model.safetensors"):
        found = TensorFolder.open(path)
        assert found.shapes == {"a": (2, 3), "b": (4,)}
        assert found.dtypes == {"a": torch.float32, "b": torch.bfloat16}
        for name, tensor in STATE.items():
            assert torch.equal(found.get(name), tensor)


@pytest.mark.parametrize(
    ("weight_map", "kind", "message"),
    [
        ({"a": "one.safetensors", "b": "three.safetensors"}, MissingError, "shard three.safetensors is missing"),
        ({"a": "../one.safetensors"}, DataError, "outside of the folder"),
        ({"a": "/etc/passwd"}, DataError, "outside of the folder"),
        ({"a": "..\\one.safetensors"}, DataError, "outside of the folder"),
        ({"a": "one.safetensors", "b": "one.safetensors"}, DataError, "lacks b"),
        ({"b": "two.safetensors", "c": "one.safetensors"}, DataError, "holds a, which .* places in no shard"),
        ({"a": "two.safetensors", "b": "two.safetensors"}, DataError, "lacks a"),
        ({"a": "x" * 5000}, DataError, "cannot be read: File name too long"),
        ({"a": "one\0"}, MissingError, "is missing"),
        (["a"], DataError, "not an index"),
        (None, DataError, "not an index"),
    ],
)
def test_an_index_that_is_not_true(sharded: Path, weight_map: Any, kind: type, message: str) -> None:
    write_index(sharded, weight_map)
    with pytest.raises(kind, match=message):
        TensorFolder.open(sharded)


def test_an_index_without_an_end(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": ' + "[" * 100_000)
    with pytest.raises(DataError, match="not an index"):
        TensorFolder.open(sharded)


def test_a_file_that_changes_while_it_is_read(sharded: Path) -> None:
    found = TensorFolder.open(sharded)
    (sharded / "one.safetensors").write_bytes((sharded / "one.safetensors").read_bytes()[:-4])
    with pytest.raises(DataError, match=r"one\.safetensors ends early"):
        found.get("a")
    (sharded / "two.safetensors").unlink()
    with pytest.raises(DataError, match=r"two\.safetensors cannot be read"):
        found.get("b")


def header(entries: Any, data: bytes, *, length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 4,
        header(GOOD, b"\x00" * 7),
        header(GOOD, b"\x00" * 9),
        header(GOOD, b"\x00" * 8, length=2**62),
        header(GOOD, b"\x00" * 8, length=3),
        header({"a": {**GOOD["a"], "shape": [3]}}, b"\x00" * 8),
        header({"a": {**GOOD["a"], "shape": [2**62, 8]}}, b"\x00" * 8),
        header({"a": {**GOOD["a"], "dtype": "F64"}}, b"\x00" * 8),
        header({"a": {**GOOD["a"], "data_offsets": [8, 16]}}, b"\x00" * 8),
        header({"a": {**GOOD["a"], "data_offsets": [8, 0]}}, b"\x00" * 8),
        header({"a": GOOD["a"], "b": GOOD["a"]}, b"\x00" * 8),
        header([1, 2], b""),
        b"\x80\x04\x95pickle",
    ],
)
def test_a_lying_header(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match="truncated or not a safetensors file"):
        TensorFolder.open(tmp_path)


@settings(max_examples=150, deadline=None)
@given(where=st.integers(0, 200), bits=st.integers(1, 255), cut=st.integers(0, 60))
def test_damage_anywhere(tmp_path_factory: pytest.TempPathFactory, where: int, bits: int, cut: int) -> None:
    """A flipped byte or a missing end gives other numbers or an error of ours, never a traceback or a crash."""
    folder = tmp_path_factory.mktemp("damage")
    save_file(STATE, folder / "model.safetensors")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[where % len(content)] ^= bits
    (folder / "model.safetensors").write_bytes(content[: len(content) - cut])
    try:
        found = TensorFolder.open(folder)
        for name, shape in found.shapes.items():
            assert tuple(found.get(name).shape) == shape
    except GhostVisError:
        pass


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pth", "model.ckpt"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    torch.save(STATE, tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(DataError, match="pickle"):
            TensorFolder.open(path)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="neither"):
        TensorFolder.open(tmp_path)


def test_fill_converts_and_follows_memory_formats(tmp_path: Path) -> None:
    weight = torch.randn(8, 3, 2, 2)
    save_file({"conv": weight.half()}, tmp_path / "model.safetensors")
    layer = nn.Conv2d(3, 8, 2, bias=False).to(memory_format=torch.channels_last)
    fill(layer, TensorFolder.open(tmp_path), lambda name: "conv", what="a layer")
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.weight, weight.half().float())


def test_fill_writes_nothing_unless_all_fits(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 2), "bias": torch.ones(3)}, tmp_path / "model.safetensors")
    layer = nn.Linear(2, 2)
    before = layer.weight.clone()
    with pytest.raises(DataError, match=r"bias is \[3\], needed is \[2\]"):
        fill(layer, TensorFolder.open(tmp_path), what="a layer")
    assert torch.equal(layer.weight, before)


MEASURE = """
import json, sys, torch
from pathlib import Path
from components.backbones.config import Decoder as Config
from components.backbones.decoder import build

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

build(Config(weights=sys.argv[1] + "/small", dtype="bfloat16"), vocab_size=8).init_weights()
before = peak()
model = build(Config(weights=sys.argv[1] + "/large", dtype="bfloat16"), vocab_size=8)
model.init_weights()
print(json.dumps(peak() - before))
"""


def write_checkpoint(folder: Path, layers: int, *, dim: int, ffn: int, heads: int, vocab_size: int, shard: int) -> int:
    """Shards in bfloat16 of a Qwen2.5 of this shape, written one tensor at a time; returns their size in bytes."""
    from components.backbones.config import Architecture
    from components.backbones.config import Decoder as Config
    from components.backbones.decoder import Decoder

    shape = {"dim": dim, "layers": layers, "heads": heads, "kv_heads": 2, "head_dim": dim // heads, "ffn": ffn}
    rest = {"vocab_size": vocab_size, "max_positions": 32_768, "rope_theta": 1e6, "qkv_bias": True, "tie": True}
    arch = Architecture(model_type="qwen2", **shape, **rest)
    with torch.device("meta"):
        model = Decoder(Config(weights="random", architecture=arch), arch, vocab_size)
    folder.mkdir()
    shards: list[dict[str, torch.Tensor]] = [{}]
    weight_map: dict[str, str] = {}

    def flush() -> None:
        save_file(shards[-1], folder / f"model-{len(shards):05}.safetensors")
        weight_map.update(dict.fromkeys(shards[-1], f"model-{len(shards):05}.safetensors"))
        shards[-1] = {}

    for name, parameter in model.named_parameters():
        shards[-1][f"model.{name}"] = torch.zeros(parameter.shape, dtype=torch.bfloat16)
        if sum(t.numel() * 2 for t in shards[-1].values()) > shard:
            flush()
            shards.append({})
    flush()
    write_index(folder, weight_map)
    config = {
        "model_type": "qwen2",
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "intermediate_size": ffn,
        "vocab_size": vocab_size,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "rope_theta": 1e6,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def peak_over_size(folder: Path, write: Callable[[Path], int]) -> float:
    write_checkpoint(folder / "small", 1, dim=64, ffn=64, heads=4, vocab_size=64, shard=10**9)
    size = write(folder / "large")
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)], capture_output=True, text=True, check=True, timeout=600
    )
    return float(json.loads(result.stdout) / size)


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


@needs_proc
def test_loading_takes_little_more_than_the_weights(tmp_path: Path) -> None:
    shape = {"dim": 1024, "ffn": 4096, "heads": 8, "vocab_size": 20_000, "shard": 80 * 2**20}
    assert peak_over_size(tmp_path, lambda folder: write_checkpoint(folder, 6, **shape)) <= 1.3


@needs_proc
@pytest.mark.slow
def test_loading_qwen25_1_5b_takes_little_more_than_the_weights(tmp_path: Path) -> None:
    shape = {"dim": 1536, "ffn": 8960, "heads": 12, "vocab_size": 151_936, "shard": 10**9}
    assert peak_over_size(tmp_path, lambda folder: write_checkpoint(folder, 28, **shape)) <= 1.3
