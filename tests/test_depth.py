"""The one dial of pretraining: against the published numbers, in the layers of a run, and in a real optimizer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from miniature import registry
from torch import nn

from components.backbones.config import GPT as GPTConfig
from components.backbones.gpt import GPT
from components.optimizers.config import Muon as MuonConfig
from components.optimizers.muon import ADAMW_RMS, build, orthogonalise
from ghostvis_plugins.config import resolve
from ghostvis_plugins.errors import ConfigError
from ghostvis_plugins.resolved import Resolved
from stages.config import PretrainConfig
from stages.depth import MATRIX_LR, MUON_RMS, VOCABULARY, Horizon, scaling_parameters, values_of_depth
from stages.optim import apply_table, parameter_groups

REGISTRY = registry()

# nanochat's dev/LOG.md: depth → weights that scale and tokens at a ratio of 10.5, as printed there, and the batch.
PUBLISHED = {8: (42, 0.44, 18), 10: (70, 0.7, 19), 16: (235, 2.5, 19), 18: (324, 3.4, 20), 26: (918, 9.6, 20)}
PUBLISHED |= {32: (1_700, 17.6, 21), 50: (6_200, 65.6, 21)}


@pytest.mark.parametrize(("depth", "published"), PUBLISHED.items())
def test_the_horizon_is_the_published_one(depth: int, published: tuple[int, float, int]) -> None:
    millions, billions, power = published
    horizon = Horizon.of(depth, ratio=10.5)
    assert horizon.parameters / 1e6 == pytest.approx(millions, rel=0.03)
    assert horizon.tokens / 1e9 == pytest.approx(billions, rel=0.06)  # of one printed digit
    assert horizon.batch_tokens == 2**power


def test_depth_12_is_the_reference_and_depth_20_follows_by_the_rules() -> None:
    """All rates at depth 12 are nanochat's own; at 20 the batch doubles, so rates are √2 of it."""
    base, large = values_of_depth(12), values_of_depth(20)
    assert base["stage"]["batch_tokens"] == 524_288
    assert base["stage"]["train"] == {
        "backbone.embedding": 0.3,
        "backbone.head": 0.008,
        "backbone.blocks": pytest.approx(5 * 0.02 / math.sqrt(768), rel=1e-3),
        "backbone.blocks.*.down": pytest.approx(5 * 0.02 / math.sqrt(4 * 768), rel=1e-3),
    }
    assert base["stage"]["steps"] == 12 * 110_100_480 // 524_288
    assert (base["backbone"]["depth"], base["backbone"]["head_dim"]) == (12, 128)
    by_width = math.sqrt(768 / 1280)
    assert large["stage"]["batch_tokens"] == 2 * 524_288
    assert large["stage"]["train"]["backbone.embedding"] == pytest.approx(0.3 * math.sqrt(2) * by_width, rel=1e-3)
    assert large["stage"]["train"]["backbone.blocks"] == pytest.approx(0.1 * math.sqrt(2 / 1280), rel=1e-3)
    decay = math.sqrt(2) * scaling_parameters(12, VOCABULARY) / scaling_parameters(20, VOCABULARY)
    translated = math.sqrt(1280 / 768)
    assert large["optimizer"]["weight_decay"] / base["optimizer"]["weight_decay"] == pytest.approx(
        decay * translated, rel=1e-3
    )


@given(depth=st.integers(1, 60), vocab_size=st.integers(264, 200_000), ratio=st.floats(1, 40))
def test_a_deeper_model_is_larger_and_trained_longer_in_larger_batches(
    depth: int, vocab_size: int, ratio: float
) -> None:
    one, two = Horizon.of(depth, vocab_size, ratio), Horizon.of(depth + 1, vocab_size, ratio)
    assert one.parameters < two.parameters
    assert one.tokens < two.tokens
    assert one.batch_tokens <= two.batch_tokens
    assert one.tokens == int(ratio * one.parameters)
    values = values_of_depth(depth, vocab_size, ratio)
    stage = values["stage"]
    assert values["backbone"]["aspect"] * depth % values["backbone"]["head_dim"] == 0
    assert stage["steps"] * stage["batch_tokens"] <= max(one.tokens, stage["batch_tokens"])
    assert all(rate > 0 for rate in stage["train"].values())


@pytest.mark.parametrize("depth", [1, 3])
def test_the_weights_that_scale_are_those_of_the_model(depth: int) -> None:
    options = {key: value for key, value in values_of_depth(depth)["backbone"].items() if key != "name"}
    model = GPT(GPTConfig(**options), 500)
    embedding = model.embedding.weight.numel()
    assert sum(p.numel() for p in model.parameters()) - embedding == scaling_parameters(depth, 500)


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (192, 64), (256, 64), (64, 256)])
def test_a_translated_rate_moves_a_matrix_as_far_as_the_original(rows: int, columns: int) -> None:
    """One step of ours at 5η/√fan-in is a step of η·√max(1, rows/columns) along the orthogonalised momentum."""
    assert MUON_RMS == ADAMW_RMS
    torch.manual_seed(rows + columns)
    weight, gradient = nn.Parameter(torch.zeros(rows, columns)), torch.randn(rows, columns)
    rate = MATRIX_LR / MUON_RMS / math.sqrt(columns)
    group = {"params": [weight], "names": ["up.weight"], "lr": rate, "peak_lr": rate}
    optimizer = build(MuonConfig(weight_decay=0), groups=[group])
    weight.grad = gradient.clone()
    optimizer.step()
    momentum = gradient.lerp(gradient * 0.05, 0.95)
    theirs = -MATRIX_LR * max(1, rows / columns) ** 0.5 * orthogonalise(momentum[None])[0]
    torch.testing.assert_close(weight.detach(), theirs, rtol=1e-3, atol=1e-6)


