"""What a published model says about its shape: ``config.json`` of a folder, fields of a GGUF.

Everything that would change the computation and is not supported is refused by name: a model that loads is exact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from components.pretrained.gguf import GGUFFile, open_gguf
from ghostvis_plugins.errors import DataError, MissingError

from .config import Architecture, RopeScaling

SUPPORTED = ("llama", "qwen2", "qwen3")
QWEN3_HEAD_DIM = 128  # where a config.json names none
ROPE_FACTORS = "rope_freqs.weight"  # a GGUF's way to say rope_scaling


def read_architecture(path: Path) -> Architecture:
    """The architecture of a Hugging Face folder or a ``.gguf`` file. Raises DataError, MissingError."""
    if path.suffix == ".gguf":
        return _from_gguf(open_gguf(path))
    file = (path if path.is_dir() else path.parent) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingError(f"{file} does not exist; it says what model the weights belong to") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"{file} is not a model's configuration")
    return _from_hf(config, file)


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """Angle per position ``[hd / 2]``, float32, rounded as Hugging Face's code does.

    At position 32,767 the last bit of a frequency is a thousandth of a turn, so the order of operations matters.
    """
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    return frequencies if scaling is None else _stretched(frequencies, scaling)


def _stretched(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1: waves longer than the original context turn ``factor`` times slower, short ones stay, with a blend."""
    waves = 2 * torch.pi / frequencies
    low, high, original = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_positions
    slow = torch.where(waves > original / low, frequencies / scaling.factor, frequencies)
    share = (original / waves - low) / (high - low)
    blend = (1 - share) * slow / scaling.factor + share * slow
    between = (waves >= original / high) & (waves <= original / low)
    return torch.where(between, blend, slow)


def _from_hf(config: Mapping[str, Any], file: Path) -> Architecture:
    kind = config.get("model_type")
    if kind not in SUPPORTED:
        raise DataError(f"{file}: model_type {kind!r} is not supported", hint=f"supported: {', '.join(SUPPORTED)}")
    try:
        _refuse_unsupported(config, kind, file)
        rope = {**config, **(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
        if rope.get("partial_rotary_factor") not in (None, 1):
            raise DataError(f"{file}: partial_rotary_factor {rope['partial_rotary_factor']!r} is not supported")
        heads = config["num_attention_heads"]
        return Architecture(
            model_type=kind,
            dim=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or (QWEN3_HEAD_DIM if kind == "qwen3" else config["hidden_size"] // heads),
            ffn=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            max_positions=config["max_position_embeddings"],
            rope_theta=rope.get("rope_theta", 10_000.0),
            rope_scaling=_scaling(rope, file),
            norm_eps=config["rms_norm_eps"],
            qkv_bias=kind == "qwen2",
            qk_norm=kind == "qwen3",
            tie=config.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise DataError(f"{file} has no {error.args[0]}") from error
    except ValidationError as error:
        raise _invalid(file, error) from error
    except (TypeError, ZeroDivisionError) as error:
        raise DataError(f"{file} is malformed: {error}") from error


def _refuse_unsupported(config: Mapping[str, Any], kind: str, file: Path) -> None:
    expected: dict[str, tuple[Any, ...]] = {
        "hidden_act": ("silu",),
        "mlp_bias": (False,),
        "attention_bias": (True,) if kind == "qwen2" else (False,),
        "use_sliding_window": (False,),
        "quantization_config": (None,),
    }
    for key, allowed in expected.items():
        if config.get(key, allowed[0]) not in allowed:
            raise DataError(f"{file}: {key} = {config[key]!r} is not supported; {allowed[0]!r} is")
    if any(layer != "full_attention" for layer in config.get("layer_types") or ()):
        raise DataError(f"{file}: layer_types other than full_attention are not supported")


def _scaling(rope: Mapping[str, Any], file: Path) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type")) or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise DataError(f"{file}: rope_type {kind!r} is not supported", hint="supported: default, llama3")
    return RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_positions=rope["original_max_position_embeddings"],
    )


def _from_gguf(file: GGUFFile) -> Architecture:
    kind: Any = file.architecture
    if kind not in SUPPORTED:
        raise DataError(
            f"{file.path}: architecture '{kind}' is not supported", hint=f"supported: {', '.join(SUPPORTED)}"
        )
    for key, plain in (("rope.scaling.type", "none"), ("rope.scale_linear", 1)):
        if (scaling := file.field(f"{{}}.{key}", plain)) != plain:
            raise DataError(f"{file.path}: {key} {scaling!r} is not supported")
    heads, dim = file.field("{}.attention.head_count"), file.field("{}.embedding_length")
    rows = (file.shapes.get("token_embd.weight") or (0,))[0]
    try:
        architecture = Architecture(
            model_type=kind,
            dim=dim,
            layers=file.field("{}.block_count"),
            heads=heads,
            kv_heads=file.field("{}.attention.head_count_kv", heads),
            head_dim=file.field("{}.attention.key_length", dim // heads if dim and heads else 0),
            ffn=file.field("{}.feed_forward_length"),
            vocab_size=rows,
            max_positions=file.field("{}.context_length"),
            rope_theta=file.field("{}.rope.freq_base", 10_000.0),
            norm_eps=file.field("{}.attention.layer_norm_rms_epsilon", 1e-5),
            qkv_bias=kind == "qwen2",
            qk_norm=kind == "qwen3",
            tie="output.weight" not in file.shapes,
        )
    except ValidationError as error:
        raise _invalid(file.path, error) from error
    except TypeError as error:
        raise DataError(f"{file.path} is malformed: {error}") from error
    turned = file.field("{}.rope.dimension_count", architecture.head_dim)
    if turned != architecture.head_dim:
        raise DataError(
            f"{file.path}: rope.dimension_count {turned!r} of a head of {architecture.head_dim} is not supported"
        )
    # Stored in single precision: 1e-05 comes back as 9.99999974e-06.
    architecture.norm_eps = float(f"{architecture.norm_eps:.6g}")
    return _with_rope_factors(architecture, file)


def _with_rope_factors(architecture: Architecture, file: GGUFFile) -> Architecture:
    """Llama 3.2 as a GGUF carries the result of its scaling, not the rule; the published rule must give that result."""
    if ROPE_FACTORS not in file.shapes:
        return architecture
    plain, factors = rope_frequencies(architecture.head_dim, architecture.rope_theta, None), file.get(ROPE_FACTORS)
    for factor in (8.0, 32.0):  # Llama 3.1 and 3.2
        scaling = RopeScaling(factor=factor, low_freq_factor=1, high_freq_factor=4, original_max_positions=8192)
        if factors.shape == plain.shape and torch.allclose(plain / _stretched(plain, scaling), factors, rtol=1e-3):
            return architecture.model_copy(update={"rope_scaling": scaling})
    raise DataError(f"{file.path}: the frequencies in {ROPE_FACTORS} follow no known rule")


def _invalid(file: Path, error: ValidationError) -> DataError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return DataError(f"{file}: {f'{where}: ' if where else ''}{first['msg']} (got {first['input']!r})")
