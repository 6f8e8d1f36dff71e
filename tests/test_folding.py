"""Folding BatchNorm changes the speed of a frozen encoder, and nothing else."""

from __future__ import annotations

import copy

import torch

from components.encoders.config import EfficientNetLite
from components.encoders.efficientnet_lite import build


def random_encoder(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    encoder = build(EfficientNetLite(image_size=64, weights="random"))
    encoder.init_weights()
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
    return encoder


def test_features_are_those_of_the_written_forward_pass() -> None:
    encoder, pixels = random_encoder(0), torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        folded, plain = encoder(pixels), encoder.features(pixels)
    torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))
    assert not torch.equal(folded, plain)  # else nothing was folded, and this test compares a thing with itself


def test_new_weights_are_seen() -> None:
    encoder, other, pixels = random_encoder(0), random_encoder(1), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        encoder(pixels)
        encoder.load_state_dict(other.state_dict())
        torch.testing.assert_close(encoder(pixels), other(pixels))
        encoder.stem[1].running_mean.add_(1.0)
        assert not torch.allclose(encoder(pixels), other(pixels))


def test_checkpoints_and_copies_never_see_the_folded_one() -> None:
    encoder, pixels = random_encoder(0), torch.randn(1, 3, 64, 64)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with torch.no_grad():
        features = encoder(pixels)
        copied = copy.deepcopy(encoder)
        assert torch.equal(copied(pixels), features)
    assert encoder.state_dict().keys() == before.keys()
    assert all(torch.equal(encoder.state_dict()[name], tensor) for name, tensor in before.items())


def test_gradients_reach_an_encoder_that_trains() -> None:
    encoder = random_encoder(0)
    encoder(torch.randn(1, 3, 64, 64)).sum().backward()
    assert encoder.stem[0].weight.grad is not None
