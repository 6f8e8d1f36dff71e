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
    sizes = (1, 1000, 5000)
    columns = [
        [torch.randn(size).bfloat16().view(torch.int16) for size in sizes],
        [torch.randint(-(2**15), 2**15, (size,)).short() for size in sizes],
        [torch.randn(size) for size in sizes],
        [torch.rand(size) for size in sizes],
    ]
    before = [adamw.join(high, low) for high, low in zip(*columns[:2], strict=True)]
    expected, found = ([[tensor.clone() for tensor in column] for column in columns] for _ in range(2))
    scalars = (0.1, 0.05, 1e-3, 0.9, 1e-8, 0.999, 0.5)
    table = adamw_kernel.Table(found)
    for _ in range(2):
        gradients = [torch.randn(size).bfloat16() for size in sizes]
        for high, low, exp_avg, exp_avg_sq, gradient in zip(*expected, gradients, strict=True):
            adamw.update_(high, low, gradient, exp_avg, exp_avg_sq, *scalars)
        table.update_(gradients, *scalars)
    for number, start in enumerate(before):
        wanted, own = (adamw.join(columns[0][number], columns[1][number]) for columns in (expected, found))
        assert not torch.equal(wanted, start)
        assert torch.allclose(wanted, own, rtol=1e-5, atol=1e-6)
        for column in (2, 3):
            assert torch.allclose(expected[column][number], found[column][number], rtol=1e-5, atol=1e-6)


def check_cross_entropy() -> None:
    for columns in (7, 1000, 10_000):  # less than a block, and more
        for softcap in (0.0, 15.0, cross_entropy.LARGEST_CAP):
            logits, targets = 5 * torch.randn(6, columns), torch.randint(columns, (6,))
            logits[2] -= 10 * softcap  # all at the lower end of what a cap leaves
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
