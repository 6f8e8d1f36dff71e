"""The floating-point type that training computes in, beside the one that weights have."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

HALF = (torch.bfloat16, torch.float16)


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
