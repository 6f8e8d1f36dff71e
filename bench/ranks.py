"""What several processes cost and spare: bytes per rank, and seconds of a step.

    python bench/ranks.py                                      # gloo, on the CPU
    python bench/ranks.py --device cuda --ranks 1 2 --depth 20 --tokens 16384 --micro 4

The steps are those of the training loop, on random tokens: the same number for each rank and step, so that a perfect
run of N ranks takes as long as one of one rank. Bytes are those of the tensors that a rank keeps between two steps. A
rank computes ``--micro`` batches of ``--tokens`` tokens in a step.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import time
from typing import Any

import torch
import torch.multiprocessing

from components.backbones.config import GPT as GPTConfig
from components.backbones.gpt import GPT
from components.batch import Batch
from components.optimizers import adamw, config, muon
from components.rendering import Rendered
from components.vlm import VLM
from stages.config import PretrainConfig
from stages.distributed import Distributed, autocast
from stages.optim import apply_table, clip_factor
from stages.parallel import Sharded, share_model

VOCABULARY = 32768
BUILDS: dict[str, Any] = {
    "adamw": lambda groups: adamw.build(config.AdamW(), groups=groups),
    "muon": lambda groups: muon.build(config.Muon(), groups=groups),
}
WAYS = (("adamw", False), ("muon", False), ("adamw", True))  # optimizer, and whether the weights are shared out


def batch(tokens: int, length: int = 1024) -> Batch:
    """Documents of random tokens."""
    documents = [torch.randint(VOCABULARY, (min(length, tokens),)).tolist() for _ in range(max(1, tokens // length))]
    return Batch.pack([Rendered(ids, [True] * len(ids), [], (), str(n)) for n, ids in enumerate(documents)])


def held(tensor: Any) -> int:
    """Bytes of a tensor, or of the part of it that is here."""
    if not isinstance(tensor, torch.Tensor):
        return 0
    return int((tensor.to_local() if hasattr(tensor, "to_local") else tensor).nbytes)


def work(rank: int, world: int, port: int, given: argparse.Namespace, name: str, shares: bool) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = Distributed.start(given.device, threads=given.threads)
    torch.manual_seed(0)
    model = VLM(GPT(GPTConfig(depth=given.depth), VOCABULARY))
    model.init_weights()
    stage = PretrainConfig(steps=1, fsdp_above=0 if shares else None)
    apply_table(model, stage.train)
    if not shares:
        model.to(ranks.device)
    parallel = share_model(model, ranks, stage, BUILDS[name], given.dtype)
    assert isinstance(parallel, Sharded) == shares
    torch.manual_seed(rank)
    batches = [batch(given.tokens).to(ranks.device) for _ in range(given.micro)]
    targets = world * given.micro * given.tokens
    seconds = []
    for _ in range(given.steps):
        began = time.perf_counter()
        for number, own in enumerate(batches, 1):
            with autocast(given.dtype, ranks.device):
                loss = parallel.loss(own)
            parallel.backward(loss / targets, last=number == given.micro)
        parallel.sum_gradients()
        parallel.scale(clip_factor(parallel.norm().item(), 1.0))
        parallel.step()
        parallel.zero_grad()
        if ranks.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    weights = sum(held(parameter) for parameter in model.parameters())
    state = sum(held(value) for values in parallel.optimizer.state.values() for value in values.values())
    peak = torch.cuda.max_memory_allocated() if ranks.device.type == "cuda" else 0
    found = ranks.gather((weights, state, peak))
    if ranks.is_main:
        parts = [" + ".join(f"{each[n] / 1e6:.1f}" for each in found) for n in range(2)]
        most = f"{max(each[2] for each in found) / 2**30:.2f} GiB" if peak else "-"
        way = f"{name}{', weights shared out' if shares else ''}"
        step = statistics.median(seconds[1:])
        print(f"| {world} | {way} | {parts[0]} | {parts[1]} | {most} | {step:.3f} |", flush=True)
    ranks.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--micro", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3, help="The first one warms up.")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    print("| ranks | optimizer | weights, MB | optimizer state, MB | peak | step, s |")
    print("|---|---|---|---|---|---|")
    for name, shares in WAYS:
        for world in given.ranks:
            if shares and world == 1:
                continue
            with contextlib.closing(socket.socket()) as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            torch.multiprocessing.spawn(work, (world, port, given, name, shares), nprocs=world)


if __name__ == "__main__":
    main()
