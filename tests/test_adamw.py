"""AdamW on bfloat16 weights is AdamW on the float32 weights that they and their other bits stand for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.optimizers.adamw import AdamW, build, join, split
from components.optimizers.config import AdamW as Config
from components.optimizers.config import Muon
from components.optimizers.muon import build as build_muon
from ghostvis_plugins import ConfigError
from stages.optim import check_types

RATE = 1e-3


def group(parameter: torch.nn.Parameter) -> list[dict]:
    return [{"params": [parameter], "names": ["layer.weight"], "lr": RATE}]


def gradients(steps: range) -> list[torch.Tensor]:
    return [torch.randn(40, 7, generator=torch.Generator().manual_seed(step)).bfloat16() for step in steps]


def train(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, steps: range) -> None:
    for gradient in gradients(steps):
        parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


def whole(optimizer: AdamW, parameter: torch.nn.Parameter) -> torch.Tensor:
    return join(parameter.detach().view(torch.int16), optimizer.state[parameter]["low"])


@given(st.floats(width=32, allow_nan=False))
def test_the_halves_are_the_number(number: float) -> None:
    given_ = torch.tensor([number], dtype=torch.float32)
    high, low = split(given_)
    assert torch.equal(join(high, low).view(torch.int32), given_.view(torch.int32))
    rounded = high.view(torch.bfloat16).float()
    nearest = given_.bfloat16().float()
    assert (rounded - given_).abs() <= (nearest - given_).abs() or torch.equal(rounded, nearest)


def test_it_is_adamw_in_float32() -> None:
    start = torch.randn(40, 7, generator=torch.Generator().manual_seed(99)).bfloat16()
    half, full = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())
    own = build(Config(weight_decay=0.1), groups=group(half))
    reference = torch.optim.AdamW([full], lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    train(own, half, range(60))
    train(reference, full, range(60))
    assert torch.allclose(whole(own, half), full, atol=1e-6, rtol=0)
    assert torch.allclose(half.float(), full, atol=0, rtol=2**-8)  # what the model computes with is that, rounded


def test_scaled_gradients_are_those_of_one_step() -> None:
    """Clipping by the optimizer is clipping before it, for weights of both types."""
    for dtype in (torch.bfloat16, torch.float32):
        parameters = [torch.nn.Parameter(torch.ones(40, 7, dtype=dtype)) for _ in range(2)]
        optimizers = [build(Config(), groups=group(parameter)) for parameter in parameters]
        for step, gradient in enumerate(gradients(range(4))):
            factor = 0.25 if step % 2 else 1.0
            parameters[0].grad = gradient.to(dtype)
            parameters[1].grad = gradient.to(dtype) * factor
            if factor != 1:
                optimizers[0].scale_gradients(factor)
            for optimizer in optimizers:
                optimizer.step()
        assert torch.equal(*parameters)


def test_steps_too_small_for_bfloat16_add_up() -> None:
    """A thousand steps of 1e-6 move a weight of 1 by 0.001, where bfloat16 itself would not move at all."""
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = build(Config(weight_decay=0.0), groups=[{"params": [weight], "names": ["w"], "lr": 1e-6}])
    for _ in range(1000):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert whole(optimizer, weight).item() == pytest.approx(1 - 1e-3, abs=2e-5)


def test_its_state_survives_bit_by_bit() -> None:
    start = torch.randn(40, 7).bfloat16()
    through, half = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    unbroken, first = build(Config(), groups=group(through)), build(Config(), groups=group(half))
    train(unbroken, through, range(6))
    train(first, half, range(3))
    resumed = torch.nn.Parameter(half.detach().clone())
    second = build(Config(), groups=group(resumed))
    second.load_state_dict(first.state_dict())
    assert {key: value.dtype for key, value in second.state[resumed].items() if key != "step"} == {
        "low": torch.int16, "exp_avg": torch.float32, "exp_avg_sq": torch.float32
    }  # fmt: skip
    train(second, resumed, range(3, 6))
    assert torch.equal(whole(unbroken, through), whole(second, resumed))


def test_an_optimizer_that_would_lose_the_updates_is_refused() -> None:
    model = torch.nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
    parameter = model.weight
    check_types(model, build(Config(), groups=group(parameter)), "adamw")
    with pytest.raises(ConfigError, match="the optimizer 'muon' trains float32 weights only"):
        check_types(model, build_muon(Muon(), groups=group(parameter)), "muon")


@pytest.mark.parametrize("kernel", ["adamw", "cross_entropy"])
@pytest.mark.parametrize("program", ["triton_kernels.py", "triton_compile.py"])
def test_the_gpu_kernels_compute_the_same_and_compile(kernel: str, program: str) -> None:
    """Triton's interpreter runs them on the CPU; it has to be chosen before Triton is imported."""
    pytest.importorskip("triton")
    script = Path(__file__).with_name(program)
    command = [sys.executable, str(script), kernel]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=script.parent.parent)
    assert done.returncode == 0, done.stderr
