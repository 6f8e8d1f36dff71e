"""What trains, how fast, and on which schedule: data from the recipe, applied to a model.

``stage.train`` maps module paths to learning rates. The longest path that a parameter's name starts with wins (of
equally long ones that with fewer patterns, then the last); what no path matches is frozen. A part of a path may be
``*``, any module, or a slice of a list of modules: ``backbone.layers.-4:`` are the last four layers. Weight decay goes
to matrices only: not to norms, biases, embeddings or latents.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from components import lora
from ghostvis_plugins.errors import ConfigError, did_you_mean

from .config import LoRA, TrainConfig

TRAINABLE = (torch.float32, torch.bfloat16)
SLICE = re.compile(r"(-?\d*):(-?\d*)")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the freeze table: a module path, its learning rate (0: frozen), its parameters."""

    path: str
    lr: float
    parameters: int


def apply_table(model: nn.Module, table: Mapping[str, float], adapters: LoRA | None = None) -> list[Row]:
    """Set ``requires_grad`` as ``table`` says and return the freeze table.

    A module without parameters may be named; it is a line with none. With ``adapters`` the backbone gets them where it
    has a learning rate, and they train in place of its own weights. Raises ConfigError for a path that names nothing in
    the model, and when nothing is left to train.
    """
    table = counted(model, table)
    known = {name for name, _ in (*model.named_modules(), *model.named_parameters()) if name}
    for path in table:
        if path not in known and not any(_covers(path, name) for name in known):
            raise ConfigError(
                f"stage.train: the model has no '{path}'.{did_you_mean(path, known)}",
                hint=f"its parts are {', '.join(child for child, _ in model.named_children())}",
            )
    if adapters is not None:
        lora.attach(model.backbone, lambda path: _rate(table, f"backbone.{path}.weight") > 0, **adapters.model_dump())
    counts: dict[tuple[str, float], int] = dict.fromkeys(table.items(), 0)
    for name, parameter in model.named_parameters():
        own = adapters is not None and name.startswith("backbone.")  # of what has adapters: they train, the rest stays
        rate = _rate(table, name) if not own or lora.is_adapter(name) else 0.0
        if rate and parameter.dtype not in TRAINABLE:
            raise ConfigError(
                f"stage.train: {name} is {_name(parameter.dtype)}; weights that train are float32 or bfloat16",
                hint='set backbone.dtype = "bfloat16" or "float32", or train adapters of it with stage.lora',
            )
        parameter.requires_grad_(rate > 0)
        path = match(table, name) or name.split(".")[0]
        row = (f"{path} (LoRA)" if own and rate else path, rate)
        counts[row] = counts.get(row, 0) + parameter.numel()
    if not any(rate and count for (_, rate), count in counts.items()):
        raise ConfigError("stage.train: nothing is left to train")
    if adapters is not None:  # the backbone's paths have been told in lines of their own
        counts = {(path, rate): n for (path, rate), n in counts.items() if n or not path.startswith("backbone")}
    return [Row(path, rate, count) for (path, rate), count in counts.items()]


def counted(model: nn.Module, table: Mapping[str, float]) -> dict[str, float]:
    """``table`` with every slice counted from the start of its list: ``layers.-4:`` of 24 becomes ``layers.20:24``."""
    found: dict[str, float] = {}
    for path, rate in table.items():
        parts = path.split(".")
        at = next((n for n, part in enumerate(parts) if SLICE.fullmatch(part)), None)
        if at is None:
            found[path] = rate
            continue
        lists = [
            (name, len(module))
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList | nn.Sequential)
            and name.count(".") + 1 == at
            and _covers(".".join(parts[:at]), name)
        ]
        if not lists:
            raise ConfigError(f"stage.train: '{path}' counts modules, and the model has no list of them there")
        for name, length in lists:
            start, stop, _ = slice(*(int(n) if n else None for n in parts[at].split(":"))).indices(length)
            if start >= stop:
                raise ConfigError(f"stage.train: '{path}' is none of the {length} modules of '{name}'")
            found[".".join([name, f"{start}:{stop}", *parts[at + 1 :]])] = rate
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def match(table: Mapping[str, float], name: str) -> str | None:
    """The longest path of ``table`` (see :func:`counted`) that covers the parameter ``name``."""
    covering = [path for path in table if _covers(path, name)]
    return max(reversed(covering), key=_precision, default=None)


def _rate(table: Mapping[str, float], name: str) -> float:
    matched = match(table, name)
    return 0.0 if matched is None else table[matched]


def _covers(path: str, name: str) -> bool:
    parts, names = path.split("."), name.split(".")
    return len(parts) <= len(names) and all(map(_is, parts, names))


def _is(part: str, name: str) -> bool:
    if part in ("*", name):
        return True
    numbers = SLICE.fullmatch(part)
    return bool(numbers and name.isdigit() and int(numbers[1]) <= int(name) < int(numbers[2]))


