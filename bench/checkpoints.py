"""How long training stands still for a checkpoint, written at once or while the next steps are learnt.

    python bench/checkpoints.py                                   # gpt of depth 4: 80 MB of weights, on the CPU
    python bench/checkpoints.py --device cuda --depth 26 --tokens 16384

Both ways take turns in one process, on one model. A step is that of ``stages.parallel`` on random tokens. What a
checkpoint costs is what it takes away from the steps: the wait for it, and by how much steps beside the thread are
slower than those without.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from ranks import BUILDS, VOCABULARY, batch

from components.backbones.config import GPT as GPTConfig
from components.backbones.gpt import GPT
from components.batch import Batch
from components.vlm import VLM
from stages.config import PretrainConfig
from stages.distributed import Distributed, autocast
from stages.optim import apply_table
from stages.parallel import Alone, share_model
from stages.saving import Saver

ONCE, STILL, TAKEN = "a checkpoint at once", "one meanwhile, standing still", "  with what its steps lose"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default: one for temporary files")
    given = parser.parse_args()
    ranks = Distributed.start(given.device, threads=given.threads)
    torch.manual_seed(0)
    config = PretrainConfig(steps=1)
    model = VLM(GPT(GPTConfig(depth=given.depth), VOCABULARY)).to(ranks.device)
    model.init_weights()
    apply_table(model, config.train)
    shared = share_model(model, ranks, config, BUILDS["adamw"])
    work = batch(given.tokens).to(ranks.device)
    step(shared, work)  # makes the optimizer's state
    rounds = []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        once, meanwhile = (
            Saver(Path(folder) / str(way), ranks, print, keep=1, every=0, done=0, asynchronous=way)
            for way in (False, True)
        )
        with meanwhile:
            for number in range(given.rounds + 1):
                rounds.append(measure(number, once, meanwhile, shared, work))
    size = sum(parameter.nbytes for parameter in model.parameters()) / 1e6
    print(f"{size:.0f} MB of weights on {ranks.device}, in ms, medians of {given.rounds} rounds")
    for name in rounds[0]:  # the first round also pins memory
        print(f"{name:48}{1e3 * statistics.median(found[name] for found in rounds[1:]):10.1f}")
    for name in (STILL, TAKEN):
        ratio = statistics.median(found[ONCE] / found[name] for found in rounds[1:])
        print(f"{ONCE} / {name}: {ratio:.1f}")


def measure(number: int, once: Saver, meanwhile: Saver, shared: Alone, work: Batch) -> dict[str, float]:
    """Seconds of a round: a checkpoint each way, steps without one, and steps beside the thread that writes one."""
    alone = statistics.median(step(shared, work) for _ in range(5))
    once.save(number, shared, {})
    once.settle()
    began = time.perf_counter()
    meanwhile.save(number, shared, {})
    beside = [step(shared, work)]
    while meanwhile.writing:
        beside.append(step(shared, work))
    written = time.perf_counter() - began
    meanwhile.settle()
    still = meanwhile.seconds()
    return {
        "a step": alone,
        ONCE: once.seconds(),
        STILL: still,
        TAKEN: still + sum(beside) - alone * len(beside),
        "  which is on the disk after": written,
        "  a step beside it": statistics.median(beside),
    }


def step(shared: Alone, work: Batch) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    with autocast("auto", shared.ranks.device):
        loss = shared.loss(work)
    shared.backward(loss, last=True)
    shared.sum_gradients()
    shared.step()
    shared.zero_grad()
    if shared.ranks.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
