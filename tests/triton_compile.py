"""Compiles the Triton kernels for two GPUs, of which none has to be there: python triton_compile.py KERNEL.

Triton's interpreter takes what its compiler refuses, such as a variable that changes its shape in a loop.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from components import cross_entropy_kernel
from components.optimizers import adamw_kernel

CAPABILITIES = (80, 90)


def compile_for_all(kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int) -> list[str]:
    """PTX for each GPU."""
    source = ASTSource(fn=kernel, signature=types | dict.fromkeys(constants, "constexpr"), constexprs=constants)
    texts = []
    for capability in CAPABILITIES:
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
        assert compiled.asm["cubin"]
        texts.append(compiled.asm["ptx"])
    return texts


def cross_entropy() -> None:
    pointers = {"logits": "*bf16", "targets": "*i64", "losses": "*fp32"}
    numbers = {"columns": "i32", "stride": "i32", "softcap": "fp32"}
    for capped, whole in product((False, True), repeat=2):
        constants = {"capped": capped, "whole": whole, "block": cross_entropy_kernel.BLOCK}
        compile_for_all(cross_entropy_kernel._row, pointers | numbers, constants, 16)


def adamw() -> None:
    places = ("highs", "lows", "exp_avgs", "exp_avg_sqs", "gradients", "sizes")
    scalars = ("rate1", "rate2", "step_size", "root_correction", "eps", "keep", "factor")
    types = dict.fromkeys(places, "*i64") | {"tensors": "*i32", "firsts": "*i32"} | dict.fromkeys(scalars, "fp32")
    for aligned in (False, True):
        constants = {"aligned": aligned, "block": adamw_kernel.BLOCK}
        for text in compile_for_all(adamw_kernel._update, types, constants, adamw_kernel.WARPS):
            assert ("ld.global.v4" in text and "st.global.v4" in text) == aligned  # several numbers at a time


if __name__ == "__main__":
    {"cross_entropy": cross_entropy, "adamw": adamw}[sys.argv[1]]()
