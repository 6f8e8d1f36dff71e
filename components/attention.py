"""Causal attention over packed documents, and over a key/value cache.

A batch is one row of tokens; its documents must not see each other, and no mask of ``[T, T]`` is ever built. Three
ways, the first that fits:

- documents of one length are a rectangle already, which torch's fused kernels attend with their causal mask
- on a CUDA device in half precision, torch's kernel for documents of any length (``varlen_attn``)
- elsewhere, documents of similar length (the same power of two) are gathered into one padded rectangle ``[documents,
  longest]``, and the result is scattered back. Padding stands behind its document, so a causal query never reaches it

Where tokens go depends on the document boundaries alone: a layout is built once per forward pass and shared
by all layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from inspect import signature
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from components.precision import HALF
from ghostvis_plugins import DataError

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v of one layer → its heads' outputs


@dataclass(frozen=True, slots=True)
class Buckets:
    """Where each token of a pack stands in the padded rectangles of its length bucket.

    ``source`` ``[S]`` names the token at each padded place (token 0 where there is none), ``inverse`` ``[T]``
    the place of each token, ``shapes`` the rectangles ``(documents, longest)`` in order; their areas sum to S.
    """

    source: Tensor
    inverse: Tensor
    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, cu_seqlens: Tensor, device: torch.device | str = "cpu") -> Buckets:
        """Buckets of the documents bounded by ``cu_seqlens`` ``[docs + 1]`` (on the CPU)."""
        starts = cu_seqlens[:-1].long()
        lengths = cu_seqlens[1:].long() - starts
        sources, shapes = [], []
        for power in sorted({int(n - 1).bit_length() for n in lengths.tolist() if n > 0}):
            chosen = (lengths > 2 ** (power - 1) if power else lengths == 1) & (lengths <= 2**power)
            longest = int(lengths[chosen].max())
            offsets = torch.arange(longest)
            tokens = starts[chosen, None] + offsets
            sources.append(torch.where(offsets < lengths[chosen, None], tokens, -1).flatten())
            shapes.append((int(chosen.sum()), longest))
        source = torch.cat(sources) if sources else torch.empty(0, dtype=torch.long)
        places = torch.nonzero(source >= 0).flatten()
        inverse = torch.empty_like(places)
        inverse[source[places]] = places
        return cls(source.clamp_(min=0).to(device), inverse.to(device), tuple(shapes))


class PackedLayout:
    """The documents of a pack, bounded by ``cu_seqlens`` ``[docs + 1]`` (on the CPU), for tokens on ``device``."""

    def __init__(self, cu_seqlens: Tensor, device: torch.device | str = "cpu") -> None:
        self.cu_seqlens, self.device = cu_seqlens, device
        lengths = cu_seqlens.diff()
        self.longest = int(lengths.max()) if lengths.numel() else 0
        self.is_rectangle = self.longest > 0 and int(lengths.min()) == self.longest

    @property
    def is_usual(self) -> bool:
        """Several documents of one length, or one of a round length: a rectangle that is going to come again."""
        return self.cu_seqlens.numel() > 2 or self.longest % 128 == 0

    @cached_property
    def bounds(self) -> Tensor:
        """``cu_seqlens`` on the device."""
        return self.cu_seqlens.to(self.device, torch.int32, non_blocking=True)

    @cached_property
    def buckets(self) -> Buckets:
        return Buckets.of(self.cu_seqlens, self.device)


class _Pad(torch.autograd.Function):
    """Tokens ``[T, …]`` → places ``[S, …]``.

    The gradient of a padding place is exactly zero (no query reaches it and its own output is dropped), so the
    backward pass is a gather too; index_select's own scatter-add is several times slower on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, source)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None


