"""The estimate of memory is what real tensors of the same model take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from miniature import registry, values
from test_bfloat16 import BACKBONE as HALF
from test_fsdp import TIED
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from components.compose import build_model
from components.optimizers import adamw, muon
from components.optimizers.config import AdamW, Muon
from components.planning import plan
from components.vlm import VLM
from ghostvis_cli.train import check, plan_text
from ghostvis_plugins.config import resolve
from stages.config import LoRA, SFTConfig
from stages.distributed import Distributed
from stages.footprint import ASSUMED, Footprint, footprint
from stages.optim import apply_table
from stages.parallel import Sharded, share_model

VOCABULARY = 512
DECODER = {"name": "decoder", "weights": "random", "architecture": {**TIED, "vocab_size": VOCABULARY}}
BUILDS: dict[str, Any] = {
    "adamw": lambda groups: adamw.build(AdamW(), groups=groups),
    "muon": lambda groups: muon.build(Muon(), groups=groups),
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the model, and of the stage
    "everything": ({}, {"train": {"encoder": 1e-3, "projector": 1e-3, "backbone": 1e-3}}),
    "projector": ({}, {"train": {"projector": 1e-3}}),
    "last layer": ({"backbone": DECODER}, {"train": {"backbone.layers.-1:": 1e-3}}),
    "bfloat16": ({"backbone": HALF}, {"train": {"projector": 1e-3, "backbone": 1e-3}}),
    "adapters": ({"backbone": HALF}, {"train": {"projector": 1e-3, "backbone": 1e-3}, "lora": LoRA(rank=2)}),
}


def made(case: str, *, meta: bool, **more: Any) -> tuple[VLM, SFTConfig]:
    options, stage = CASES[case]
    given = values(Path(), "sft", encoder__layers=2, **options)
    model = build_model(given, registry(), VOCABULARY, meta=meta)
    config = SFTConfig(steps=1, **stage, **more)
    apply_table(model, config.train, config.lora)
    return model, config


def held(tensors: Iterable[Any]) -> int:
    """Bytes of the tensors, or of the parts of them that are here."""
    found = [t.to_local() if hasattr(t, "to_local") else t for t in tensors if isinstance(t, Tensor)]
    return sum(tensor.nbytes for tensor in found)


def stepped(share: Any) -> Footprint:
    """What is held after a step of a rank's own optimizer, with a gradient for all that trains."""
    trained = [parameter for parameter in share.model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    if share.parameters:
        share.optimizer.step()
    state = [value for values in getattr(share.optimizer, "state", {}).values() for value in values.values()]
    return Footprint(held(share.model.parameters()), held(p.grad for p in trained), held(state))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "world"), [("adamw", 1), ("adamw", 2), ("adamw", 40), ("muon", 1), ("muon", 3)])
def test_weights_gradients_and_state_are_to_the_byte(case: str, name: str, world: int) -> None:
    """Of the rank that keeps the most state (ZeRO-1); bfloat16 weights have 2 + 2 + 10 bytes, float32 ones 16."""
    estimate = footprint(*made(case, meta=True), world, BUILDS[name])
    found = []
    for rank in range(min(world, 8)):
        model, config = made(case, meta=False)
        found.append(stepped(share_model(model, Distributed(rank, world), config, BUILDS[name])))
    assert {(own.weights, own.gradients) for own in found} == {(estimate.weights, estimate.gradients)}
    assert max(own.optimizer for own in found) == estimate.optimizer
    assert estimate.whole == 0
    if (case, name, world) == ("bfloat16", "adamw", 1):
        weights = [p for p in model.backbone.parameters() if p.requires_grad]
        bare = [p for p in model.projector.parameters() if p.requires_grad]
        scalars = 4 * (len(weights) + len(bare))
        own = 14 * sum(p.numel() for p in weights) + 16 * sum(p.numel() for p in bare) + scalars
        assert estimate.total - held(p for p in model.parameters() if not p.requires_grad) == own


@pytest.fixture
def ranks() -> Iterator[int]:
    """A process group of whose ranks only the first is real."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=3)
    yield 3
    dist.destroy_process_group()


@pytest.mark.parametrize("case", ["everything", "projector", "last layer"])
def test_shards_are_to_the_byte(case: str, ranks: int) -> None:
    """The first rank has the largest parts of tensors that cannot be cut evenly."""
    estimate = footprint(*made(case, meta=True, fsdp_above=0), ranks, BUILDS["adamw"])
    model, config = made(case, meta=False, fsdp_above=0)
    share = share_model(model, Distributed(0, ranks), config, BUILDS["adamw"])
    assert isinstance(share, Sharded)
    assert stepped(share) == Footprint(estimate.weights, estimate.gradients, estimate.optimizer)
    whole = footprint(*made(case, meta=True), ranks, BUILDS["adamw"])
    assert estimate.weights < whole.weights
    assert estimate.whole > 0


def test_an_optimizer_that_cannot_step_there_is_taken_for_adamw() -> None:
    class Impatient(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            raise NotImplementedError

    model, config = made("projector", meta=True)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    said: list[str] = []
    found = footprint(model, config, 1, lambda groups: Impatient(groups, lr=0.1), said.append)
    assert found.optimizer == ASSUMED * trained
    assert "8 bytes a number are assumed" in said[0]


@pytest.mark.parametrize("backbone", [{"name": "gpt", "depth": 6, "aspect": 16, "head_dim": 16}, HALF])
def test_layers_that_are_computed_again_keep_less(backbone: dict[str, Any]) -> None:
    """And more than nothing: the inputs of all layers, and one whole layer while it is computed again."""
    work = {"tokens": 1000, "images": 0, "targets": 0, "trained": {"backbone"}}
    given = {"backbone": backbone}
    whole, less = (plan(given, registry(), VOCABULARY, recomputes=again) for again in (False, True))
    inputs = 1000 * backbone.get("depth", 2) * (96 if backbone["name"] == "gpt" else 32) * 2
    assert inputs < less.activation_bytes(**work) < whole.activation_bytes(**work)
    assert whole.parts[0].flops == less.parts[0].flops


def test_the_dry_run_knows_what_a_stage_says() -> None:
    def estimate(*sets: str, processes: int = 1) -> dict[str, Any]:
        flags = {"stage": "pretrain", "backbone": "gpt", "dataset": ["texts"], "optimizer": "adamw"}
        shape = ["stage.steps=1", "backbone.depth=6", "backbone.aspect=16", "backbone.head_dim=16"]
        resolved = resolve(registry=registry(), flags=flags, sets=[*shape, *sets], argv=["ghostvis"])
        return check(resolved, VOCABULARY, processes)

    plain, again = estimate(), estimate("stage.activation_checkpointing=true")
    assert again["memory"]["activations"] < plain["memory"]["activations"] / 2
    assert plain["peak_bytes"] == sum(plain["memory"].values())
    four, shards = estimate(processes=4), estimate("stage.fsdp_above=0", processes=4)
    assert four["memory"]["weights"] == plain["memory"]["weights"]
    assert four["memory"]["optimizer"] < plain["memory"]["optimizer"] / 2
    assert four["memory"]["activations"] == pytest.approx(plain["memory"]["activations"] / 4, rel=0.01)
    assert shards["memory"]["weights"] == pytest.approx(plain["memory"]["weights"] / 4, rel=0.01)
    assert "of each of 4 processes" in plan_text(four)