def resolved(*sets: str, **flags: Any) -> Resolved:
    return resolve(registry=REGISTRY, flags={"stage": "pretrain", **flags}, sets=sets, env={})


def test_every_value_can_be_overridden_and_leaves_the_others() -> None:
    plain = resolved(depth=12)
    expected = values_of_depth(12)
    assert plain.values["stage"]["train"] == expected["stage"]["train"]
    assert plain.values["optimizer"]["weight_decay"] == expected["optimizer"]["weight_decay"]
    assert plain.origins["stage.steps"] == "stage.depth = 12 with 32,768 token ids"
    assert plain.origins["stage.depth"] == "--depth"
    for override, key, value in (
        ("stage.batch_tokens=1024", "batch_tokens", 1024),
        ("stage.steps=7", "steps", 7),
        ('stage.train={"backbone.head" = 0.5}', "train", {**expected["stage"]["train"], "backbone.head": 0.5}),
    ):
        changed = resolved(override, depth=12)
        assert changed.values["stage"][key] == value
        assert {**changed.values["stage"], key: None} == {**plain.values["stage"], key: None}
        assert changed.values["backbone"] == plain.values["backbone"]


def test_contradictions_are_settled_by_the_higher_layer() -> None:
    assert resolved("stage.train={backbone = 1e-3}", depth=12).values["stage"]["train"] == {"backbone": 1e-3}
    by_epochs = resolved("stage.epochs=2", depth=12).values["stage"]
    assert (by_epochs["steps"], by_epochs["epochs"]) == (None, 2)
    adamw = resolved(depth=12, optimizer="adamw").values["optimizer"]
    assert (adamw["name"], adamw["weight_decay"]) == ("adamw", 0.01)
    with pytest.raises(ConfigError, match="dial of the backbone 'gpt', and 'decoder'"):
        resolved(depth=12, backbone="decoder")
    with pytest.raises(ConfigError, match=r"depth = 0: .*--depth"):
        resolved(depth=0)
    with pytest.raises(ConfigError, match=r"depth = 4: unknown key"):
        resolve(registry=REGISTRY, flags={"stage": "sft", "depth": 4}, env={})


def test_a_recipe_turns_the_dial_above_what_it_extends(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(
        '[stage]\nname = "pretrain"\nsteps = 5\nmicro_tokens = 64\n[backbone]\nname = "gpt"\ndepth = 2\n'
    )
    (tmp_path / "deep.toml").write_text('extends = "base.toml"\n[stage]\ndepth = 6\nwarmup = 3\n')
    run = resolve(registry=REGISTRY, recipes=["deep.toml"], env={}, cwd=tmp_path).values
    expected = values_of_depth(6)
    assert run["stage"]["steps"] == expected["stage"]["steps"]  # the dial stands above what is extended
    assert (run["backbone"]["depth"], run["stage"]["warmup"], run["stage"]["micro_tokens"]) == (6, 3, 64)
    flag = resolve(registry=REGISTRY, flags={"depth": 3}, recipes=["deep.toml"], env={}, cwd=tmp_path).values
    assert flag["backbone"]["head_dim"] == 64  # three times 64 is no multiple of 128
    assert flag["stage"]["warmup"] == 40  # what a recipe says about another depth lies beneath the flag


def test_the_vocabulary_comes_from_the_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 2048}))
    run = resolve(registry=REGISTRY, flags={"stage": "pretrain", "depth": 4, "from": str(tmp_path)}, env={})
    assert run.values["stage"]["steps"] == values_of_depth(4, 2048)["stage"]["steps"]
    assert "2,048 token ids" in run.origins["stage.steps"]
    longer = resolve(
        registry=REGISTRY,
        flags={"stage": "pretrain", "depth": 4, "from": str(tmp_path)},
        sets=["stage.ratio=24"],
        env={},
    )
    assert longer.values["stage"]["steps"] == pytest.approx(2 * run.values["stage"]["steps"], abs=1)


def test_the_table_covers_every_weight_of_the_model() -> None:
    """Each group has its own rate in the freeze table and in the optimizer, and nothing is left frozen."""
    values = values_of_depth(2)
    options = {key: value for key, value in values["backbone"].items() if key != "name"}
    model = nn.Module()
    model.backbone = GPT(GPTConfig(**options), 300)
    table = PretrainConfig(**values["stage"]).train
    rows = apply_table(model, table)
    assert all(row.lr for row in rows)
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in model.parameters())
    rates = {name: group["lr"] for group in parameter_groups(model, table) for name in group["names"]}
    assert rates["backbone.blocks.1.down.weight"] == table["backbone.blocks.*.down"]
    assert rates["backbone.blocks.1.up.weight"] == table["backbone.blocks"]
    assert rates["backbone.head.weight"] == table["backbone.head"]
