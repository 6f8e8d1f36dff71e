"""What adapters save: a step of all weights against one of adapters, over weights in float32 and in bfloat16.

    python bench/lora.py [--checkpoint smollm2-135m-instruct] [--tokens 1024] [--device cpu] [--steps 5]

The model has random weights. All take turns on the same tokens, the first turn only warms up; figures are medians
of the steps, and ratios those of steps of one turn. Bytes are those of weights, gradients and AdamW's state, which
are exact; activations come on top and are about as many for each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from components.backbones.config import Decoder as Config
from components.backbones.decoder import build
from components.batch import Batch
from components.flops import StepFlops
from components.optimizers import adamw
from components.optimizers.config import AdamW
from components.rendering import Rendered
from components.vlm import VLM
from stages.config import LoRA
from stages.distributed import autocast
from stages.optim import apply_table, parameter_groups, set_modes

TABLE = {"backbone": 1e-4}
VARIANTS: dict[str, tuple[str, LoRA | None]] = {
    "all weights, float32": ("float32", None),
    "adapters of rank 16 over float32": ("float32", LoRA(rank=16)),
    "adapters of rank 16 over bfloat16": ("bfloat16", LoRA(rank=16)),
}


def made(checkpoint: str, dtype: str, adapters: LoRA | None, device: torch.device) -> tuple[VLM, Any]:
    backbone = build(Config(checkpoint=checkpoint, weights="random", dtype=dtype), vocab_size=1000)  # type: ignore[arg-type]
    backbone.init_weights()
    model = VLM(backbone)
    apply_table(model, TABLE, adapters)
    set_modes(model.to(device))
    return model, adamw.build(AdamW(), groups=parameter_groups(model, TABLE))


def step(model: VLM, optimizer: Any, batch: Batch) -> float:
    """Seconds."""
    began = time.perf_counter()
    with autocast("auto", model.device):
        nll, targets = model.loss(batch)
    (nll / targets).backward()
    optimizer.step()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def held(model: VLM, optimizer: Any) -> int:
    """Bytes of weights, gradients and the optimizer's state."""
    tensors = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    return sum(tensor.nbytes for tensor in tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    ids = torch.randint(1000, (arguments.tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    batch = Batch.pack([Rendered(ids, [True] * len(ids), [], (), "random")]).to(device)
    names = [name for name in VARIANTS if device.type != "cpu" or "bfloat16" not in name]  # which many CPUs emulate
    variants = {name: made(arguments.checkpoint, *VARIANTS[name], device) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    sizes = {}
    for _ in range(1 + arguments.steps):
        for name, (model, optimizer) in variants.items():
            seconds[name].append(step(model, optimizer, batch))
            sizes[name] = held(model, optimizer)
            optimizer.zero_grad(set_to_none=True)
    first = names[0]
    print(f"{'':34} {'GiB':>6} {'GFLOP':>8} {'s/step':>8} {'of all weights':>15}")
    for name, (model, _) in variants.items():
        own = seconds[name][1:]
        ratio = statistics.median(a / b for a, b in zip(own, seconds[first][1:], strict=True))
        work = StepFlops.measure(model)(batch, encoded=0) / 1e9
        print(f"{name:34} {sizes[name] / 2**30:6.2f} {work:8.0f} {statistics.median(own):8.3f} {ratio:15.2f}")


if __name__ == "__main__":
    main()
