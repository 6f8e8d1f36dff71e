"""AdamW (Loshchilov and Hutter 2019): torch's own, in one kernel per step where torch has one, for float32 weights.

Weights may be bfloat16, too. A learning rate of 1e-5 would be lost in their 8 bits, so the optimizer keeps the other 16
bits of each weight in its state, ``low``: together they are the float32 weight, which is what is updated. The model
computes with it rounded, as it would under autocast, but nobody has to convert it, and its gradient is half as large.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from components.toolchain import lacking

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
    _factor = 1.0  # of the gradients of the coming step
    _tables: dict[tuple[int, ...], Any] | None = None  # no part of a copy: it holds addresses

    @torch.no_grad()
    def scale_gradients(self, factor: float) -> None:
        """Multiply the gradients of the coming step: float32 ones now, bfloat16 ones when they are read anyway."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        full = [p.grad for p in parameters if p.grad is not None and p.dtype != torch.bfloat16]
        if full:
            torch._foreach_mul_(full, factor)
        self._factor *= factor

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no line search, so no closure
        """One update of every parameter that has a gradient."""
        halves = [(group, _with_gradients(group)) for group in self.param_groups]
        gradients = {parameter: parameter.grad for _, parameters in halves for parameter in parameters}
        if len(gradients) < sum(len(group["params"]) for group in self.param_groups):
            for parameter in gradients:
                parameter.grad = None  # torch leaves out what has none
            super().step()
            for parameter, gradient in gradients.items():
                parameter.grad = gradient
        for group, parameters in halves:
            if parameters:
                self._step_halves(parameters, group)
        self._factor = 1.0

    def _step_halves(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.zeros(())  # on the CPU
                state["low"] = torch.zeros_like(parameter, dtype=torch.int16)
                state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.float32)
                state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.float32)
        torch._foreach_add_([state["step"] for state in states], 1.0)
        steps = torch.stack([state["step"] for state in states]).tolist()
        (beta1, beta2), lr = group["betas"], float(group["lr"])
        for step in set(steps):  # one, but for parameters that joined later
            members = [(p, state) for p, state, own in zip(parameters, states, steps, strict=True) if own == step]
            correction1, correction2 = 1 - beta1**step, 1 - beta2**step
            scalars = (1 - beta1, 1 - beta2, lr / correction1, correction2**0.5, group["eps"])
            self._update(members, *scalars, 1 - lr * group["weight_decay"], self._factor)

    def _update(self, members: list[tuple[nn.Parameter, dict[str, Any]]], *scalars: float) -> None:
        """:func:`update_` of all, on a GPU in one kernel."""
        plain = any(not parameter.is_contiguous() for parameter, _ in members)  # the kernel takes memory as it lies
        if plain or not _has_kernel(members[0][0].device.type):
            for parameter, state in members:
                high, gradient = parameter.view(torch.int16), parameter.grad
                assert gradient is not None
                update_(high, state["low"], gradient, state["exp_avg"], state["exp_avg_sq"], *scalars)
            return
        names = ("low", "exp_avg", "exp_avg_sq")
        columns: list[list[Tensor]] = [
            [p for p, _ in members],
            *([state[name] for _, state in members] for name in names),
        ]
        key = tuple(tensor.data_ptr() for column in columns for tensor in column)
        if self._tables is None:
            self._tables = {}
        if key not in self._tables:
            from .adamw_kernel import Table

            self._tables[key] = Table(columns)
        self._tables[key].update_([parameter.grad for parameter, _ in members], *scalars)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does it, which gives all state the type of its parameter: that of bfloat16 ones keeps its own."""
        super().load_state_dict(state_dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, values in state_dict["state"].items():
            parameter = parameters[index]
            if parameter.dtype == torch.bfloat16:
                own = {key: value.to(parameter.device, copy=True) for key, value in values.items() if key != "step"}
                self.state[parameter] = {"step": torch.as_tensor(values["step"]).float().cpu().clone(), **own}
        self._tables = None


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
    factor: float,
) -> None:
    """One step of Adam on weights in two halves, in place.

    ``rate1`` and ``rate2`` are 1 - beta, ``step_size`` is the learning rate over the first moment's bias correction,
    ``root_correction`` the root of the second's, ``keep`` what decay leaves, ``factor`` that of the gradient.
    """
    weight, wide = join(high, low), gradient.float() * factor
    exp_avg.lerp_(wide, rate1)
    exp_avg_sq.lerp_(wide.square(), rate2)
    weight.mul_(keep).addcdiv_(exp_avg, exp_avg_sq.sqrt().div_(root_correction).add_(eps), value=-step_size)
    new_high, new_low = split(weight)
    high.copy_(new_high)
    low.copy_(new_low)


@cache
def _has_kernel(device: str) -> bool:
    return device == "cuda" and lacking(device) is None


def _with_gradients(group: dict[str, Any]) -> list[nn.Parameter]:
    return [p for p in group["params"] if p.grad is not None and p.dtype == torch.bfloat16]
