"""The freeze table, parameter groups, schedules, and the optimizer's own arithmetic."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from components.optimizers.adamw import build
from components.optimizers.config import AdamW
from ghostvis_plugins.errors import ConfigError
from stages.config import AlignConfig
from stages.optim import (
    Schedule,
    apply_table,
    clip_factor,
    format_table,
    frozen_hash,
    gradient_norm,
    match,
    parameter_groups,
    set_modes,
)


class Toy(nn.Module):
    """Two parts; one has a norm, latents, an embedding and dropout, the other running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.resampler = nn.Module()
        self.resampler.latents = nn.Parameter(torch.zeros(5, 4))
        self.resampler.norm = nn.LayerNorm(4)
        self.backbone = nn.Module()
        self.backbone.embedding = nn.Embedding(7, 4)
        self.backbone.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(11))
        self.backbone.dropout = nn.Dropout(0.5)
        self.pool = nn.AvgPool2d(2)


def names_of(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group for group in groups for parameter in group["params"]}


def test_the_longest_path_wins() -> None:
    table = {"backbone": 1.0, "backbone.layers.1": 2.0, "backbone.layers": 3.0}
    assert match(table, "backbone.layers.1.weight") == "backbone.layers.1"
    assert match(table, "backbone.layers.10.weight") == "backbone.layers"  # a path, not a prefix of characters
    assert match(table, "backbone.embedding.weight") == "backbone"
    assert match(table, "resampler.latents") is None


def test_the_table_decides_what_trains() -> None:
    model = Toy()
    rows = apply_table(model, {"backbone": 1e-3, "backbone.layers.3": 0.0, "resampler.latents": 1e-2})
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    everything = {name for name, _ in model.named_parameters()}
    expected = {n for n in everything if n.startswith("backbone") and ".3." not in n} | {"resampler.latents"}
    assert trained == expected
    assert sum(row.parameters for row in rows) == sum(parameter.numel() for parameter in model.parameters())
    text = format_table(rows)
    assert "backbone.layers.3         frozen            20" in text
    assert "resampler.latents           0.01            20" in text
    assert f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,} of" in text


def test_paths_may_be_patterns() -> None:
    model = Toy()
    rows = apply_table(model, {"backbone.layers.-4:": 1e-3, "backbone.layers.9:10": 0.0, "*.norm": 2e-3})
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = {f"backbone.layers.{n}.{kind}" for n in (7, 8, 10) for kind in ("weight", "bias")}
    assert trained == layers | {"resampler.norm.weight", "resampler.norm.bias"}
    text = format_table(rows)
    assert "backbone.layers.7:11          0.001            60" in text
    assert "backbone.layers.9:10         frozen            20" in text
    everything = apply_table(model, {"*": 1e-3, "encoder": 0.0})
    assert {row.path for row in everything if row.lr} == {"*"}
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"backbone", "resampler"}


@given(length=st.integers(1, 30), start=st.integers(-40, 40) | st.none(), stop=st.integers(-40, 40) | st.none())
def test_a_slice_of_layers_is_a_slice(length: int, start: int | None, stop: int | None) -> None:
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(length))
    path = f"layers.{'' if start is None else start}:{'' if stop is None else stop}"
    meant = [f"layers.{n}.weight" for n in range(length)][start:stop]
    if not meant:
        with pytest.raises(ConfigError, match=f"none of the {length} modules"):
            apply_table(model, {path: 1.0})
        return
    apply_table(model, {path: 1.0})
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == meant
    assert [name for group in parameter_groups(model, {path: 1.0}) for name in group["names"]] == meant


def test_the_more_precise_of_equally_long_paths_wins() -> None:
    table = {"a.*.w": 1.0, "a.1.w": 2.0, "a.0:2.w": 3.0, "a": 4.0}
    assert match(table, "a.1.w") == "a.1.w"
    assert match(table, "a.0.w") == "a.0:2.w"  # the last
    assert match(table, "a.5.w") == "a.*.w"
    assert match(table, "a.5.b") == "a"


def test_unknown_paths_are_named() -> None:
    with pytest.raises(ConfigError, match=r"no 'resamplr'\. Did you mean 'resampler'"):
        apply_table(Toy(), {"resamplr": 1e-3})
    with pytest.raises(ConfigError, match=r"no 'backbone\.layers\.11'"):
        apply_table(Toy(), {"backbone.layers.11": 1e-3})
    with pytest.raises(ConfigError, match="no list of them"):
        apply_table(Toy(), {"resampler.-1:": 1e-3})
    with pytest.raises(ConfigError, match=r"no '\*\.nrm'"):
        apply_table(Toy(), {"*.nrm": 1e-3})
    with pytest.raises(ConfigError, match="nothing is left to train"):
        apply_table(Toy(), {"backbone": 0.0, "pool": 1.0})
    apply_table(Toy(), {"backbone": 1.0, "pool": 1.0})  # a part without parameters may be named


def test_frozen_parts_are_in_evaluation_mode() -> None:
    model = Toy()
    apply_table(model, {"backbone": 1e-3})
    set_modes(model)
    assert not any(module.training for module in model.encoder.modules())
    assert not model.resampler.training
    assert model.backbone.dropout.training
    apply_table(model, {"encoder.0": 1e-3})
    set_modes(model)
    assert model.encoder[0].training
    assert not model.encoder[1].training  # frozen norm inside a part that trains
    assert not model.backbone.dropout.training


