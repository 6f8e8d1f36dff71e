"""The resamplers that transformers has too: the same results from the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from components.compose import build_model
from components.encoders.config import Siglip
from components.encoders.vit import build_siglip
from components.resamplers.config import AvgPool as AvgPoolConfig
from components.resamplers.config import Idefics2 as Idefics2Config
from components.resamplers.config import PixelShuffle as PixelShuffleConfig
from components.resamplers.idefics2 import Idefics2
from components.resamplers.idefics2 import build as build_idefics2
from components.resamplers.pixel_shuffle import build as build_pixel_shuffle
from components.resamplers.pooling import build_avgpool
from ghostvis_plugins import ConfigError
from ghostvis_plugins.manager import Registry

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("library", ["idefics3", "smolvlm"])
@pytest.mark.parametrize(("side", "factor"), [(4, 2), (6, 3), (8, 4), (6, 1)])
def test_pixel_shuffle_equals_transformers(library: str, side: int, factor: int) -> None:
    if library == "idefics3":
        from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector as Connector
    else:
        from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector as Connector
    made = build_pixel_shuffle(PixelShuffleConfig(factor=factor), in_dim=5, in_tokens=side**2)
    features = torch.randn(2, side**2, 5)
    theirs = Connector.pixel_shuffle(None, features, factor)
    assert made(features).shape == (2, made.tokens, made.out_dim)
    assert torch.equal(made(features), theirs)


def test_pixel_shuffle_keeps_tiles_apart() -> None:
    made = build_pixel_shuffle(PixelShuffleConfig(factor=2, tiles=2), in_dim=3, in_tokens=5 * 16)
    one = build_pixel_shuffle(PixelShuffleConfig(factor=2), in_dim=3, in_tokens=16)
    features = torch.randn(2, 80, 3)
    views = [one(view) for view in features.split(16, dim=1)]
    assert torch.equal(made(features), torch.cat(views, dim=1))
    assert (made.tokens, made.out_dim) == (20, 12)


def test_average_pooling_keeps_tiles_apart() -> None:
    made = build_avgpool(AvgPoolConfig(tokens=4, tiles=2), in_dim=3, in_tokens=5 * 16)
    one = build_avgpool(AvgPoolConfig(tokens=4), in_dim=3, in_tokens=16)
    features = torch.randn(2, 80, 3)
    views = [one(view) for view in features.split(16, dim=1)]
    torch.testing.assert_close(made(features), torch.cat(views, dim=1))
    assert (made.tokens, made.out_dim) == (20, 3)
    whole = build_avgpool(AvgPoolConfig(tokens=16, tiles=2), in_dim=3, in_tokens=80)
    assert torch.equal(whole(features), features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 4}, r"encoder\.tokens = 80 is none\nresampler\.tiles must be what encoder\.tiles is"),
        ({"tokens": 4, "tiles": 3}, r"is none with resampler\.tiles = 3"),
        ({"tokens": 25, "tiles": 2}, r"25 > encoder\.tokens 16 of a tile"),
    ],
)
def test_average_pooling_needs_to_know_the_tiles(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_avgpool(AvgPoolConfig(**options), in_dim=3, in_tokens=80)
    caught.match(message)


@pytest.mark.parametrize(
    ("options", "in_tokens", "message"),
    [
        ({}, 15, r"encoder\.tokens = 15 is none\nresampler\.tiles must be"),
        ({}, 80, "square grid"),
        ({"tiles": 3}, 80, r"with resampler\.tiles = 3"),
        ({"factor": 2}, 729, "does not divide the grid of 27 x 27 features\nit can be 3 or 9 or 27"),
    ],
)
def test_pixel_shuffle_needs_a_grid_that_divides(options: dict[str, int], in_tokens: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_pixel_shuffle(PixelShuffleConfig(**options), in_dim=3, in_tokens=in_tokens)
    caught.match(message)


def connector(**perceiver: Any) -> Any:
    """transformers' connector for features of 24, a language model of 32, with every weight alive."""
    from transformers.models.idefics2.modeling_idefics2 import Idefics2Connector

    config = transformers.Idefics2Config(
        vision_config={"hidden_size": 24},
        text_config={"model_type": "mistral", "hidden_size": 32, "intermediate_size": 48, "rms_norm_eps": 1e-6},
        perceiver_config={"hidden_size": 32, **perceiver},
    )
    torch.manual_seed(0)
    made = Idefics2Connector(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def idefics2(**options: Any) -> Idefics2:
    config = Idefics2Config(**{"projection_hidden": 48, **options})
    made = build_idefics2(config, in_dim=24, in_tokens=10, model_dim=32)
    torch.manual_seed(1)
    made.init_weights()
    return made.eval()


@torch.no_grad()
@pytest.mark.parametrize("heads", [(4, 2), (4, 1), (3, 3)])
def test_idefics2_equals_transformers_both_ways(heads: tuple[int, int]) -> None:
    published = {"resampler_n_heads": heads[0], "num_key_value_heads": heads[1], "resampler_head_dim": 8}
    theirs = connector(resampler_n_latents=6, resampler_depth=3, **published)
    ours = idefics2(latents=6, heads=heads[0], kv_heads=heads[1], head_dim=8)
    features, seen = torch.randn(2, 10, 24), torch.ones(2, 10, dtype=torch.long)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(features), theirs(features, seen), rtol=0, atol=1e-5)
    other = idefics2(latents=6, heads=heads[0], kv_heads=heads[1], head_dim=8)
    theirs.load_state_dict(other.state_dict())
    torch.testing.assert_close(theirs(features, seen), other(features), rtol=0, atol=1e-5)


