"""What only a CUDA device runs: its attention, the Triton kernels, compiled layers against plain torch; whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from miniature import interruption, registry, values, write_tokenizer
from safetensors.torch import load_file
from torch import Tensor

from components.attention import PackedLayout, packed_attention
from components.backbones import decoder
from components.backbones.config import Architecture, Decoder
from components.compiled import compiled
from components.cross_entropy import linear_cross_entropy
from components.optimizers.adamw import build, join
from components.optimizers.config import AdamW
from components.trackers.jsonl import read_metrics
from stages import checkpoint
from stages.distributed import Distributed
from stages.loader import Loader
from stages.loop import Loop
from stages.runner import run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def close(found: Tensor, expected: Tensor, part: float = 0.02) -> bool:
    return bool((found.cpu().float() - expected.float()).norm() <= part * expected.float().norm())


@pytest.mark.parametrize("lengths", [[256] * 3, [128], [5, 130, 64, 1, 200]], ids=["equal", "one", "mixed"])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_attention_of_packs(lengths: list[int], kv_heads: int) -> None:
    """Every way (rectangle by cuDNN, documents of any length) is the CPU's, forwards and backwards."""
    torch.manual_seed(0)
    shapes = ((4, 64), (kv_heads, 64), (kv_heads, 64))
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    inputs = [torch.randn(sum(lengths), *shape) for shape in shapes]
    gradient = torch.randn(sum(lengths), 4, 64)
    results = []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        own = [x.to(device, dtype, copy=True).requires_grad_() for x in inputs]
        out = packed_attention(*own, PackedLayout(cu_seqlens, device))
        out.backward(gradient.to(device, dtype))
        results.append([out.detach(), *(x.grad for x in own)])
    for expected, found in zip(*results, strict=True):
        assert close(found, expected)


@pytest.mark.parametrize("softcap", [0.0, 15.0])
def test_the_heads_loss(softcap: float) -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(700, 128), 0.1 * torch.randn(33_000, 128), torch.randint(33_000, (700,))
    logits = F.linear(h := hidden.clone().requires_grad_(), w := weight.clone().requires_grad_())
    expected = F.cross_entropy(softcap * torch.tanh(logits / softcap) if softcap else logits, targets, reduction="sum")
    expected.backward()
    own = [x.cuda().requires_grad_() for x in (hidden, weight)]
    with torch.autocast("cuda", torch.bfloat16):
        found = linear_cross_entropy(*own, targets.cuda(), softcap)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=2e-3)
    assert close(own[0].grad, h.grad)
    assert close(own[1].grad, w.grad)


