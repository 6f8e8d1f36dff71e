"""A model directory: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from components import weights
from components.batch import Batch
from components.encoders.efficientnet_lite import EfficientNetLite
from components.images import decode
from components.rendering import render
from components.tokenizers import Tokenizer
from components.vlm import VLM
from components.weights import load_model, save_model, state_hash, weights_hash
from ghostvis_plugins import DataError, MissingError
from ghostvis_plugins.manager import Registry
from ghostvis_plugins.types import Conversation, Image, assistant, user


@pytest.fixture
def folder(
    tmp_path: Path,
    tiny_model: VLM,
    tiny_tokenizer: Tokenizer,
    tiny_config: dict[str, Any],
) -> Path:
    return save_model(tmp_path / "model", tiny_model, tiny_tokenizer, tiny_config, {"values": {"seed": 0}})


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_round_trip(
    folder: Path,
    tiny_model: VLM,
    tiny_tokenizer: Tokenizer,
    builtin_registry: Registry,
    make_picture: Callable[[int], Image],
) -> None:
    loaded = load_model(folder, builtin_registry)
    assert not loaded.model.training
    state = loaded.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in tiny_model.state_dict().items())
    sample = Conversation((user(make_picture(0), "what is it?"), assistant("a cat")))
    batch = Batch.pack([render(sample, loaded.tokenizer, loaded.model.tokens_per_image)])
    batch.pixels = torch.stack([loaded.model.encoder.preprocess(decode(make_picture(0)))])
    with torch.no_grad():
        assert torch.equal(loaded.model.hidden(batch), tiny_model.hidden(batch))
    assert loaded.tokenizer.encode("naïve 漢字") == tiny_tokenizer.encode("naïve 漢字")
    assert loaded.config["eval"] == ["easy_vqa"]
    assert loaded.config["components"]["backbone"]["softcap"] == 15, "defaults are spelt out"
    assert json.loads((folder / "resolved.json").read_text()) == {"values": {"seed": 0}}
    assert (folder / "chat_template.jinja").is_file()


def test_loading_fetches_and_initialises_nothing(
    folder: Path, builtin_registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(folder, components={
        **json.loads((folder / "config.json").read_text())["components"],
        "encoder": {"name": "efficientnet_lite", "image_size": 32, "feature_layer": 3, "weights": "package"},
    })  # fmt: skip
    monkeypatch.setattr(EfficientNetLite, "init_weights", lambda self: pytest.fail("init_weights was called"))
    load_model(folder, builtin_registry)


def test_a_plain_language_model(
    tmp_path: Path,
    tiny_values: dict[str, Any],
    tiny_tokenizer: Tokenizer,
    builtin_registry: Registry,
) -> None:
    from components.compose import build_model, components_of

    values = {**tiny_values, "encoder": None}
    model = build_model(values, builtin_registry, tiny_tokenizer.vocab_size)
    save_model(tmp_path / "text", model, tiny_tokenizer, {"components": components_of(model, values, builtin_registry)})
    loaded = load_model(tmp_path / "text", builtin_registry)
    assert loaded.model.tokens_per_image == 0
    assert loaded.config["components"]["projector"] is None
    assert loaded.config["transform_hash"] is None


def test_hashes_follow_the_weights(folder: Path, tiny_model: VLM, builtin_registry: Registry) -> None:
    before = weights_hash(folder), state_hash(tiny_model)
    assert state_hash(load_model(folder, builtin_registry).model) == before[1]
    edit_weights(folder, lambda state: state["backbone.head.weight"][0].add_(1))
    assert weights_hash(folder) != before[0]
    with torch.no_grad():
        tiny_model.backbone.head.weight[0, 0] += 1e-3
    assert state_hash(tiny_model) != before[1]


def test_saving_again_replaces_the_whole(folder: Path, tiny_model: VLM, tiny_tokenizer: Tokenizer) -> None:
    (folder / "stray").write_text("old")
    config = weights.read_config(folder)
    save_model(folder, tiny_model, tiny_tokenizer, config)
    assert not (folder / "stray").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("step", ["save_file", "_flush", "_put"])
def test_an_interrupted_save_leaves_the_former_model(
    folder: Path,
    tiny_model: VLM,
    tiny_tokenizer: Tokenizer,
    builtin_registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    before = weights_hash(folder)
    with torch.no_grad():
        tiny_model.backbone.head.weight.zero_()
    monkeypatch.setattr(weights, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_model(folder, tiny_model, tiny_tokenizer, weights.read_config(folder))
    assert weights_hash(folder) == before
    load_model(folder, builtin_registry)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def lie(folder: Path) -> None:
    """A header that promises petabytes."""
    header = {"x": {"dtype": "F32", "shape": [2**50], "data_offsets": [0, 2**52]}}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 64)


def lie_about_the_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": 1}))


def disguised(folder: Path) -> None:
    torch.save({"x": torch.zeros(3)}, folder / "model.safetensors")


def drop(state: dict[str, torch.Tensor]) -> None:
    del state["backbone.head.weight"]


def add(state: dict[str, torch.Tensor]) -> None:
    state["extra"] = torch.zeros(1)


def reshape(state: dict[str, torch.Tensor]) -> None:
    state["projector.up.bias"] = torch.zeros(3)


def component(kind: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        edit(folder, components={**weights.read_config(folder)["components"], kind: value})

    return change


BAD = {
    "truncated": (truncate, DataError, "truncated"),
    "lying": (lie, DataError, "truncated or not a safetensors file"),
    "lying header": (lie_about_the_header, DataError, "truncated or not a safetensors file"),
    "pickle": (pickled, DataError, r"pytorch_model\.bin are refused"),
    "pickle in disguise": (disguised, DataError, "not a safetensors file"),
    "missing tensor": (lambda f: edit_weights(f, drop), DataError, r"1 missing \(backbone\.head\.weight\)"),
    "unexpected tensor": (lambda f: edit_weights(f, add), DataError, r"1 unexpected \(extra\)"),
    "wrong shape": (lambda f: edit_weights(f, reshape), DataError, r"projector\.up\.bias is \[3\], needed is \[32\]"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), MissingError, r"no model\.safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), MissingError, r"no config\.json"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), MissingError, "tokenizer"),
    "not JSON": (lambda f: (f / "config.json").write_text("{"), DataError, "JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), DataError, "not a GhostVis model"),
    "another architecture": (
        lambda f: (f / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}'),
        DataError,
        "LlamaForCausalLM",
    ),
    "a newer format": (lambda f: edit(f, format_version=2), DataError, "format_version 2"),
    "another vocabulary": (lambda f: edit(f, vocab_size=7), DataError, "vocab_size 7"),
    "no vocabulary": (lambda f: edit(f, vocab_size="many"), DataError, "vocab_size is malformed"),
    "no components": (lambda f: edit(f, components=None), DataError, "no backbone"),
    "a malformed component": (component("encoder", {"size": 3}), DataError, r"components\.encoder is malformed"),
    "an unknown component": (component("encoder", {"name": "siglop"}), MissingError, r"config\.json.*siglop"),
    "another transform": (lambda f: edit(f, transform_hash="0"), DataError, "prepare pictures differently"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_directories(folder: Path, builtin_registry: Registry, case: str) -> None:
    spoil, error, message = BAD[case]
    spoil(folder)
    with pytest.raises(error, match=message):
        load_model(folder, builtin_registry)


def test_bad_paths(tmp_path: Path, builtin_registry: Registry) -> None:
    with pytest.raises(MissingError, match="no such directory"):
        load_model(tmp_path / "nowhere", builtin_registry)
    (tmp_path / "model.pt").write_bytes(b"x")
    with pytest.raises(DataError, match="is a file"):
        load_model(tmp_path / "model.pt", builtin_registry)