def test_idefics2_has_the_size_of_the_published_connector() -> None:
    """The options' defaults are those of Idefics2-8B, whose projection has the inner width of its language model."""
    from transformers.models.idefics2.modeling_idefics2 import Idefics2Connector

    config = transformers.Idefics2Config(
        vision_config={"hidden_size": 1152},
        text_config={"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336},
    )
    with torch.device("meta"):
        theirs = Idefics2Connector(config)
        options = Idefics2Config(projection_hidden=14336)
        ours = build_idefics2(options, in_dim=1152, in_tokens=729, model_dim=4096)
    expected = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == expected


@torch.no_grad()
def test_idefics2_starts_with_latents_that_differ_at_unit_scale() -> None:
    out = idefics2(latents=6)(torch.randn(2, 10, 24))
    assert out.shape == (2, 6, 32)
    torch.testing.assert_close(out.square().mean(-1), torch.ones(2, 6), rtol=1e-2, atol=1e-2)
    assert (out[0, 0] - out[0, 1]).abs().max() > 0.1
    assert not torch.allclose(out[0], out[1])


def test_heads_that_do_not_divide() -> None:
    with pytest.raises(ValidationError, match="kv_heads 3 does not divide heads 16"):
        Idefics2Config(kv_heads=3)


def test_idefics2_is_used_without_a_projector(tiny_values: dict[str, Any], builtin_registry: Registry) -> None:
    resampler = {"name": "idefics2", "latents": 4, "depth": 1, "heads": 2, "kv_heads": 1, "head_dim": 8}
    model = build_model({**tiny_values, "resampler": resampler, "projector": "identity"}, builtin_registry, 320)
    assert (model.tokens_per_image, model.resampler.out_dim) == (4, model.backbone.dim)
    assert next(model.projector.parameters(), None) is None


@pytest.mark.parametrize("resampler", [{"name": "pixel_shuffle", "factor": 2}, {"name": "avgpool", "tokens": 4}])
def test_a_tiled_tower_and_its_resampler(
    resampler: dict[str, Any], tiny_values: dict[str, Any], builtin_registry: Registry
) -> None:
    options = {"checkpoint": "vit_base_patch16_siglip_224", "image_size": 64, "feature_layer": 1, "tiles": 2}
    encoder = {"name": "siglip", "weights": "random", **options}
    values = {**tiny_values, "encoder": encoder, "resampler": {**resampler, "tiles": 2}, "projector": "linear"}
    model = build_model(values, builtin_registry, 320, meta=True)
    assert model.tokens_per_image == build_siglip(Siglip(weights="random", **options)).tokens // 4 == 20