def test_adamw_of_two_halves() -> None:
    torch.manual_seed(0)
    starts = [torch.randn(1000, 33).bfloat16(), torch.randn(77).bfloat16()]
    results = []
    for device in ("cpu", "cuda"):
        parameters = [torch.nn.Parameter(start.to(device, copy=True)) for start in starts]
        groups = [{"params": parameters, "names": ["a", "b"], "lr": 1e-3}]
        optimizer = build(AdamW(), groups=groups)
        for step in range(5):
            for parameter in parameters:
                generator = torch.Generator().manual_seed(step + parameter.numel())
                parameter.grad = torch.randn(parameter.shape, generator=generator).bfloat16().to(device)
            optimizer.scale_gradients(0.5)
            optimizer.step()
        results.append([join(p.detach().view(torch.int16), optimizer.state[p]["low"]).cpu() for p in parameters])
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(expected, found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["ours", "torch"])
def test_a_snapshot_is_that_of_its_moment(tmp_path: Path, optimizer: str) -> None:
    """Everything is overwritten right after it was taken; files are those of a checkpoint that training waited for."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if optimizer == "ours" else torch.float32
    model = torch.nn.Sequential(torch.nn.Linear(2048, 4096, bias=False), torch.nn.Linear(4096, 2048)).to("cuda", dtype)
    groups = [{"params": list(model.parameters()), "names": [name for name, _ in model.named_parameters()], "lr": 1e-3}]
    adamw = build(AdamW(), groups=groups) if optimizer == "ours" else torch.optim.AdamW(model.parameters(), fused=True)
    names, ranks = groups[0]["names"], Distributed(device=torch.device("cuda", torch.cuda.current_device()))

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        adamw.step()

    step()
    checkpoint.write(tmp_path / "waited", checkpoint.take(1, model, adamw, names, {}, ranks), ranks)
    for _ in range(3):  # the device has work before it, and memory that is pinned comes again
        torch.cuda._sleep(10**7)
        taken = checkpoint.take(1, model, adamw, names, {}, ranks, copies=True)
        with torch.no_grad():
            for tensor in (*model.parameters(), *(t for s in adamw.state.values() for t in s.values() if t.ndim)):
                tensor.mul_(0)
        assert all(t.device.type == "cpu" for t in (*taken.weights.values(), *taken.tensors.values()))
        checkpoint.write(tmp_path / "meanwhile", taken, ranks)
        found = checkpoint.at_step(tmp_path / "meanwhile", 1)
        for file in (checkpoint.MODEL, checkpoint.OPTIMIZER):
            assert (found.folder / file).read_bytes() == (tmp_path / "waited/step_1" / file).read_bytes()
        found.load_model(model)
        found.load_optimizer(adamw, names)


def test_a_compiled_decoder_learns_as_on_the_cpu() -> None:
    arch = Architecture(
        model_type="qwen2", dim=256, layers=3, heads=4, kv_heads=2, head_dim=64, ffn=512, qkv_bias=True,
        vocab_size=1000, max_positions=512, rope_theta=1e4, norm_eps=1e-6, tie=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = decoder.build(Decoder(weights="random", architecture=arch), vocab_size=1000)
    model.init_weights()
    lengths = [100, 37, 200]
    ids = torch.randint(1000, (sum(lengths),))
    rows = torch.arange(0, len(ids) - 1, 2)
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])

    def gradients(device: str) -> dict[str, Tensor]:
        model.to(device).zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            x = model.embed(ids.to(device))
            hidden = model(x, positions=positions.to(device), cu_seqlens=cu_seqlens, rows=rows.to(device))
            loss = model.nll(hidden, ids[rows + 1].to(device))
        loss.backward()
        return {"loss": loss.detach().cpu(), **{name: p.grad.cpu().clone() for name, p in model.named_parameters()}}

    expected = gradients("cpu")
    with compiled(model):
        found = gradients("cuda")
    far = [name for name, value in expected.items() if not close(found[name], value, 0.05)]
    assert not far


def run_values(folder: Path, dtype: str, **overrides: Any) -> dict[str, Any]:
    """A run on packs of many lengths and pictures, in bfloat16, with weights of ``dtype``."""
    architecture = {
        "model_type": "qwen2", "dim": 512, "layers": 3, "heads": 8, "kv_heads": 2, "head_dim": 64, "ffn": 1024,
        "qkv_bias": True, "vocab_size": 1000, "max_positions": 512, "rope_theta": 1e4, "norm_eps": 1e-6, "tie": True,
    }  # fmt: skip
    return values(
        write_tokenizer(folder / "tokenizer"),
        stage="sft",
        device="cuda",
        dtype="bfloat16",
        resampler={"name": "perceiver", "latents": 4, "heads": 2},
        backbone={"name": "decoder", "weights": "random", "dtype": dtype, "architecture": architecture},
        stage__steps=10,
        stage__batch_tokens=8000,
        stage__micro_tokens=3000,
        stage__features="none",
        stage__train={"resampler": 1e-3, "projector": 1e-3, "backbone": 1e-3},
        **overrides,
    )


@pytest.mark.parametrize(("dtype", "optimizer"), [("float32", "adamw"), ("bfloat16", "adamw"), ("float32", "muon")])
def test_a_step_waits_for_the_device_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, optimizer: str
) -> None:
    """For its loss and norm, through an event: torch raises at any copy or question that would wait for all work."""
    step = Loop._step

    def watched(loop: Loop, loader: Loader, number: int) -> dict[str, Any]:
        torch.cuda.set_sync_debug_mode("error" if number > 3 else "default")  # what is made once may wait
        try:
            return step(loop, loader, number)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Loop, "_step", watched)
    given = run_values(tmp_path, dtype, stage__workers=2, optimizer={"name": optimizer})
    run(given, registry(), tmp_path / "run")
    assert read_metrics(tmp_path / "run")[-1]["step"] == 10


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_is_the_same_run_to_the_bit(tmp_path: Path, dtype: str) -> None:
    """With ``stage.deterministic``, compiled; ten steps, and six and four."""
    given = run_values(tmp_path, dtype, stage__checkpoint_every=3, stage__deterministic=True)
    run(given, registry(), tmp_path / "whole")
    stopped = {**given, "tracker": {"name": "interrupt"}}
    with pytest.raises(KeyboardInterrupt):
        run(stopped, registry(interruption(6)), tmp_path / "parts")
    run(given, registry(), tmp_path / "parts", resume=True)
    whole, parts = (
        load_file(tmp_path / name / "checkpoints" / "step_10" / "model.safetensors") for name in ("whole", "parts")
    )
    assert not [name for name in whole if not torch.equal(whole[name], parts[name])]
