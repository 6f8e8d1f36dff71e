"""Adapters by peft: they alone train, the model that leaves has them in its weights, and a run may be cut anywhere."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import registry, values, write_tokenizer
from safetensors.torch import load_file
from torch import Tensor, nn

from components import lora
from components.backbones.config import GPT as GPTConfig
from components.backbones.config import Decoder as DecoderConfig
from components.backbones.decoder import build
from components.backbones.gpt import GPT
from components.batch import Batch
from components.flops import StepFlops
from components.rendering import Rendered
from components.trackers.jsonl import read_metrics
from components.vlm import VLM
from components.weights import load_model
from ghostvis_plugins.errors import ConfigError, UnavailableError
from stages.config import LoRA
from stages.loop import MEASURED
from stages.optim import apply_table, format_table
from stages.runner import run

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

VOCABULARY, DIM = 96, 32
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": DIM, "intermediate_size": 48, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen2 of transformers, saved."""
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SHAPE, tie_word_embeddings=True))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("qwen2")
    model.save_pretrained(folder)
    return folder


def decoder(folder: Path, dtype: str = "float32") -> Any:
    model = build(DecoderConfig(weights=str(folder), dtype=dtype), vocab_size=VOCABULARY)
    model.init_weights()
    return model


def gpt() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(depth=2, aspect=16, head_dim=8, max_positions=64), VOCABULARY)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def liven(backbone: nn.Module) -> None:
    """B starts at zero, where it would hide what the tests look for."""
    torch.manual_seed(1)
    for name, parameter in backbone.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.1)


IDS = torch.arange(1, 30) % VOCABULARY


@torch.no_grad()
def logits(backbone: Any) -> Tensor:
    bounds = torch.tensor([0, len(IDS)], dtype=torch.int32)
    found: Tensor = backbone.logits(backbone(backbone.embed(IDS), positions=torch.arange(len(IDS)), cu_seqlens=bounds))
    return found


@pytest.mark.parametrize("kind", ["decoder", "gpt"])
def test_a_merged_model_is_the_adapted_one(kind: str, published: Path) -> None:
    backbone: Any = decoder(published) if kind == "decoder" else gpt()
    names, before = list(backbone.state_dict()), logits(backbone)
    lora.attach(backbone, lambda path: True, rank=4, alpha=8)
    assert torch.equal(logits(backbone), before)  # an adapter starts as nothing
    layers = {name.rpartition(".lora_A")[0] for name, _ in backbone.named_parameters() if ".lora_A." in name}
    assert len(layers) == 2 * (7 if kind == "decoder" else 4)
    liven(backbone)
    adapted = logits(backbone)
    assert not torch.allclose(adapted, before, atol=0.1)
    lora.merge(backbone)
    assert list(backbone.state_dict()) == names
    torch.testing.assert_close(logits(backbone), adapted, rtol=1e-5, atol=1e-5)


def test_the_adapters_fit_the_published_model(published: Path, tmp_path: Path) -> None:
    """The independent reference: transformers and peft, with the published weights and what a run leaves."""
    backbone = decoder(published)
    lora.attach(backbone, lambda path: path != "layers.0.mlp.up_proj", rank=4, alpha=8, targets=["q_proj", "up_proj"])
    liven(backbone)
    lora.save(backbone, tmp_path / "adapter", "Qwen/Qwen2")
    reference = transformers.Qwen2ForCausalLM.from_pretrained(published)
    reference = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter").eval()
    assert sum(".lora_A." in name for name, _ in reference.named_parameters()) == 3
    with torch.no_grad():
        expected = reference(IDS[None]).logits[0]
    lora.merge(backbone)
    torch.testing.assert_close(logits(backbone), expected, rtol=1e-5, atol=1e-5)


