"""Encoder, resamplers, projectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from components import packages
from components.encoders import efficientnet_lite
from components.encoders.config import EfficientNetLite as EncoderConfig
from components.encoders.efficientnet_lite import EfficientNetLite
from components.images import decode, transform_hash
from components.projectors.config import MLP as MLPConfig
from components.projectors.config import Identity as IdentityConfig
from components.projectors.config import Linear as LinearConfig
from components.projectors.mlp import build_identity, build_linear, build_mlp
from components.resamplers.config import AvgPool as AvgPoolConfig
from components.resamplers.config import Perceiver as PerceiverConfig
from components.resamplers.perceiver import build as build_perceiver
from components.resamplers.pooling import build_avgpool
from ghostvis_plugins import ConfigError, DataError, UnavailableError
from ghostvis_plugins.types import Image


def encoder(**options: Any) -> EfficientNetLite:
    torch.manual_seed(0)
    made = EfficientNetLite(EncoderConfig(**{"image_size": 64, "weights": "random", **options}))
    made.init_weights()
    return made


def lukemelas_names() -> dict[str, torch.Tensor]:
    """A full random state dict in the packaged file's naming: same order, other stems, same last parts."""
    torch.manual_seed(1)
    full = efficientnet_lite._timm_model().state_dict()
    return {f"_port_{n}.{name.rpartition('.')[2]}": tensor for n, (name, tensor) in enumerate(full.items())}


@pytest.mark.parametrize("layer", [1, 3, 5, 7, "head", "multi"])
@torch.no_grad()
def test_features_have_the_promised_shape(layer: int | str) -> None:
    made = encoder(feature_layer=layer)
    assert made(torch.randn(2, 3, 64, 64)).shape == (2, made.tokens, made.out_dim)


@torch.no_grad()
def test_features_are_those_of_timm_in_reading_order(tmp_path: Path) -> None:
    state = lukemelas_names()
    torch.save(state, tmp_path / "weights.pth")
    full = efficientnet_lite._timm_model().eval()
    full.load_state_dict(dict(zip(full.state_dict(), state.values(), strict=True)))
    x = torch.randn(2, 3, 64, 64)
    weights = str(tmp_path / "weights.pth")
    grids = {number: full.blocks[:number](full.bn1(full.conv_stem(x))) for number in (5, 7)}
    for number, grid in grids.items():
        ours = encoder(feature_layer=number, weights=weights)(x)
        torch.testing.assert_close(ours, grid.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)
    head = full.forward_features(x)
    ours = encoder(feature_layer="head", weights=weights)(x)
    torch.testing.assert_close(ours, head.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)
    both = encoder(feature_layer="multi", weights=weights)(x)
    torch.testing.assert_close(both[..., :112], grids[5].flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)
    assert both[0, 0, 112:].ne(both[0, -1, 112:]).any()


def test_statistics_never_move() -> None:
    made = encoder(feature_layer=3).train()
    before = {name: buffer.clone() for name, buffer in made.named_buffers()}
    made(torch.randn(4, 3, 64, 64)).sum().backward()
    assert all(torch.equal(before[name], buffer) for name, buffer in made.named_buffers())


def test_preprocessing_is_what_transform_says(make_picture: Callable[[int], Image]) -> None:
    made = encoder()
    pixels = made.preprocess(decode(make_picture(0)))
    assert pixels.shape == (3, 64, 64)
    assert pixels.dtype == torch.float32
    white = made.preprocess(PIL.Image.new("RGB", (10, 30), "white"))
    assert torch.equal(white, torch.ones(3, 64, 64)), "padding is white, and white is 1"


@torch.no_grad()
def test_the_way_of_resizing_is_recorded_and_hardly_seen() -> None:
    """As an option of the transform; without it the transform, and so its hash, is that of earlier models."""
    exact, fast = encoder(image_size=128), encoder(image_size=128, resize="fast")
    fast.load_state_dict(exact.state_dict())
    assert transform_hash(exact.transform()) == "0eae2fd8b96dfb05"
    assert fast.transform() == {**exact.transform(), "resize": "fast"}
    rough = PIL.Image.effect_noise((40, 30), 120).resize((400, 300), PIL.Image.Resampling.BICUBIC)
    picture = PIL.Image.merge("RGB", [rough, rough.rotate(90).resize(rough.size), rough.rotate(180)])
    features = [made(made.preprocess(picture)[None]).double() for made in (exact, fast)]
    assert torch.nn.functional.cosine_similarity(*features, dim=-1).min() > 0.999


