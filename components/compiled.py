"""How training computes: fused kernels by torch.compile, the floating-point type they compute in, what is kept.

Whole models are not compiled: the shapes of attention change with every pack, and each change would compile anew. A
module names its methods that are worth it in a class attribute, ``compiles = ("before", "after")``: functions of
tensors alone, whose shapes change in few ways. All layers of a class share what was compiled for the first of them
that trains alike.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from ghostvis_plugins import GhostVisError


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


def through(layer: nn.Module, *arguments: Any, again: bool) -> Any:
    """``layer(*arguments)``; with ``again`` only the arguments are kept, and the backward pass computes it anew."""
    if again and torch.is_grad_enabled():
        return torch.utils.checkpoint.checkpoint(layer, *arguments, use_reentrant=False)
    return layer(*arguments)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The type that autocast computes in on the device of ``x``, or that of ``x`` where it is off."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else x.dtype


class Half:
    """Keeps a frozen module in the type that autocast computes in: autocast itself would convert every weight anew.

    The copy is made again when a weight has moved or was written to (not through ``.data``). It is no part of the
    module, so checkpoints and exports never see it.
    """

    def __init__(self) -> None:
        self._copy: Any = None
        self._made_of: tuple[Any, ...] = ()

    def of(self, module: nn.Module, dtype: torch.dtype) -> Any:
        """A copy of ``module`` in ``dtype`` with its weights as they are now; itself, where that is its type."""
        tensors = list(chain(module.parameters(), module.buffers()))
        if all(tensor.dtype == dtype for tensor in tensors if tensor.is_floating_point()):
            return module
        made_of = (dtype, *((tensor.data_ptr(), tensor._version) for tensor in tensors))
        if made_of != self._made_of:
            self._copy, self._made_of = copy.deepcopy(module).to(dtype), made_of
        return self._copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Half:
        return Half()