class _Pick(torch.autograd.Function):
    """Rows ``[T, …]`` of ``[S, …]``, none of them twice: gradients are copied to their places, and need no addition."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.length = x.shape[0]
        return x.index_select(0, rows)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return grad.new_zeros(ctx.length, *grad.shape[1:]).index_copy_(0, rows, grad), None


def pick(x: Tensor, rows: Tensor) -> Tensor:
    """The given rows ``[S]`` of ``x``, each at most once. In half the time of ``index_select`` on an H100."""
    return _Pick.apply(x, rows)  # type: ignore[no-any-return]


def packed_attention(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout) -> Tensor:
    """Causal attention within each document.

    ``q`` ``[T, H, hd]``, ``k`` and ``v`` ``[T, Hkv, hd]`` → ``[T, H, hd]``; H is a multiple of Hkv.
    """
    if layout.is_rectangle:
        with _fastest() if layout.is_usual and q.is_cuda and torch.is_grad_enabled() else contextlib.nullcontext():
            return _rectangle(*(x.unflatten(0, (-1, layout.longest)) for x in (q, k, v))).flatten(0, 1)
    if _flash_takes(v):
        return _varlen(q.to(v.dtype), k.to(v.dtype), v, layout)
    buckets = layout.buckets
    q, k, v = (_Pad.apply(x, buckets.source, buckets.inverse) for x in (q, k, v))
    areas = [docs * longest for docs, longest in buckets.shapes]
    parts = zip(buckets.shapes, q.split(areas), k.split(areas), v.split(areas), strict=True)
    outs = [_rectangle(*(x.unflatten(0, shape) for x in qkv)).flatten(0, 1) for shape, *qkv in parts]
    return pick(outs[0] if len(outs) == 1 else torch.cat(outs), buckets.inverse)


def _flash_takes(x: Tensor) -> bool:
    """What torch's kernel for documents of any length computes: half precision, on an Ampere card or a later one."""
    fits = x.is_cuda and x.dtype in HALF and x.shape[-1] % 8 == 0 and x.shape[-1] <= 256
    return fits and torch.version.hip is None and torch.cuda.get_device_capability(x.device) >= (8, 0)


def _fastest() -> contextlib.AbstractContextManager[None]:
    """cuDNN's kernels before torch's own: on an H100 they take two thirds of the time, forward and backward.

    Each new shape costs them 0.13 s of planning, so they are for shapes that come again.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
    return sdpa_kernel(list(order), set_priority=True)


def _varlen(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = layout.bounds, layout.longest
    # torch 2.11 shares keys among heads without being asked; later versions want to be.
    options: dict[str, Any] = {"window_size": (-1, 0)}
    if "enable_gqa" in signature(varlen_attn).parameters:
        options["enable_gqa"] = True
    out = varlen_attn(q, k, v, bounds, bounds, longest, longest, **options)
    assert isinstance(out, Tensor)
    return out


def _rectangle(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """``q`` ``[B, L, H, hd]``, ``k``/``v`` ``[B, M, Hkv, hd]`` → ``[B, L, H, hd]``; causal where no mask is given."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    gqa = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=gqa)
    return out.transpose(1, 2)