def test_only_adapters_get_gradients_over_a_small_type(published: Path) -> None:
    model = VLM(decoder(published, "bfloat16"))
    rows = apply_table(model, {"backbone.layers.-1:": 1e-3}, LoRA(rank=4, targets=["q_proj", "down_proj"]))
    added = 4 * (DIM + DIM) + 4 * (48 + DIM)
    size = sum(p.numel() for p in model.parameters())
    assert [(row.path, row.lr, row.parameters) for row in rows] == [
        ("backbone", 0.0, size - added - sum(p.numel() for p in model.backbone.layers[1].parameters()) + added),
        ("backbone.layers.1:2", 0.0, sum(p.numel() for p in model.backbone.layers[1].parameters()) - added),
        ("backbone.layers.1:2 (LoRA)", 1e-3, added),
    ]
    assert f"{added:,} of {size:,}" in format_table(rows)
    batch = Batch.pack([Rendered(IDS.tolist(), [False] * 9 + [True] * 20, [], (), "a")])
    loss, _ = model.loss(batch)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == lora.is_adapter(name), name
        assert parameter.dtype == (torch.float32 if lora.is_adapter(name) else torch.bfloat16)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    lora.merge(model.backbone)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_operations_are_those_of_the_definition() -> None:
    """A frozen layer costs twice its forward pass, its adapter three times; the first layer's own input none."""
    rank, layers, width = 4, 2, DIM
    model = VLM(gpt())
    apply_table(model, {"backbone": 1e-3}, LoRA(rank=rank))
    found = StepFlops.measure(model).text
    full = 12 * width * width  # weights of a layer's four
    last = 9 * width * width  # of which behind attention
    added, added_last = rank * (2 + 4 + 5 + 5) * width, rank * (2 + 5 + 5) * width
    first_qkv = 2 * (3 * width * width + rank * width)  # nothing below wants a gradient: not for W, not for A
    body = 4 * (layers * full - last) + 6 * (layers * added - added_last) - first_qkv
    assert found.token == body
    assert found.target == 4 * last + 6 * added_last + 4 * width * VOCABULARY


RUN: dict[str, Any] = {
    "stage__steps": 20,
    "stage__train": {"projector": 1e-2, "backbone": 2e-2},
    "stage__lora": {"rank": 4, "dropout": 0.1},
    "stage__eval_samples": 8,
    "stage__checkpoint_every": 8,
    "stage__keep_checkpoints": 9,
    "stage__features": "none",
    "backbone__depth": 2,
    "dataset": {"colours": {}},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``before`` is a model that sees, ``run`` a run of adapters that starts from it."""
    home = tmp_path_factory.mktemp("lora")
    options = {"stage__steps": 20, "stage__train": {"projector": 1e-2, "backbone": 2e-2}, "backbone__depth": 2}
    texts = values(write_tokenizer(home / "tokenizer"), "sft", dataset={"texts": {}}, **options)
    run(texts, registry(), home / "before")
    run(given(home), registry(), home / "run")
    return home


def given(home: Path) -> dict[str, Any]:
    return values(home / "before" / "model", "sft", **RUN)


def test_a_run_trains_adapters_and_leaves_a_plain_model(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = read_metrics(finished / "run")
    assert rows[-1]["val_loss"] < 0.7 * rows[0]["loss"]
    assert "backbone (LoRA)" in (finished / "run/report.md").read_text()
    before = load_file(finished / "before/model/model.safetensors")
    after = load_file(finished / "run/model/model.safetensors")
    adapters = load_file(finished / "run/adapter/adapter_model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        key = f"base_model.model.{name.removeprefix('backbone.').removesuffix('.weight')}.lora_"
        if f"{key}A.weight" in adapters:  # the base had not moved by a bit, or this would not be exact
            moved = adapters[f"{key}B.weight"] @ adapters[f"{key}A.weight"] * (32 / 4)
            assert torch.equal(after[name], tensor + moved)
            assert moved.abs().max() > 0
        elif not name.startswith("projector."):
            assert torch.equal(after[name], tensor), name
    assert len(adapters) == 2 * 2 * 4
    monkeypatch.setitem(sys.modules, "peft", None)
    load_model(finished / "run/model", registry())


def test_a_resumed_run_of_adapters_is_the_same_run(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    for left in ("model", "adapter", "checkpoints/step_16", "checkpoints/step_20"):
        shutil.rmtree(tmp_path / "run" / left)
    run(given(finished), registry(), tmp_path / "run", resume=True)
    rows = [
        [{key: value for key, value in row.items() if key not in MEASURED} for row in read_metrics(home / "run")]
        for home in (finished, tmp_path)
    ]
    assert rows[0] == rows[1]
    for file in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (finished / "run" / file).read_bytes()


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no linear layer 'q_proj'") as caught:
        apply_table(VLM(gpt()), {"backbone": 1e-3}, LoRA(targets=["q_proj"]))
    assert caught.value.hint == "they have qkv, out, up, down"
    with pytest.raises(ConfigError, match=r"stage.train gives no layer .* a learning rate"):
        apply_table(VLM(gpt()), {"backbone.embedding": 1e-3}, LoRA())
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UnavailableError, match="needs the package peft"):
        apply_table(VLM(gpt()), {"backbone": 1e-3}, LoRA())
