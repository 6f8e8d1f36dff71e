"""AdamW (Loshchilov and Hutter 2019), torch's own, in one kernel per step where torch has one."""

from __future__ import annotations

from typing import Any

import torch

from .config import AdamW as Config

FUSED = ("cpu", "cuda", "mps")


def build(config: Config, *, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    """The ``adamw`` component. ``groups`` with a ``weight_decay`` of their own keep it."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    return torch.optim.AdamW(
        groups,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=all(parameter.device.type in FUSED and parameter.is_floating_point() for parameter in parameters),
    )