class KVCache:
    """Keys and values already computed: one row per document, rows of different lengths.

    ``keys[layer]`` and ``values[layer]`` are ``[rows, length, Hkv, hd]``; row r holds ``lengths[r]`` tokens
    (``lengths`` stays on the CPU, so that no step waits for the device).
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], lengths: Tensor) -> None:
        self.keys, self.values, self.lengths = keys, values, lengths

    @classmethod
    def empty(
        cls, layers: int, rows: int, length: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> KVCache:
        """A cache without tokens, for ``rows`` documents of at most ``length``."""
        pairs = [torch.zeros(2, rows, length, heads, head_dim, dtype=dtype, device=device) for _ in range(layers)]
        return cls([pair[0] for pair in pairs], [pair[1] for pair in pairs], torch.zeros(rows, dtype=torch.long))

    @property
    def rows(self) -> int:
        return self.lengths.numel()

    @property
    def capacity(self) -> int:
        """The most tokens a row can hold."""
        return self.keys[0].shape[1]

    def select(self, rows: Tensor, length: int) -> KVCache:
        """A new cache of the given rows ``[R]`` with room for ``length`` tokens each.

        Drops finished documents, or repeats a shared prompt. The old cache stays as it is.
        """
        lengths = self.lengths[rows]
        used = int(lengths.max())
        if used > length:
            raise ValueError(f"{used} tokens in a cache row of {length}")
        index = rows.to(self.keys[0].device)

        def copy(old: Tensor) -> Tensor:
            new = old.new_empty(rows.numel(), length, *old.shape[2:])
            new[:, :used] = old[:, :used].index_select(0, index)
            new[:, used:] = 0  # masked slots are multiplied by zero, so they must be finite
            return new

        return KVCache([copy(k) for k in self.keys], [copy(v) for v in self.values], lengths)


@dataclass(frozen=True, slots=True)
class _LookBack:
    """Queries in a rectangle ``[rows, longest]``, and the cache slots each of them sees.

    ``source`` ``[rows, longest]`` names the token at each place, ``inverse`` ``[T]`` the place of each token,
    ``mask`` ``[rows, 1, longest, used]`` is 0 where a query sees a slot and −∞ elsewhere.
    """

    source: Tensor
    inverse: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class CachedLayout:
    """Where the new tokens of a call go in the cache, and what they see of it; built once per forward pass.

    ``row`` and ``slot`` ``[T]`` address the cache; ``used`` is the longest row afterwards. On an empty cache the
    new tokens see each other alone, as in any pack; otherwise they look back.
    """

    row: Tensor
    slot: Tensor
    used: int
    sees: PackedLayout | _LookBack

    @classmethod
    def build(cls, cu_seqlens: Tensor, cache: KVCache) -> CachedLayout:
        """Raises ValueError when the documents are not the cache's rows or do not fit into it."""
        starts, new = cu_seqlens[:-1].long(), cu_seqlens.long().diff()
        if new.numel() != cache.rows:
            raise ValueError(f"{new.numel()} documents for a cache of {cache.rows} rows")
        used = int((cache.lengths + new).max())
        if used > cache.capacity:
            raise ValueError(f"{used} tokens in a cache row of {cache.capacity}")
        keys = cache.keys[0]
        row = torch.repeat_interleave(torch.arange(cache.rows), new)
        offset = torch.arange(int(cu_seqlens[-1])) - starts[row]
        slot = cache.lengths[row] + offset
        sees: PackedLayout | _LookBack
        if cache.lengths.any():
            longest = int(new.max())
            places = torch.arange(longest)
            # Places without a token see what their slot would: a softmax over nothing gives NaN.
            hidden = torch.arange(used) > (cache.lengths[:, None] + places)[..., None]
            mask = torch.zeros(hidden.shape, dtype=keys.dtype).masked_fill_(hidden, float("-inf"))
            sees = _LookBack(
                source=torch.where(places < new[:, None], starts[:, None] + places, 0).to(keys.device),
                inverse=(row * longest + offset).to(keys.device),
                mask=mask[:, None].to(keys.device),
            )
        else:
            sees = PackedLayout(cu_seqlens, keys.device)
        return cls(row.to(keys.device), slot.to(keys.device), used, sees)


def cached_attention(q: Tensor, k: Tensor, v: Tensor, cache: KVCache, layer: int, layout: CachedLayout) -> Tensor:
    """Append ``k`` and ``v`` ``[T, Hkv, hd]`` to the cache and attend ``q`` ``[T, H, hd]`` to all each row holds.

    The cache's ``lengths`` are left to the caller, who adds the new ones when every layer has been through.
    """
    keys, values = cache.keys[layer], cache.values[layer]
    keys[layout.row, layout.slot] = k.to(keys.dtype)
    values[layout.row, layout.slot] = v.to(values.dtype)
    sees = layout.sees
    if isinstance(sees, PackedLayout):
        return packed_attention(q, k, v, sees)
    rectangle = q[sees.source].to(keys.dtype)  # [rows, longest, H, hd]; under autocast types differ
    out = _rectangle(rectangle, keys[:, : layout.used], values[:, : layout.used], sees.mask)
    return out.flatten(0, 1)[sees.inverse].to(q.dtype)


def attends(cu_seqlens: Tensor, cache: KVCache | None, device: torch.device, layers: int) -> list[Attend]:
    """Attention of each layer; where tokens go is worked out once for all of them."""
    if cache is None:
        return [partial(packed_attention, layout=PackedLayout(cu_seqlens, device))] * layers
    layout = CachedLayout.build(cu_seqlens, cache)
    return [partial(cached_attention, cache=cache, layer=n, layout=layout) for n in range(layers)]


def check_length(cu_seqlens: Tensor, cache: KVCache | None, limit: int) -> None:
    """Raises DataError when a document, with what the cache holds of it, is longer than ``limit`` tokens."""
    lengths = cu_seqlens.diff()
    longest = int((lengths if cache is None else lengths + cache.lengths).max())
    if longest > limit:
        raise DataError(
            f"a document of {longest} tokens exceeds backbone.max_positions = {limit}",
            hint="shorten the conversation, or train with a larger backbone.max_positions",
        )
