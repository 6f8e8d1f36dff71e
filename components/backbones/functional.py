"""Three element-wise pieces of the ``gpt`` backbone, with their gradients written by hand.

They touch every activation several times a layer, and torch has no fused kernel for them on a CPU: its
composites and their recorded gradients took a fifth of a training step (2 cores, float32, width 256). Each is
one formula forwards and one backwards; float64 ``gradcheck`` is in the tests.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

EPSILON = 1e-6


class _RMSNorm(torch.autograd.Function):
    """y = x · s with s = 1/√(mean(x²) + ε);  dx = s · (dy − y · mean(dy · y))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_at_least_float32(x)).square_()
        scale = squares.div_(x.shape[-1]).add_(EPSILON).rsqrt_().to(x.dtype)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        y, scale = ctx.saved_tensors
        mean = (grad * y).mean(dim=-1, keepdim=True)
        return torch.addcmul(grad, y, mean, value=-1).mul_(scale)


class _ReLUSquared(torch.autograd.Function):
    """y = r² with r = max(x, 0);  dx = 2 r · dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        r = F.relu(x)
        ctx.save_for_backward(r)
        return r * r

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (r,) = ctx.saved_tensors
        return (grad * r).mul_(2)


def rms_norm(x: Tensor) -> Tensor:
    """Root mean square 1 over the last dimension; no parameters."""
    if torch.compiler.is_compiling():
        return F.rms_norm(x, x.shape[-1:], eps=EPSILON)
    return _RMSNorm.apply(x)


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)² (So et al. 2021)."""
    return F.relu(x).square() if torch.compiler.is_compiling() else _ReLUSquared.apply(x)


def rotation(positions: Tensor, head_dim: int, base: float) -> Tensor:
    """Cosines and sines ``[T, 1, hd / 2, 2]`` that turn pair i of a head by position · base^(−2i / hd)."""
    half = head_dim // 2
    exponents = torch.arange(half, device=positions.device, dtype=torch.float32) / half
    angles = positions.float()[:, None, None] * base**-exponents
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def rotate(x: Tensor, turns: Tensor, *, apart: bool = False) -> Tensor:
    """Rotary positions (Su et al. 2021) of ``x`` ``[T, H, hd]``: neighbouring numbers are complex ones.

    One complex product each way, where the two-halves form takes six passes on a CPU. ``apart`` is that form, for the
    compiler, which makes one pass of it: number i and number i + hd / 2 are a pair.
    """
    wide = x.to(_at_least_float32(x))
    if apart:
        half = x.shape[-1] // 2
        cos, sin = (part.repeat(1, 1, 2) for part in turns.unbind(-1))
        signed = torch.where(torch.arange(2 * half, device=x.device) < half, -sin, sin)
        return (wide * cos + wide.roll(half, dims=-1) * signed).to(x.dtype)
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(turns)).flatten(-2).to(x.dtype)


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
