"""How parameters are dealt to ranks, and in which order their gradients leave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from components.backbones.config import GPT as Config
from components.backbones.gpt import GPT
from components.optimizers.adamw import build as build_adamw
from components.optimizers.config import AdamW, Muon
from components.optimizers.muon import build as build_muon
from components.vlm import VLM
from stages import parallel
from stages.config import PretrainConfig
from stages.distributed import Distributed
from stages.optim import Schedule, apply_table
from stages.parallel import Dealt, share_model


def model(depth: int = 8, aspect: int = 16, vocabulary: int = 512) -> VLM:
    with torch.device("meta"):
        return VLM(GPT(Config(depth=depth, aspect=aspect, head_dim=16, max_positions=64), vocabulary))


def dealt(world: int, name: str = "adamw", **shape: int) -> list[Dealt]:
    """The share of each rank, as each of them would make it."""
    build = {
        "adamw": lambda groups: build_adamw(AdamW(), groups=groups),
        "muon": lambda groups: build_muon(Muon(), groups=groups),
    }[name]
    shares = []
    for rank in range(world):
        net = model(**shape)
        config = PretrainConfig(steps=1, train={"backbone": 1e-3, "backbone.head": 2e-3})
        apply_table(net, config.train)
        share = share_model(net, Distributed(rank, world), config, build)
        assert isinstance(share, Dealt)
        shares.append(share)
    return shares


@settings(deadline=None, max_examples=20)
@given(world=st.integers(2, 9), depth=st.integers(1, 3), name=st.sampled_from(["adamw", "muon"]))
def test_every_parameter_has_one_owner(world: int, depth: int, name: str) -> None:
    """Also with more ranks than parameters; and all ranks agree on the buckets and on the largest learning rate."""
    shares = dealt(world, name, depth=depth)
    names = sorted(name for name, _ in shares[0].model.named_parameters())
    assert sorted(name for share in shares for name in share.names) == names
    schedule = Schedule(PretrainConfig(steps=10, warmup=0), 10)
    assert {schedule.apply(share, 1) for share in shares} == {2e-3 * schedule(1)}
    for share in shares:
        assert all(group["lr"] == group["peak_lr"] * schedule(1) for group in share.optimizer.param_groups)
    buckets = [[(b.owner, [tuple(p.shape) for p in b.parameters]) for b in share.buckets] for share in shares]
    assert all(found == buckets[0] for found in buckets)


@pytest.mark.parametrize("world", [2, 4, 8])
def test_muon_is_dealt_by_work(world: int) -> None:
    """The embedding and the head, a third of the weights, keep nobody from having the same matrices to work on."""
    shares = dealt(world, "muon", depth=12, aspect=64, vocabulary=32768)
    costs = [sum(share.optimizer.cost(p) for p in share.parameters) for share in shares]
    assert max(costs) < 1.05 * min(costs)
    matrices = [sum(p.numel() for p in share.parameters if max(p.shape) < 32768) for share in shares]
    assert max(matrices) < 2.5 * min(matrices)


def test_state_is_dealt_by_size() -> None:
    shares = dealt(4)
    sizes = [sum(p.numel() for p in share.parameters) for share in shares]
    assert max(sizes) < 1.1 * sum(sizes) / 4


def test_buckets_leave_as_gradients_become_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the backward pass's order, those of one owner together, none much larger than it may be."""
    monkeypatch.setattr(parallel, "BUCKET_BYTES", 100_000)
    (share, _) = dealt(2)
    order = {id(p): number for number, p in enumerate(reversed(list(share.model.parameters())))}
    lasts = [max(order[id(p)] for p in bucket.parameters) for bucket in share.buckets]
    assert lasts == sorted(lasts)
    assert sorted(id(p) for bucket in share.buckets for p in bucket.parameters) == sorted(order)
    assert len(share.buckets) > 8
    for bucket in share.buckets:
        assert len(bucket.parameters) == 1 or sum(p.nbytes for p in bucket.parameters) <= 100_000


def test_one_process_shares_nothing() -> None:
    """What nothing used has a gradient of zero all the same, or an optimizer would treat it otherwise."""
    net = model()
    net.to_empty(device="cpu")
    apply_table(net, {"backbone": 1e-3})
    built: list[Any] = []

    def build(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        built.append(build_adamw(AdamW(), groups=groups))
        return built[-1]

    alone = share_model(net, Distributed(), PretrainConfig(steps=1), build)
    assert alone.optimizer is built[0]
    assert len(built) == 1
    assert len(alone.parameters) == len(list(net.parameters()))
    alone.sum_gradients()
    assert all(isinstance(p, nn.Parameter) and not p.grad.any() for p in alone.parameters)  # type: ignore[union-attr]
