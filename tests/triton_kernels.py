"""The Triton kernels against what they replace, in Triton's interpreter: python triton_kernels.py KERNEL."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from components import cross_entropy, cross_entropy_kernel
from components.optimizers import adamw, adamw_kernel


def check_adamw() -> None:
    for size in (1, 1000, 3000):
        high, low = torch.randn(size).bfloat16().view(torch.int16), torch.randint(-(2**15), 2**15, (size,)).short()
        tensors = [high, low, torch.randn(size).bfloat16(), torch.randn(size), torch.rand(size)]
        expected, found = ([tensor.clone() for tensor in tensors] for _ in range(2))
        scalars = (0.1, 0.05, 1e-3, 0.9, 1e-8, 0.999)
        adamw.update_(*expected, *scalars)
        adamw_kernel.update_(*found, *scalars)
        weights = [adamw.join(*pair[:2]) for pair in (expected, found)]
        assert not torch.equal(weights[0], adamw.join(high, low))
        for a, b in zip((weights[0], *expected[3:]), (weights[1], *found[3:]), strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def check_cross_entropy() -> None:
    for columns in (7, 1000, 10_000):  # less than a block, and more
        for softcap in (0.0, 15.0):
            logits, targets = 5 * torch.randn(6, columns), torch.randint(columns, (6,))
            targets[:2] = torch.tensor([0, columns - 1])
            expected, found = logits.clone(), logits.clone()
            losses = [
                cross_entropy._piece(expected, targets, softcap),
                cross_entropy_kernel.cross_entropy_(found, targets, softcap),
            ]
            assert torch.allclose(*losses, rtol=1e-5)
            assert torch.allclose(expected, found, atol=1e-5)
    broken = torch.randn(2, 50)
    broken[0, 3] = float("nan")
    assert cross_entropy_kernel.cross_entropy_(broken, torch.tensor([1, 2]), 0.0).isnan()


if __name__ == "__main__":
    torch.manual_seed(0)
    {"adamw": check_adamw, "cross_entropy": check_cross_entropy}[sys.argv[1]]()
