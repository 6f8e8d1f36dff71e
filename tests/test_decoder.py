"""The pretrained backbone against transformers, with exchanged weights; and everything a folder can have wrong."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from components.backbones.architecture import read_architecture, rope_frequencies
from components.backbones.checkpoints import CHECKPOINTS
from components.backbones.config import Architecture, RopeScaling
from components.backbones.config import Decoder as Config
from components.backbones.decoder import Decoder, build
from components.pretrained.sources import is_cached
from ghostvis_plugins import ConfigError, DataError, GhostVisError, MissingError, UnavailableError

transformers = pytest.importorskip("transformers")

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
MILLION = {"rope_type": "default", "rope_theta": 1_000_000.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": MILLION}),
    "qwen2-untied": ("Qwen2", {"tie_word_embeddings": False, "rope_parameters": MILLION}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True, "head_dim": 16, "rope_parameters": MILLION}),
    "llama": ("Llama", {"tie_word_embeddings": False, "rms_norm_eps": 1e-5}),
    "llama3-scaled": ("Llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
}


def peer(family: str, **changes: Any) -> Any:
    """A small model of transformers with weights of lively size, biases and norms included."""
    name, options = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **options, **changes})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """Model and folder of a family, made once."""
    made: dict[str, tuple[Any, Path]] = {}

    def make(family: str) -> tuple[Any, Path]:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            model = peer(family)
            model.save_pretrained(folder)
            made[family] = (model, folder)
        return made[family]

    return make


@pytest.fixture(scope="module")
def loaded(saved: Callable[[str], tuple[Any, Path]]) -> Callable[[str], Decoder]:
    """Our own model of a family, read once."""
    return cache(lambda family: load(saved(family)[1]))


def load(folder: Path | str, vocab_size: int = 96, **options: Any) -> Decoder:
    model = build(Config(weights=str(folder), **options), vocab_size=vocab_size)
    model.init_weights()
    return model.eval()


@torch.no_grad()
def logits(model: Decoder, ids: torch.Tensor, start: int = 0) -> torch.Tensor:
    bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
    positions = torch.arange(start, start + len(ids))
    return model.logits(model(model.embed(ids), positions=positions, cu_seqlens=bounds))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("start", [0, 8180, 32_768 - 40])
def test_logits_equal_transformers(saved: Any, family: str, start: int) -> None:
    model, folder = saved(family)
    ids = torch.randint(96, (40,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids[None], position_ids=torch.arange(start, start + 40)[None]).logits[0]
    assert expected.std() > 0.5
    assert (logits(load(folder), ids, start) - expected).abs().max() <= 1e-4


@pytest.mark.slow
def test_logits_equal_transformers_over_32768_tokens(saved: Any) -> None:
    model, folder = saved("qwen2-tied")
    model.config._attn_implementation = "sdpa"
    ids = torch.randint(96, (32_768,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids[None]).logits[0]
    assert (logits(load(folder), ids) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None)
@given(
    first=st.integers(1, 12),
    second=st.integers(1, 12),
    pieces=st.lists(st.integers(1, 4), min_size=1, max_size=4),
)
def test_cached_decoding_is_the_full_pass(
    loaded: Callable[[str], Decoder], family: str, first: int, second: int, pieces: list[int]
) -> None:
    """Two prompts of any length side by side, then the rest of both in pieces of any size."""
    model = loaded(family)
    total = [length + sum(pieces) for length in (first, second)]
    texts = [torch.randint(96, (n,), generator=torch.Generator().manual_seed(n)) for n in total]
    memory = model.new_cache(2, max(total))
    found: list[list[torch.Tensor]] = [[], []]
    at = [0, 0]
    for sizes in ([first, second], *([piece, piece] for piece in pieces)):
        ids = torch.cat([text[a : a + n] for text, a, n in zip(texts, at, sizes, strict=True)])
        positions = torch.cat([torch.arange(a, a + n) for a, n in zip(at, sizes, strict=True)])
        bounds = torch.tensor([0, *sizes], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        with torch.no_grad():
            hidden = model(model.embed(ids), positions=positions, cu_seqlens=bounds, cache=memory)
            for row, part in enumerate(model.logits(hidden).split(sizes)):
                found[row].append(part)
        at = [a + n for a, n in zip(at, sizes, strict=True)]
    for text, parts in zip(texts, found, strict=True):
        torch.testing.assert_close(torch.cat(parts), logits(model, text), rtol=1e-4, atol=1e-4)


def test_only_some_rows(saved: Any) -> None:
    model = load(saved("qwen3")[1])
    ids, rows = torch.arange(12), torch.tensor([3, 11])
    where = {"positions": torch.arange(12), "cu_seqlens": torch.tensor([0, 12], dtype=torch.int32)}
    with torch.no_grad():
        some = model(model.embed(ids), **where, rows=rows)
        torch.testing.assert_close(some, model(model.embed(ids), **where)[rows])


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_table_entry_has_the_published_parameters(name: str) -> None:
    with torch.device("meta"):
        model = build(Config(checkpoint=name), vocab_size=1000)
    entry = CHECKPOINTS[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == entry.parameters
    assert model.vocab_size == entry.architecture["vocab_size"]
    assert model.max_positions == entry.architecture["max_positions"] >= 8192


def test_scaled_frequencies_equal_transformers() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(hidden_size=128, num_attention_heads=2, rope_parameters=LLAMA3)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    rule = RopeScaling(factor=32, low_freq_factor=1, high_freq_factor=4, original_max_positions=8192)
    assert torch.equal(rope_frequencies(64, 500_000.0, rule), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_types(saved: Any, dtype: str) -> None:
    _, folder = saved("qwen2-tied")
    model = load(folder, dtype=dtype)
    assert {str(p.dtype) for p in model.parameters()} == {f"torch.{dtype}"}
    exact, found = logits(load(folder), torch.arange(20)), logits(model, torch.arange(20))
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found, exact, dim=-1).min() > 0.999


def test_more_ids_than_published(saved: Any) -> None:
    """An added placeholder gets a row; the rows before it stay, and new ones are the mean of all."""
    _, folder = saved("qwen2-untied")
    plain, grown = load(folder), load(folder, vocab_size=97)
    assert (plain.vocab_size, grown.vocab_size) == (96, 128)
    for name in ("embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(grown.get_parameter(name)[:96], plain.get_parameter(name))
        mean = plain.get_parameter(name).mean(dim=0)
        torch.testing.assert_close(grown.get_parameter(name)[96:], mean.expand(32, -1))


def test_sharded_folders(saved: Any, tmp_path: Path) -> None:
    model, folder = saved("qwen2-untied")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 3
    assert torch.equal(logits(load(tmp_path), torch.arange(9)), logits(load(folder), torch.arange(9)))


def test_the_completed_config_needs_no_folder(saved: Any) -> None:
    _, folder = saved("llama3-scaled")
    model = load(folder)
    again = build(Config.model_validate(model.config.model_dump(mode="json")), vocab_size=96)
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits(again.eval(), torch.arange(9)), logits(model, torch.arange(9)))


def test_a_shorter_context(saved: Any) -> None:
    _, folder = saved("llama")
    model = load(folder, max_positions=16)
    with pytest.raises(DataError, match=r"17 tokens exceeds backbone\.max_positions = 16"):
        logits(model, torch.arange(17))
    with pytest.raises(ConfigError, match="exceeds the 32768"):
        load(folder, max_positions=32_769)


# What a folder can have wrong.


@pytest.fixture
def broken(saved: Any, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a family's folder with values of config.json changed (None: removed) and tensors replaced."""

    def make(
        family: str = "qwen2-tied", tensors: Callable[[dict[str, Any]], None] | None = None, **config: Any
    ) -> Path:
        _, folder = saved(family)
        values = json.loads((folder / "config.json").read_text())
        for key, value in config.items():
            values.pop(key, None) if value is None else values.update({key: value})
        (tmp_path / "config.json").write_text(json.dumps(values))
        state = load_file(folder / "model.safetensors")
        if tensors is not None:
            tensors(state)
        save_file(state, tmp_path / "model.safetensors")
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "'mamba' is not supported.*"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "'yarn' is not supported"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"num_key_value_heads": 3}, "kv_heads 3 does not divide the 4 heads"),
        ({"num_hidden_layers": "many"}, "layers"),
        ({"hidden_size": 64}, "embed_tokens.weight is \\[96, 32\\], needed is \\[96, 64\\]"),
        ({"num_hidden_layers": 4}, "12 missing .*layers.3"),
        ({"num_hidden_layers": 2}, "12 unexpected .*layers.2"),
        ({"num_hidden_layers": 10**9}, "layers: Input should be less than"),
        ({"hidden_size": 2**62}, "dim: Input should be less than"),
        ({"vocab_size": 2**63}, "vocab_size: Input should be less than"),
        ({"rms_norm_eps": float("inf")}, "norm_eps: Input should be a finite number"),
        ({"rope_parameters": {**MILLION, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5 is not supported"),
        ({"rope_parameters": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor 1.0 <= low_freq_factor 1.0"),
    ],
)
def test_a_configuration_that_does_not_fit(broken: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(broken(**changes))


def test_a_configuration_without_an_end(broken: Any) -> None:
    folder = broken()
    (folder / "config.json").write_text('{"a": ' + "[" * 100_000)
    with pytest.raises(DataError, match="cannot be read as JSON"):
        load(folder)


def test_more_memory_than_there_is(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")  # as torch says it

    monkeypatch.setattr(Decoder, "to_empty", refuse)
    with pytest.raises(UnavailableError, match=r"the backbone's 1033\.0 GiB do not fit into the memory of cpu"):
        load(broken(vocab_size=2**24, hidden_size=2**14))


def test_a_qwen3_without_a_width_of_heads_has_the_librarys(broken: Any) -> None:
    assert read_architecture(broken("qwen3", head_dim=None)).head_dim == transformers.Qwen3Config().head_dim


def test_an_unknown_model_lists_the_known(broken: Any) -> None:
    with pytest.raises(DataError) as caught:
        load(broken(model_type="gpt_neox"))
    assert "llama, qwen2, qwen3" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.layers.1.mlp.up_proj.weight"), "1 missing .*layers.1.mlp.up_proj.weight"),
        (lambda s: s.update({"model.extra.weight": torch.zeros(2)}), "1 unexpected .*model.extra.weight"),
        (lambda s: s.update({"model.norm.weight": torch.zeros(33)}), r"norm.weight is \[33\], needed is \[32\]"),
        (lambda s: s.update({"model.norm.weight": torch.zeros(32, dtype=torch.int8)}), "norm.weight is of type I8"),
        (lambda s: s.update({"lm_head.weight": torch.zeros(96, 32)}), "a head of its own"),
        (lambda s: s.update({"lm_head.weight": torch.zeros(95, 32)}), "a head of its own"),
    ],
)
def test_tensors_that_do_not_fit(broken: Any, change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(broken(tensors=change))


def test_a_tied_head_that_is_written_twice(broken: Any, saved: Any) -> None:
    folder = broken(tensors=lambda s: s.update({"lm_head.weight": s["model.embed_tokens.weight"].clone()}))
    assert torch.equal(logits(load(folder), torch.arange(9)), logits(load(saved("qwen2-tied")[1]), torch.arange(9)))


def test_a_tokenizer_of_another_model(saved: Any) -> None:
    with pytest.raises(ConfigError, match="has 50000 ids, but the weights know 96"):
        load(saved("llama")[1], vocab_size=50_000)


def test_weights_that_contradict_the_checkpoint(saved: Any) -> None:
    with pytest.raises(ConfigError, match=r"not the backbone.checkpoint smollm2-135m: .*dim is 32, not 576"):
        load(saved("llama")[1], checkpoint="smollm2-135m")


def test_unknown_checkpoints_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"known are qwen2\.5-0\.5b, "):
        Config(checkpoint="qwen9")
    with pytest.raises(MissingError, match="there is no "):
        load(tmp_path / "nowhere")
    for source in ("./nowhere", "../nowhere", "~nobody/here", "x" * 5000, "org/" + "x" * 5000):
        with pytest.raises(MissingError, match="there is no "):
            load(source)
    with pytest.raises(MissingError, match=r"config\.json does not exist"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="no package carries qwen2"):
        load("package")


@pytest.mark.parametrize("weights", ["hub", "some-org/some-model", "some-org/some-model@main"])
def test_a_hub_out_of_reach(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"OfflineModeIsEnabled|LocalEntryNotFoundError") as caught:
        load(weights)
    assert caught.value.exit_code == 5
    assert "set backbone.weights to a folder" in (caught.value.hint or "")


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(UnavailableError, match=r"org/model cannot be put into the hub's cache: No space left"):
        load("org/model")


def test_half_of_a_repository_is_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    assert not is_cached("org/model")
    (tmp_path / "model-1.safetensors").touch()
    assert is_cached("org/model")
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert not is_cached("org/model")
    (tmp_path / "model-2.safetensors").touch()
    assert is_cached("org/model")
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    assert not is_cached("org/model")


@settings(max_examples=200, deadline=None)
@given(
    key=st.sampled_from(sorted({*SHAPE, "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "layer_types"})),
    value=st.one_of(st.none(), st.integers(-9, 9), st.text(max_size=3), st.lists(st.integers()), st.booleans()),
)
def test_no_configuration_leads_to_a_traceback(tmp_path_factory: Any, key: str, value: Any) -> None:
    """Any value in any place gives an architecture or an error of ours."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "config.json").write_text(json.dumps({**SHAPE, "rms_norm_eps": 1e-6, "model_type": "qwen2", key: value}))
    with contextlib.suppress(GhostVisError):
        assert isinstance(read_architecture(folder), Architecture)


def test_a_small_type_is_frozen_under_what_trains(saved: Any) -> None:
    """A bfloat16 backbone under a float32 projector: gradients reach the projector; float16 itself is not trained."""
    from components.batch import Batch
    from components.rendering import Rendered
    from components.vlm import VLM
    from stages.optim import apply_table

    projector = torch.nn.Linear(8, 32)
    model = VLM(load(saved("qwen2-tied")[1], dtype="bfloat16"), *_vision(projector))
    with pytest.raises(ConfigError, match=r"backbone.*is float16; weights that train are float32 or bfloat16"):
        apply_table(VLM(load(saved("qwen2-tied")[1], dtype="float16"), *_vision(projector)), {"backbone": 1e-3})
    apply_table(model, {"projector": 1e-3})
    ids = (5, 7, 7, 7, 7, 9, 11)
    batch = Batch.pack([Rendered(ids, (False,) * 5 + (True,) * 2, [(1, 4)], [None], "sample")])
    batch.pixels = torch.randn(1, 3, 4, 4)
    loss, count = model(batch)
    loss.backward()
    assert count == 2
    assert projector.weight.grad is not None
    assert projector.weight.grad.abs().max() > 0


def _vision(projector: torch.nn.Module) -> tuple[Any, Any, Any]:
    encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 2, stride=2), torch.nn.Flatten(2))
    resampler = torch.nn.Identity()
    encoder.register_forward_hook(lambda module, inputs, output: output.transpose(1, 2))
    resampler.tokens = 4
    return encoder, resampler, projector
