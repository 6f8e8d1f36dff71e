"""Muon: momentum, orthogonalised (Jordan et al. 2024, "Muon: an optimizer for hidden layers"), with AdamW beside it.

The momentum of each hidden matrix is replaced by the nearest semi-orthogonal matrix, found by five Newton-Schulz
iterations, so every direction of the update has the same size. Embeddings, the output head, vectors and whatever
else is no hidden matrix go to AdamW. Updates are scaled to AdamW's usual size, 0.2 · √max(rows, columns) (Liu et
al. 2025, "Muon is scalable for LLM training"), so one table of learning rates serves both.

Matrices of one shape are orthogonalised together in one batched product.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from .adamw import build as build_adamw
from .config import Muon as Config

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic: steep at 0, and its values stay near 1
ADAMW_RMS = 0.2
PRODUCTS = 400.0
"""Rows of a matrix for which an iteration takes as long as AdamW: some 5 operations a row for each number against 28
bytes to move, on a card that does 240 operations in the time of a byte, at a share of its peak."""


def build(config: Config, *, groups: list[dict[str, Any]]) -> Muon:
    """The ``muon`` component. ``groups`` carry the ``names`` of their parameters beside ``params``."""
    return Muon(groups, config)


class Muon(torch.optim.Optimizer):
    """Muon on the hidden matrices of ``groups``, AdamW on the rest; groups stay the caller's for schedules."""

    whole_tensors = True

    def __init__(self, groups: list[dict[str, Any]], config: Config) -> None:
        self.config = config
        super().__init__(
            [part for group in groups for part in self._split(group)],
            {"lr": 1e-3, "weight_decay": config.weight_decay, "muon": False},
        )
        rest = [group for group in self.param_groups if not group["muon"]]
        self._adamw = build_adamw(config.adamw, groups=rest) if rest else None
        if self._adamw is not None:  # torch keeps the very dicts, so schedules reach both; checkpoints need one state
            self._adamw.state = self.state

    def _split(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        shared = {key: value for key, value in group.items() if key not in ("params", "names")}
        named = list(zip(group["names"], group["params"], strict=True))
        hidden = [(name, p) for name, p in named if self._is_hidden(name, p)]
        others = [(name, p) for name, p in named if not self._is_hidden(name, p)]
        return [
            {**shared, "muon": muon, "names": [name for name, _ in members], "params": [p for _, p in members]}
            for muon, members in ((True, hidden), (False, others))
            if members
        ]

    def _is_hidden(self, name: str, parameter: nn.Parameter) -> bool:
        parts = name.split(".")
        if any(part.startswith("lora_") for part in parts):  # thin factors of an adapter, and no matrices of their own
            return False
        return parameter.ndim == 2 and parts[-1] == "weight" and not set(parts).intersection(self.config.exclude)

    def cost(self, parameter: Tensor) -> float:
        """Work of a parameter's step, by which ranks share them: in numbers that AdamW updates in the same time."""
        hidden = any(parameter is p for group in self.param_groups if group["muon"] for p in group["params"])
        return parameter.numel() * (1 + self.config.iterations * min(parameter.shape) / PRODUCTS if hidden else 1)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no line search, so no closure
        """One update of every parameter that has a gradient."""
        if self._adamw is not None:
            self._adamw.step()
        for group in self.param_groups:
            if group["muon"]:
                self._step_group(group)

    def _step_group(self, group: dict[str, Any]) -> None:
        shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                shapes[parameter.shape].append(parameter)
        for (rows, columns), parameters in shapes.items():
            updates = orthogonalise(torch.stack([self._momentum(p) for p in parameters]), self.config.iterations)
            scale = group["lr"] * ADAMW_RMS * max(rows, columns) ** 0.5
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-scale)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        """Nesterov momentum of the gradient, kept in the state."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum"]
        buffer.lerp_(parameter.grad, 1 - self.config.momentum)
        return parameter.grad.lerp(buffer, self.config.momentum)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does it; AdamW goes on with the loaded groups and state."""
        super().load_state_dict(state_dict)
        if self._adamw is not None:
            self._adamw.state = self.state
            self._adamw.param_groups = [group for group in self.param_groups if not group["muon"]]


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """``[B, R, C]`` → matrices of the same singular vectors with all singular values near 1 (about 0.7 to 1.2).

    On a CUDA device in bfloat16, whose errors are small beside that range.
    """
    dtype = matrices.dtype
    x = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    if x.is_cuda:
        x = x.bfloat16()
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if matrices.shape[-2] > matrices.shape[-1] else x).to(dtype)
