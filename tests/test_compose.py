"""Composition by name, and the plan that costs nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import nn

from components.compose import build_model
from components.planning import plan
from ghostvis_plugins import ConfigError, MissingError, encoder
from ghostvis_plugins.conformance import check_component
from ghostvis_plugins.manager import Registry

MODEL_KINDS = ("encoder", "resampler", "projector", "backbone")


def test_the_parts_are_those_named(tiny_values: dict[str, Any], builtin_registry: Registry) -> None:
    model = build_model({**tiny_values, "projector": "linear"}, builtin_registry, 320, meta=True)
    assert type(model.projector).__name__ == "Linear"
    assert model.tokens_per_image == 4
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert build_model({"backbone": "gpt"}, builtin_registry, 320, meta=True).encoder is None


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (
            "projector",
            {"name": "mlp", "in_dim": 768},
            r"in_dim 768 != resampler\.out_dim 16 \[.*align\.toml\]",
        ),
        ("resampler", {"name": "perceiver", "heads": 7, "dim": 16}, r"resampler\.heads 7 does not divide"),
        ("resampler", {"name": "perceiver", "latents": 256, "dim": 16}, r"resampler\.tokens 256 leave no room"),
        ("resampler", {"name": "avgpool", "tokens": 5}, "not a square"),
        ("projector", "identity", r"16 != backbone\.dim 32"),
        ("projector", None, "no projector chosen"),
        ("backbone", None, "no backbone chosen"),
        ("backbone", {"name": "gpt", "head_dim": 24}, "does not divide"),
        ("encoder", {"name": "efficientnet_lite", "image_sise": 3}, "image_sise"),
        ("encoder", {"name": "efficientnet_lite", "image_size": 100}, "image_size"),
    ],
)
def test_parts_that_do_not_fit(
    tiny_values: dict[str, Any], builtin_registry: Registry, kind: str, value: Any, message: str
) -> None:
    origins = {"projector.in_dim": "align.toml"}
    with pytest.raises(ConfigError, match=message):
        build_model({**tiny_values, kind: value}, builtin_registry, 320, meta=True, origins=origins)


def test_widths_name_the_encoder_they_stem_from(tiny_values: dict[str, Any], builtin_registry: Registry) -> None:
    values = {**tiny_values, "resampler": "identity", "projector": {"name": "linear", "in_dim": 768}}
    with pytest.raises(ConfigError, match=r"projector\.in_dim 768 != encoder\.out_dim 40"):
        build_model(values, builtin_registry, 320, meta=True)


def test_unknown_names(tiny_values: dict[str, Any], builtin_registry: Registry) -> None:
    with pytest.raises(MissingError, match="perceiver"):
        build_model({**tiny_values, "resampler": "perciever"}, builtin_registry, 320, meta=True)


class Empty(BaseModel):
    pass


class LyingEncoder(nn.Module):
    """Promises 9 positions of width 8 and returns 4 of them."""

    image_size, tokens, out_dim = (6, 6), 9, 8

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.new_zeros(pixels.shape[0], 4, 8)


def test_an_encoder_that_breaks_its_promise(tiny_values: dict[str, Any], builtin_registry: Registry) -> None:
    registry = Registry.from_specs(
        [*builtin_registry.specs(), encoder("liar", config=Empty, build=lambda c: LyingEncoder())]
    )
    with pytest.raises(ConfigError, match=r"encoder returns \[1, 4, 8\].*\[1, 9, 8\]"):
        plan({**tiny_values, "encoder": "liar"}, registry, 320)
    registry = Registry.from_specs(
        [*builtin_registry.specs(), encoder("bare", config=Empty, build=lambda c: nn.Identity())]
    )
    with pytest.raises(ConfigError, match="'bare' has no attribute 'image_size'"):
        build_model({**tiny_values, "encoder": "bare"}, registry, 320, meta=True)


def test_plan_counts_what_the_model_has(tiny_values: dict[str, Any], builtin_registry: Registry) -> None:
    made = plan(tiny_values, builtin_registry, 320)
    model = build_model(tiny_values, builtin_registry, 320)
    assert made.parameters == sum(p.numel() for p in model.parameters())
    by_kind = {part.kind: part for part in made.parts}
    width, layers, inner = 32, 2, 128
    linear = layers * (4 * width * width + 2 * width * inner)
    attention = layers * 2 * width * made.context
    assert by_kind["backbone"].flops == 2 * (linear + attention)
    assert by_kind["head"].flops == 2 * width * 320
    assert by_kind["projector"].flops == 2 * 4 * (16 * 32 + 32 * 32)
    assert by_kind["resampler"].shape == "[I, 16, 40] → [I, 4, 16]"
    assert by_kind["encoder"].flops > 1e5


def test_frozen_parts_need_less_memory(tiny_values: dict[str, Any], builtin_registry: Registry) -> None:
    made = plan(tiny_values, builtin_registry, 320)
    work = {"tokens": 1000, "images": 10, "targets": 100}
    choices: list[set[str]] = [set(), {"projector"}, {"projector", "backbone"}, set(MODEL_KINDS)]
    memory = [made.activation_bytes(**work, trained=trained) for trained in choices]
    assert memory == sorted(memory)
    assert 0 == memory[0] < memory[1] == memory[2] < memory[3]  # gradients to the projector pass the backbone


def test_activation_estimate_matches_a_real_pass(tiny_values: dict[str, Any], builtin_registry: Registry) -> None:
    """The hook on the meta device sees the tensors that a real pass keeps."""
    made = plan({"backbone": tiny_values["backbone"]}, builtin_registry, 320)
    model = build_model({"backbone": tiny_values["backbone"]}, builtin_registry, 320)
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def see(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        ids = torch.zeros(made.context, dtype=torch.long)
        cu_seqlens = torch.tensor([0, made.context], dtype=torch.int32)
        hidden = model.backbone(model.backbone.embed(ids), positions=torch.arange(made.context), cu_seqlens=cu_seqlens)
    assert hidden.shape == (made.context, 32)
    backbone = next(part for part in made.parts if part.kind == "backbone")
    # The fused attention kernel of a real device keeps less than the products counted on the meta device.
    assert sum(kept.values()) / made.context <= backbone.activation_bytes <= 4 * sum(kept.values()) / made.context


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_built_in_parts_conform(builtin_registry: Registry, kind: str) -> None:
    for spec in builtin_registry.specs(kind):
        options = {"weights": "random", "image_size": 32} if spec.name == "efficientnet_lite" else {}
        assert not check_component(spec, options=options)
