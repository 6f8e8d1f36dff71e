"""LoRA (Hu et al. 2021, arXiv:2106.09685), by ``peft``: small matrices beside a language model that stays as it is.

A linear layer W ``[out, in]`` with an adapter computes W·x + alpha / rank · B·A·x, with A ``[rank, in]`` random and B
``[out, rank]`` zero at first. Only A and B train, in float32 whatever W is, so W may be bfloat16, has no gradient, and
the optimizer has no state for it. At the end B·A is added to W: the model that leaves is one without adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from ghostvis_plugins.errors import ConfigError, UnavailableError, did_you_mean

ADAPTER = "default"  # peft's name for the only one


def attach(
    backbone: Any,
    wanted: Callable[[str], bool],
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Collection[str] | None = None,
) -> None:
    """Give linear layers of the backbone's blocks adapters, in place: those named in ``targets`` (None: all).

    ``wanted`` says of a layer by its path in the backbone whether it trains. Raises ConfigError for a target that the
    blocks do not have and when no layer is left, UnavailableError without ``peft``.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UnavailableError("stage.lora needs the package peft", hint="pip install 'ghostvis[lora]'") from error

    place, blocks = _blocks(backbone)
    linears = [name for name, module in blocks.named_modules() if isinstance(module, nn.Linear)]
    known = list(dict.fromkeys(name.rpartition(".")[2] for name in linears))
    for target in targets or ():
        if not any(_is(name, target) for name in linears):
            raise ConfigError(
                f"stage.lora.targets: the blocks of the backbone have no linear layer '{target}'."
                f"{did_you_mean(target, known)}",
                hint=f"they have {', '.join(known)}",
            )
    chosen = [name for name in linears if targets is None or any(_is(name, target) for target in targets)]
    chosen = [name for name in chosen if wanted(f"{place}.{name}")]
    if not chosen:
        raise ConfigError(
            "stage.lora: stage.train gives no layer that could have an adapter a learning rate",
            hint="such as --set stage.train.backbone=2e-4",
        )
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen)  # type: ignore[arg-type]
    inject_adapter_in_model(config, blocks, ADAPTER)
    for name, parameter in blocks.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()  # made in the type of its layer


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is one of an adapter's two."""
    return ".lora_A." in name or ".lora_B." in name


def merge(backbone: Any) -> None:
    """Add the adapters to the weights beside them, in the weights' type, and take them out of the model, in place."""
    _, blocks = _blocks(backbone)
    for name, layer in _adapted(blocks):
        layer.merge()
        blocks.set_submodule(name, layer.get_base_layer())
    del blocks.peft_config


def save(backbone: Any, folder: Path, base: str | None) -> None:
    """Write the adapters alone as ``peft`` keeps them: ``adapter_model.safetensors``, ``adapter_config.json``.

    Of a ``decoder`` they fit the checkpoint's model in transformers, whose names its layers have. ``base`` is what the
    file calls the model that they belong to.
    """
    from peft import LoraConfig

    from components.backbones.decoder import Decoder

    place, blocks = _blocks(backbone)
    prefix = f"model.{place}" if isinstance(backbone, Decoder) else place
    tensors = {
        f"base_model.model.{prefix}.{name}".replace(f".{ADAPTER}.", "."): parameter.detach().cpu().contiguous()
        for name, parameter in blocks.named_parameters()
        if is_adapter(name)
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (own,) = blocks.peft_config.values()
    LoraConfig(
        r=own.r,
        lora_alpha=own.lora_alpha,
        lora_dropout=own.lora_dropout,
        target_modules=[f"{prefix}.{name}" for name, _ in _adapted(blocks)],
        base_model_name_or_path=base,
        task_type="CAUSAL_LM" if isinstance(backbone, Decoder) else None,
        inference_mode=True,
    ).save_pretrained(str(folder))


def _blocks(backbone: Any) -> tuple[str, Any]:
    """The list of the backbone's layers, with its name. Raises ConfigError where there is none."""
    for name, module in backbone.named_children():
        if isinstance(module, nn.ModuleList) and len(module) == backbone.n_layers:
            return name, module
    raise ConfigError(f"stage.lora: the backbone has no list of its {backbone.n_layers} layers")


def _adapted(blocks: nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in blocks.named_modules() if isinstance(module, LoraLayer)]


def _is(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")
