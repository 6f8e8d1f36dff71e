"""Fused kernels for training, by torch.compile.

Whole models are not compiled: the shapes of attention change with every pack, and each change would compile anew. A
module names its methods that are worth it in a class attribute, ``compiles = ("before", "after")``: functions of
tensors alone, whose shapes change in few ways. All layers of a class share what was compiled for the first of them
that trains alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from components.toolchain import lacking
from ghostvis_plugins import GhostVisError, UnavailableError


def decide(chosen: bool | Literal["auto"], device: str, warn: Callable[[str], object] | None = None) -> bool:
    """Whether to compile for a kind of ``device``: "auto" does on CUDA, where the machine is able to.

    ``warn`` is told what a GPU has to do without. Raises UnavailableError when it was asked for and cannot be.
    """
    lack = lacking(device)
    if chosen is True and lack is not None:
        raise UnavailableError(
            f"stage.compile = true, but nothing can be compiled for {device} here: {lack.what}",
            hint=f"{lack.hint}; or leave stage.compile out: auto compiles where it can",
        )
    if warn is not None and device == "cuda" and lack is not None:
        warn(f"training without fused kernels, slower: {lack.what}; {lack.hint}")
    return device == "cuda" and lack is None if chosen == "auto" else chosen


@contextlib.contextmanager
def compiled(model: nn.Module, *, enabled: bool = True) -> Iterator[None]:
    """Inside, the methods that the classes of ``model`` name in ``compiles`` run through torch.compile.

    Also those that they inherit: FSDP gives every module a class of its own. Raises GhostVisError for a ``compiles``
    that is no tuple of methods.
    """
    if not enabled:
        yield
        return
    originals: list[tuple[type, str, Any]] = []
    classes = {cls for module in model.modules() for cls in type(module).__mro__ if "compiles" in cls.__dict__}
    try:
        for cls in classes:
            for name in _methods(cls):
                originals.append((cls, name, cls.__dict__[name]))
                setattr(cls, name, torch.compile(cls.__dict__[name]))
        # What trains, what is frozen, shapes that stay and that change: each is compiled for itself, in every stage.
        with torch._dynamo.config.patch(recompile_limit=64):
            yield
    finally:
        for cls, name, original in originals:
            setattr(cls, name, original)


def _methods(cls: type) -> tuple[str, ...]:
    named = cls.__dict__["compiles"]
    if not isinstance(named, tuple) or any(name not in cls.__dict__ for name in named):
        raise GhostVisError(
            f"{cls.__module__}.{cls.__name__}.compiles: {named!r} is no tuple of methods that it defines"
        )
    return named


def add_product(x: Tensor, layer: nn.Module, y: Tensor) -> Tensor:
    """``x + layer(y)`` of rows ``[T, D]``, to be read at once by more work of the same method.

    With operands of two dimensions the compiler emits a product with an addend, and copies ``x`` first; with three it
    fuses the addition into what reads the sum.
    """
    return (x[None] + layer(y[None]))[0]  # type: ignore[no-any-return]
