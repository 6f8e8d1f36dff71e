"""AdamW (Loshchilov and Hutter 2019): torch's own, in one kernel per step where torch has one, for float32 weights.

Weights may be bfloat16, too. A learning rate of 1e-5 would be lost in their 8 bits, so the optimizer keeps the other 16
bits of each weight in its state, ``low``: together they are the float32 weight, which is what is updated. The model
computes with it rounded, as it would under autocast, but nobody has to convert it, and its gradient is half as large.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from .config import AdamW as Config

FUSED = ("cpu", "cuda", "mps")
HALF_OF_LOW = 2**15


def build(config: Config, *, groups: list[dict[str, Any]]) -> AdamW:
    """The ``adamw`` component. ``groups`` with a ``weight_decay`` of their own keep it."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    return AdamW(
        groups,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=all(parameter.device.type in FUSED and parameter.is_floating_point() for parameter in parameters),
    )


class AdamW(torch.optim.AdamW):
    """torch's AdamW, which updates bfloat16 weights as the float32 ones that they stand for."""

    trains_bfloat16 = True

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no line search, so no closure
        """One update of every parameter that has a gradient."""
        half = [
            (parameter, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.dtype == torch.bfloat16
        ]
        gradients = [parameter.grad for parameter, _ in half]
        for parameter, _ in half:
            parameter.grad = None  # torch leaves out what has none
        super().step()
        for (parameter, group), gradient in zip(half, gradients, strict=True):
            parameter.grad = gradient
            self._step_half(parameter, group)

    def _step_half(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["low"] = torch.zeros_like(parameter, dtype=torch.int16)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.float32)
        state["step"] += 1
        step, (beta1, beta2), lr = state["step"].item(), group["betas"], float(group["lr"])
        _update(parameter.device.type)(
            parameter.view(torch.int16),
            state["low"],
            parameter.grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            1 - beta1,
            1 - beta2,
            lr / (1 - beta1**step),
            (1 - beta2**step) ** 0.5,
            group["eps"],
            1 - lr * group["weight_decay"],
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does it, which gives all state the type of its parameter: that of bfloat16 ones keeps its own."""
        super().load_state_dict(state_dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, values in state_dict["state"].items():
            parameter = parameters[index]
            if parameter.dtype == torch.bfloat16:
                own = {key: value.to(parameter.device, copy=True) for key, value in values.items() if key != "step"}
                self.state[parameter] = {"step": values["step"].cpu().clone(), **own}


def join(high: Tensor, low: Tensor) -> Tensor:
    """The float32 number of which ``high`` are a bfloat16's bits (int16) and ``low`` (int16) the difference to it."""
    return ((high.int() << 16) + low).view(torch.float32)


def split(number: Tensor) -> tuple[Tensor, Tensor]:
    """float32 → the bits of the nearest bfloat16 (ties away from zero), and the difference to it; both int16."""
    bits = number.view(torch.int32)
    high = (bits + HALF_OF_LOW) >> 16
    return high.short(), (bits - (high << 16)).short()


def update_(
    high: Tensor,
    low: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rate1: float,
    rate2: float,
    step_size: float,
    root_correction: float,
    eps: float,
    keep: float,
) -> None:
    """One step of Adam on weights in two halves, in place.

    ``rate1`` and ``rate2`` are 1 - beta, ``step_size`` is the learning rate over the first moment's bias correction,
    ``root_correction`` the root of the second's, ``keep`` what decay leaves.
    """
    weight, wide = join(high, low), gradient.float()
    exp_avg.lerp_(wide, rate1)
    exp_avg_sq.lerp_(wide.square(), rate2)
    weight.mul_(keep).addcdiv_(exp_avg, exp_avg_sq.sqrt().div_(root_correction).add_(eps), value=-step_size)
    new_high, new_low = split(weight)
    high.copy_(new_high)
    low.copy_(new_low)


@cache
def _update(device: str) -> Any:
    """:func:`update_`, in one kernel on a GPU."""
    if device == "cuda" and find_spec("triton"):
        from .adamw_kernel import update_ as in_one_kernel

        return in_one_kernel
    return update_