@pytest.mark.network
@torch.no_grad()
def test_packaged_weights_know_imagenet_statistics() -> None:
    made = EfficientNetLite(EncoderConfig(image_size=64, feature_layer="head"))
    made.init_weights()
    assert 0.1 < made(torch.randn(2, 3, 64, 64)).std() < 2


def test_unreachable_weights_stop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(name: str) -> Path:
        raise UnavailableError(f"no {name}")

    monkeypatch.setattr(packages, "fetch", unreachable)
    with pytest.raises(UnavailableError, match="efficientnet-lite0"):
        encoder(weights="package")
    with pytest.raises(UnavailableError, match="no file"):
        encoder(weights=str(tmp_path / "nowhere.pth"))


def test_files_that_are_not_these_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_text("not a tensor")
    with pytest.raises(DataError, match="not a PyTorch state dict"):
        encoder(weights=str(path))
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(DataError, match="holds 1 tensors"):
        encoder(weights=str(path))
    state = lukemelas_names()
    torch.save({**state, "_port_0.weight": torch.zeros(1)}, path)
    with pytest.raises(DataError, match=r"_port_0\.weight \(1,\) does not fit conv_stem"):
        encoder(weights=str(path))


def test_perceiver_reads_places_and_contents() -> None:
    torch.manual_seed(0)
    made = build_perceiver(PerceiverConfig(latents=6, heads=2, dim=16), in_dim=12, in_tokens=9)
    made.init_weights()
    features = torch.randn(2, 9, 12)
    out = made(features)
    assert out.shape == (2, made.tokens, made.out_dim) == (2, 6, 16)
    shuffled = made(features[:, torch.randperm(9)])
    assert (shuffled - out).abs().max() > 1e-2, "the same features elsewhere are another picture"
    torch.testing.assert_close(made(features[1:]), out[1:])
    assert (out[0, 0] - out[0, 1]).abs().max() > 1e-2, "latents differ"
    out.square().sum().backward()
    assert all(p.grad is not None for p in made.parameters())


def test_perceiver_defaults_and_self_attention() -> None:
    made = build_perceiver(PerceiverConfig(self_attention=True), in_dim=32, in_tokens=4)
    made.init_weights()
    assert (made.tokens, made.out_dim, len(made.layers)) == (64, 32, 2)
    assert made(torch.randn(1, 4, 32)).shape == (1, 64, 32)


def test_perceiver_does_not_care_for_the_scale_of_the_encoder() -> None:
    made = build_perceiver(PerceiverConfig(latents=3, heads=1), in_dim=12, in_tokens=9)
    made.init_weights()
    features = torch.randn(1, 9, 12)
    torch.testing.assert_close(made(features), made(1000 * features), rtol=1e-3, atol=1e-3)


def test_average_pooling_takes_cells_of_the_grid() -> None:
    made = build_avgpool(AvgPoolConfig(tokens=4), in_dim=5, in_tokens=16)
    features = torch.randn(3, 16, 5)
    grid = features.view(3, 4, 4, 5)
    expected = [grid[:, a : a + 2, b : b + 2].mean((1, 2)) for a in (0, 2) for b in (0, 2)]
    torch.testing.assert_close(made(features), torch.stack(expected, dim=1))
    assert torch.equal(build_avgpool(AvgPoolConfig(tokens=16), in_dim=5, in_tokens=16)(features), features)


@pytest.mark.parametrize(
    ("tokens", "in_tokens", "message"),
    [(5, 16, "not a square"), (4, 15, "square grid"), (16, 9, "16 > encoder.tokens 9")],
)
def test_average_pooling_needs_squares(tokens: int, in_tokens: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_avgpool(AvgPoolConfig(tokens=tokens), in_dim=5, in_tokens=in_tokens)


@pytest.mark.parametrize(("build", "config"), [(build_mlp, MLPConfig()), (build_linear, LinearConfig())])
def test_projectors_start_at_unit_scale_whatever_comes_in(build: Callable[..., Any], config: Any) -> None:
    torch.manual_seed(0)
    made = build(config, in_dim=64, out_dim=256)
    made.init_weights()
    for scale in (0.01, 100):
        rms = made(scale * torch.randn(8, 4, 64)).square().mean().sqrt()
        assert 0.85 < rms < 1.15


def test_identity_projector_needs_equal_widths() -> None:
    x = torch.randn(2, 3, 8)
    assert build_identity(IdentityConfig(), in_dim=8, out_dim=8)(x) is x
    with pytest.raises(ConfigError, match=r"8 != backbone\.dim 9"):
        build_identity(IdentityConfig(), in_dim=8, out_dim=9)