def test_the_frozen_hash_sees_frozen_tensors_and_no_others() -> None:
    model = Toy()
    apply_table(model, {"backbone": 1e-3})
    set_modes(model)
    before = frozen_hash(model)
    with torch.no_grad():
        model.backbone.layers[0].weight += 1
    assert frozen_hash(model) == before
    model.encoder(torch.randn(2, 3, 2, 2))  # running statistics of a frozen norm stay
    assert frozen_hash(model) == before
    model.encoder[1].running_mean += 1e-6
    assert frozen_hash(model) != before
    model.encoder[1].running_mean.zero_()
    assert frozen_hash(model) == before
    with torch.no_grad():
        model.resampler.norm.bias[0] = 1e-30
    assert frozen_hash(model) != before


def test_decay_is_for_matrices() -> None:
    model = Toy()
    table = {"encoder": 1e-4, "resampler": 1e-3, "backbone": 1e-2, "backbone.layers.2": 5e-2}
    apply_table(model, table)
    groups = parameter_groups(model, table)
    by_name = names_of(model, groups)
    decaying = {name for name, group in by_name.items() if "weight_decay" not in group}
    assert decaying == {"encoder.0.weight"} | {f"backbone.layers.{i}.weight" for i in range(11)}
    assert by_name["backbone.layers.2.bias"]["lr"] == 5e-2
    assert by_name["resampler.latents"]["lr"] == 1e-3
    assert len(by_name) == len(list(model.parameters()))


def test_adamw_equals_the_paper() -> None:
    """Two steps by hand (Loshchilov and Hutter 2019, algorithm 2), with decay for one of two groups."""
    torch.manual_seed(0)
    start, gradients = torch.randn(2, 3), [torch.randn(2, 3), torch.randn(2, 3)]
    lr, beta1, beta2, eps, decay = 0.1, 0.8, 0.9, 1e-8, 0.5
    one, two = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    groups = [
        {"params": [one], "lr": lr, "peak_lr": lr},
        {"params": [two], "lr": lr, "peak_lr": lr, "weight_decay": 0.0},
    ]
    optimizer = build(AdamW(beta1=beta1, beta2=beta2, eps=eps, weight_decay=decay), groups=groups)
    for gradient in gradients:
        one.grad, two.grad = gradient.clone(), gradient.clone()
        optimizer.step()
    for parameter, wd in ((one, decay), (two, 0.0)):
        x, m, v = start.clone(), torch.zeros(2, 3), torch.zeros(2, 3)
        for t, gradient in enumerate(gradients, start=1):
            m = beta1 * m + (1 - beta1) * gradient
            v = beta2 * v + (1 - beta2) * gradient**2
            x = x - lr * (m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps) + wd * x)
        torch.testing.assert_close(parameter.detach(), x)


def schedule(kind: str, steps: int = 100, **more: Any) -> Schedule:
    return Schedule(AlignConfig(steps=steps, schedule=kind, warmup=0.1, final_lr=0.1, **more), steps)


def test_schedules() -> None:
    for kind in ("cosine", "linear", "constant", "wsd"):
        factor = schedule(kind)
        assert [factor(step) for step in range(1, 11)] == pytest.approx([step / 10 for step in range(1, 11)])
        values = [factor(step) for step in range(10, 101)]
        assert values == sorted(values, reverse=True)
        assert values[-1] == pytest.approx(1.0 if kind == "constant" else 0.1)
    assert schedule("linear")(55) == pytest.approx(0.1 + 0.9 * 0.5)
    assert schedule("cosine")(55) == pytest.approx(0.1 + 0.9 * 0.5)
    assert schedule("cosine")(32) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 22 / 90)) / 2)
    assert schedule("wsd", warmdown=0.2)(80) == 1.0
    assert schedule("wsd", warmdown=0.2)(90) == pytest.approx(0.55)


def test_warmup_in_steps_or_as_a_share() -> None:
    assert Schedule(AlignConfig(steps=50, warmup=4), 50).warmup == 4
    assert Schedule(AlignConfig(steps=50, warmup=0.5), 50).warmup == 25
    assert Schedule(AlignConfig(steps=50, warmup=0), 50)(1) > 0.99
    assert Schedule(AlignConfig(steps=2, warmup=100), 2)(2) == 1.0


def test_the_schedule_scales_each_group() -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [p], "lr": lr, "peak_lr": lr} for p, lr in zip(parameters, (1.0, 0.2), strict=True)]
    optimizer = build(AdamW(), groups=groups)
    assert schedule("linear").apply(optimizer, 5) == pytest.approx(0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 0.1])


@pytest.mark.parametrize(("limit", "expected"), [(1.0, 1.0), (10.0, 5.0), (0.0, 5.0)])
def test_clipping_is_by_the_global_norm(limit: float, expected: float) -> None:
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0]), torch.tensor([-4.0])
    norm = gradient_norm(parameters).item()
    assert norm == pytest.approx(5.0)
    assert norm * clip_factor(norm, limit) == pytest.approx(expected, rel=1e-5)


def test_the_norm_of_small_types_is_summed_in_float32() -> None:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(1000, dtype=t)) for t in (torch.bfloat16, torch.float32, torch.bfloat16)]
    for parameter in parameters:
        parameter.grad = torch.randn(1000).to(parameter.dtype)
    whole = torch.cat([parameter.grad.float() for parameter in parameters])
    assert gradient_norm(parameters).item() == pytest.approx(whole.norm().item(), rel=1e-6)
