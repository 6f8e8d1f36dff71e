"""What a step would take if it were its matrix products and its attention alone, each timed by itself."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

HEAD_ROWS = 8192  # of the head at a time: all logits at once would not fit
BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


def products(backbone: Any) -> Counter[tuple[int, int]]:
    """How many linear layers of each (inputs, outputs) a decoder runs for a token; the head is the widest."""
    found = Counter((m.in_features, m.out_features) for m in backbone.modules() if isinstance(m, nn.Linear))
    if getattr(backbone, "lm_head", None) is None:
        found[backbone.dim, backbone.vocab_size] += 1
    return found


def products_seconds(shapes: Counter[tuple[int, int]], tokens: int, device: torch.device, dtype: torch.dtype) -> float:
    """Forward, gradient of the input and gradient of the weight of every layer, for ``tokens`` rows."""
    total = 0.0
    for (inputs, outputs), count in shapes.items():
        rows = min(tokens, HEAD_ROWS) if outputs >= 16 * inputs else tokens
        x, w, g = (torch.randn(shape, device=device, dtype=dtype) for shape in
                   ((rows, inputs), (outputs, inputs), (rows, outputs)))  # fmt: skip
        each = (lambda x=x, w=w: x @ w.mT, lambda g=g, w=w: g @ w, lambda g=g, x=x: g.mT @ x)
        total += count * tokens / rows * sum(_seconds(run, device) for run in each)
        del x, w, g, each
    return total


def attention_seconds(
    documents: int, length: int, heads: int, kv_heads: int, head_dim: int, device: torch.device, dtype: torch.dtype
) -> tuple[float, str]:
    """Causal attention of one layer, forward and backward, by the fastest of torch's kernels, and which that is."""
    q, k, v = (
        torch.randn(documents, n, length, head_dim, device=device, dtype=dtype, requires_grad=True)
        for n in (heads, kv_heads, kv_heads)
    )
    gradient = torch.randn_like(q)
    best = (float("inf"), "none")
    for backend in BACKENDS if device.type == "cuda" else (SDPBackend.MATH,):
        for grouped in (True, False):
            if backend == SDPBackend.MATH and best[0] < float("inf"):
                continue  # only where nothing else runs: it would fill the memory

            def both(backend: SDPBackend = backend, grouped: bool = grouped) -> None:
                keys, values = (x if grouped else x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
                with sdpa_kernel(backend):
                    out = F.scaled_dot_product_attention(q, keys, values, is_causal=True, enable_gqa=grouped)
                torch.autograd.grad(out, (q, k, v), gradient)

            try:
                best = min(best, (_seconds(both, device), backend.name.lower()))
            except RuntimeError:  # this kernel does not take these shapes here
                continue
    return best


def _seconds(run: Callable[[], Tensor | None], device: torch.device, times: int = 8) -> float:
    """Median of some runs after a few that warm up."""
    found = []
    for number in range(times + 3):
        if device.type == "cuda":
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            run()
            last.record()
            last.synchronize()
            seconds = first.elapsed_time(last) / 1e3
        else:
            began = time.perf_counter()
            run()
            seconds = time.perf_counter() - began
        if number >= 3:
            found.append(seconds)
    return statistics.median(found)