def _precision(path: str) -> tuple[int, int]:
    parts = path.split(".")
    return len(parts), sum(part != "*" and not SLICE.fullmatch(part) for part in parts)


def format_table(rows: Iterable[Row]) -> str:
    """The freeze table as text."""
    rows = list(rows)
    width = max(len("module"), *(len(row.path) for row in rows))
    lines = [f"{'module':{width}}  {'learning rate':>13}  {'parameters':>12}"]
    for row in rows:
        rate = f"{row.lr:g}" if row.lr else "frozen"
        lines.append(f"{row.path:{width}}  {rate:>13}  {row.parameters:12,}")
    trained = sum(row.parameters for row in rows if row.lr)
    total = sum(row.parameters for row in rows)
    lines.append(f"{'trained':{width}}  {'':13}  {trained:12,} of {total:,}")
    return "\n".join(lines)


def set_modes(model: nn.Module) -> None:
    """Training mode for what trains, evaluation mode for frozen parts (dropout, running statistics)."""
    model.train()
    _freeze_modes(model)


def _freeze_modes(module: nn.Module) -> None:
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return
    for child in module.children():
        _freeze_modes(child)


def frozen_hash(model: nn.Module) -> str:
    """sha256 of every tensor that must not move: frozen parameters, and buffers of modules in evaluation mode.

    Call it after :func:`set_modes`.
    """
    digest = hashlib.sha256()
    still = {f"{path}." if path else "" for path, module in model.named_modules() if not module.training}
    for name, tensor in model.state_dict(keep_vars=True).items():
        is_parameter = isinstance(tensor, nn.Parameter)
        frozen = not tensor.requires_grad if is_parameter else f"{name.rpartition('.')[0]}." in still
        if frozen:
            digest.update(f"{name}\t{tensor.dtype}\t{tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def parameter_groups(model: nn.Module, table: Mapping[str, float]) -> list[dict[str, Any]]:
    """Torch parameter groups: one per learning rate path, split into what decays and what does not.

    ``peak_lr`` is the rate that the schedule scales; ``names`` are those of ``params``, for optimizers that treat
    modules differently.
    """
    table = counted(model, table)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        path = match(table, name)
        assert path is not None
        decays = parameter.ndim >= 2 and name.endswith("weight") and id(parameter) not in embeddings
        group = groups.setdefault(
            (path, decays), {"params": [], "names": [], "lr": table[path], "peak_lr": table[path]}
        )
        if not decays:
            group["weight_decay"] = 0.0
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def check_types(model: nn.Module, optimizer: Any, name: str) -> None:
    """Raises ConfigError when ``optimizer`` would train bfloat16 weights in their 8 bits, where updates are lost.

    One that keeps the other 16 bits of each says so with an attribute ``trains_bfloat16``.
    """
    half = any(parameter.dtype == torch.bfloat16 for parameter in model.parameters() if parameter.requires_grad)
    if half and not getattr(optimizer, "trains_bfloat16", False):
        raise ConfigError(
            f"the optimizer '{name}' trains float32 weights only, and some are bfloat16",
            hint='set backbone.dtype = "float32", or choose --optimizer adamw, which keeps their other bits',
        )


def check_recomputes(model: Any, wanted: bool) -> None:
    """Raises ConfigError when ``stage.activation_checkpointing`` is wanted of a backbone that does not offer it."""
    if wanted and not hasattr(model.backbone, "activation_checkpointing"):
        raise ConfigError("stage.activation_checkpointing: this backbone does not have it", hint="leave it out")


class Schedule:
    """The factor on every learning rate at each step, between 0 and 1."""

    def __init__(self, config: TrainConfig, steps: int) -> None:
        self.kind, self.steps, self.final = config.schedule, steps, config.final_lr
        self.warmup = min(steps, round(config.warmup * steps) if config.warmup < 1 else round(config.warmup))
        self.warmdown = max(1, round(config.warmdown * steps))

    def __call__(self, step: int) -> float:
        """Factor of step number ``step``, counted from 1."""
        if step <= self.warmup:
            return step / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        if self.kind == "constant":
            shape = 1.0
        elif self.kind == "linear":
            shape = 1 - progress
        elif self.kind == "wsd":
            shape = min(1.0, (self.steps - step) / self.warmdown)
        else:
            shape = (1 + math.cos(math.pi * progress)) / 2
        return self.final + (1 - self.final) * shape

    def apply(self, optimizer: Any, step: int) -> float:
        """Set the learning rates of ``step``; returns the largest."""
        factor = self(step)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        return max(group["lr"] for group in optimizer.param_groups)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The 2-norm of all gradients, a float32 scalar on their device (summed in float32 whatever their type)."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    norms = [norm for same in by_type.values() for norm in torch._foreach_norm(same, 2.0, dtype=torch.float32)]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def clip_factor(norm: float, limit: float) -> float:
    """What scales gradients of this norm to at most ``limit`` (0: nothing does)."""
    return min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0
