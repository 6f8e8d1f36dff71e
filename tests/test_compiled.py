"""What is compiled computes what it computed before, and only inside."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code

from components.backbones import decoder, gpt
from components.backbones.config import GPT, Architecture, Decoder
from components.compiled import add_product, compiled
from components.encoders import vit
from components.encoders.config import Siglip
from components.precision import Half
from components.vlm import VLM
from ghostvis_plugins import GhostVisError

SMALL = Architecture(
    model_type="qwen3", dim=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=96, qk_norm=True, vocab_size=300,
    max_positions=128, rope_theta=1e4, norm_eps=1e-6, tie=True,
)  # fmt: skip


def backbone(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "decoder":
        model: nn.Module = decoder.build(Decoder(weights="random", architecture=SMALL), vocab_size=300)
    else:
        model = gpt.build(GPT(depth=2, aspect=32, head_dim=16, kv_heads=2), vocab_size=300)
    model.init_weights()
    for parameter in model.parameters():
        if parameter.ndim == 2 and not parameter.any():
            nn.init.normal_(parameter, std=0.05)  # gpt's output projections start at zero
    return model


def gradients(model: nn.Module, lengths: list[int]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    total = sum(lengths)
    ids = torch.randint(300, (total,), generator=torch.Generator().manual_seed(1))
    rows = torch.arange(0, total - 1, 2)
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])
    hidden = model(model.embed(ids), positions=positions, cu_seqlens=cu_seqlens, rows=rows)
    loss = model.nll(hidden, ids[rows + 1])
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}}


@pytest.mark.parametrize("name", ["gpt", "decoder"])
def test_compiled_layers_give_the_same_loss_and_gradients(name: str) -> None:
    """For packs of other sizes, too; and outside everything is as it was."""
    model = backbone(name)
    methods = {name: cls.__dict__[name] for cls in map(type, model.modules()) for name in getattr(cls, "compiles", ())}
    layers = model.blocks if name == "gpt" else model.layers
    assert methods
    packs = [[40, 50], [30, 30]]
    expected = [gradients(model, lengths) for lengths in packs]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with compiled(model):
        assert all(cls.__dict__[name] is not methods[name] for cls in map(type, layers) for name in ("before", "after"))
        found = [gradients(model, lengths) for lengths in packs]
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    for before, after in zip(expected, found, strict=True):
        for key, value in before.items():
            assert torch.allclose(value, after[key], rtol=1e-4, atol=1e-5 * float(value.abs().max()) + 1e-7), key
    after = {name: cls.__dict__[name] for cls in map(type, model.modules()) for name in getattr(cls, "compiles", ())}
    assert after == methods


@pytest.mark.parametrize("name", ["gpt", "decoder"])
def test_layers_that_are_computed_again_learn_the_same_from_less(name: str) -> None:
    model, lengths = backbone(name), [40, 50]
    found, kept = [], []
    for again in (False, True):
        model.activation_checkpointing = again
        sizes: dict[int, int] = {}

        def keep(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            found.append(gradients(model, lengths))
        kept.append(sum(sizes.values()))
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())
    assert kept[1] < kept[0] / 2


def test_what_a_class_inherits_is_compiled_as_well() -> None:
    """FSDP gives every module a class of its own."""
    model = backbone("gpt")
    own = type(model.blocks[0])
    for block in model.blocks:
        block.__class__ = type("Sharded", (own,), {})
    before = own.before
    with compiled(model):
        assert model.blocks[0].before.__func__ is not before
    assert own.before is before


def test_a_wrong_list_of_methods_is_named() -> None:
    class Odd(nn.Module):
        compiles = "forward"

    with pytest.raises(GhostVisError, match=r"Odd.compiles: 'forward' is no tuple"), compiled(Odd()):
        pass


@pytest.mark.parametrize("apart", [True, False])
def test_a_residual_is_added_where_it_is_read(apart: bool) -> None:
    """And not by the product, as the compiler would have it: that copies the residual first."""
    layer = nn.Linear(64, 64, bias=False)

    def normed(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(add_product(x, layer, y) if apart else x + layer(y), (64,))

    with torch.no_grad():
        _, (code,) = run_and_get_code(torch.compile(normed), torch.randn(32, 64), torch.randn(32, 64))
    assert ("addmm(" not in code) == apart


def test_nothing_is_compiled_when_it_is_off() -> None:
    model = backbone("gpt")
    before = type(model.blocks[0]).before
    with compiled(model, enabled=False):
        assert type(model.blocks[0]).before is before


def test_a_frozen_encoder_computes_from_a_copy_in_half_precision() -> None:
    """Its own weights stay as they are, bit by bit, and nothing of the copy is saved."""
    tower = Siglip(checkpoint="vit_base_patch16_siglip_224", image_size=32, feature_layer=2, weights="random")
    encoder = vit.build_siglip(tower)
    encoder.init_weights()
    model = VLM(backbone("gpt"), encoder.requires_grad_(False), nn.Identity(), nn.Identity())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pixels = torch.randn(2, 3, 32, 32)
    full = model.encode(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.encode(pixels)
    assert full.dtype == torch.float32
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(full.flatten(1), half.float().flatten(1)).min() > 0.999
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_copy_follows_the_weights() -> None:
    layer, half = nn.Linear(4, 4), Half()
    first = half.of(layer, torch.bfloat16)
    assert half.of(layer, torch.bfloat16) is first
    assert half.of(layer, torch.float32) is layer
    with torch.no_grad():
        layer.weight.add_(1)
    second = half.of(layer, torch.bfloat16)
    assert torch.equal(second.weight, layer.weight.bfloat16())
