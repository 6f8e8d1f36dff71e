"""Runs that are killed at random moments and continued: ``python tests/killed_runs.py COUNT [SEED]``.

Each must end with the very rows (data hashes, losses) of a run that nobody disturbed, and no checkpoint that was ever
published may be missing or damaged. Processes are forked from this one, which has loaded everything and begun nothing.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.figure
import slow_plugin
import torch._dynamo
import torch.distributed.checkpoint
from miniature import flat, registry, values, write_tokenizer

from components.trackers.jsonl import read_metrics
from ghostvis_plugins.errors import RequeueError
from stages import checkpoint
from stages.loop import MEASURED
from stages.runner import run

_LOADED_ONCE = (
    matplotlib.figure,
    torch._dynamo,
    torch.distributed.checkpoint,
)  # else every forked process spends most of its time on these

STEPS, EVERY = 30, 4
WAYS = (
    "kill -9",
    "SIGTERM",
    "SIGKILL of one of two",
    "kill -9, async",
    "SIGTERM of one of two",
    "SIGKILL of both",
    "SIGKILL of one of two, FSDP",
    "SIGTERM of one of two, async",
    "SIGKILL of one of two, async",
    "SIGKILL of one of two, FSDP, async",
)
"""FSDP: weights are shared out. Async: checkpoints are written while training goes on."""


@dataclass
class Killed:
    """One killed run and what became of it."""

    way: str
    moment: str
    codes: list[int] = field(default_factory=list)
    stopped_at: int = 0  # last step in its metrics
    published: list[int] = field(default_factory=list)  # checkpoints seen before and after the end
    lost: list[int] = field(default_factory=list)
    resumed_from: int = 0
    same: bool = False
    seconds: float = 0.0


def given(start: Path, seconds: float, way: str) -> dict[str, Any]:
    return values(
        start,
        stage__steps=STEPS,
        stage__train={"projector": 1e-2, "backbone": 1e-2},
        stage__checkpoint_every=EVERY,
        stage__eval_every=10,
        stage__eval_samples=8,
        stage__keep_checkpoints=99,
        stage__fsdp_above=0 if "FSDP" in way else None,
        stage__checkpoint_async="async" in way,
        tracker={"name": "slow", "seconds": seconds},
    )


def fork(folder: Path, world: int, work: Callable[[], Any]) -> list[int]:
    """Processes that do ``work`` as the ranks of a group; their output goes to a log beside the run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        code = 1
        try:
            os.dup2(os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            work()
            code = 0
        except RequeueError as error:
            code = int(error.exit_code)
        except BaseException as error:
            print(f"rank {rank}: {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return pids


def wait(pids: list[int], seconds: float = 120) -> list[int]:
    """Exit codes in the order of ``pids``; those that do not end in time are killed."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while len(codes) < len(pids):
        for pid in set(pids) - codes.keys():
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


def train(folder: Path, start: Path, way: str, *, seconds: float = 0.0, resume: bool = False) -> list[int]:
    found = registry(*flat(slow_plugin.ghostvis_components()))
    return fork(folder, world_of(way), lambda: run(given(start, seconds, way), found, folder, resume=resume))


def world_of(way: str) -> int:
    return 2 if "two" in way or "both" in way else 1


def rows(folder: Path) -> list[dict[str, Any]]:
    """Metrics without wall-clock figures."""
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in read_metrics(folder)]


def kill_and_continue(home: Path, number: int, way: str, dice: random.Random) -> Killed:
    folder, start = home / f"run-{number}", home / "tokenizer"
    world = world_of(way)
    step, within = dice.randint(1, STEPS - 3), dice.random() * 0.04
    writing = dice.random() < 0.4  # in the middle of a checkpoint, if it can be caught
    result = Killed(way, f"{'writing after' if writing else 'after'} step {step}")
    begun = time.monotonic()
    pids = train(folder, start, way, seconds=0.02)
    checkpoints = folder / "checkpoints"
    published: set[int] = set()
    while not (found := read_metrics(folder)) or found[-1]["step"] < step:
        published |= set(checkpoint.steps(checkpoints))
        if os.waitpid(pids[0], os.WNOHANG)[0]:
            raise AssertionError(f"run {number} ended by itself\n{Path(f'{folder}.log').read_text()}")
        time.sleep(0.002)
    if writing:
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline and not any(checkpoints.glob(".partial-*")):
            pass
    else:
        time.sleep(within)
    number_of = signal.SIGTERM if "SIGTERM" in way else signal.SIGKILL
    for pid in pids if "both" in way or world == 1 else [dice.choice(pids)]:
        published |= set(checkpoint.steps(checkpoints))
        os.kill(pid, number_of)
    result.codes = wait(pids)
    result.stopped_at = read_metrics(folder)[-1]["step"]
    # A due checkpoint follows its row, and is there when the next row is, or that after the next one's turn.
    sure = result.stopped_at - (EVERY if "async" in way else 0)
    published |= set(checkpoint.steps(checkpoints)) | set(range(EVERY, sure, EVERY))
    result.published = sorted(published)
    whole = [step for step in result.published if checkpoint.verify(checkpoints / f"step_{step}") is None]
    result.lost = sorted(published - set(whole))
    result.resumed_from = max(whole, default=0)
    codes = wait(train(folder, start, way, resume=True))
    whole_run = rows(home / undisturbed(way))
    result.same = codes == [0] * world and rows(folder) == whole_run and len(whole_run) == STEPS
    result.seconds = time.monotonic() - begun
    return result


def undisturbed(way: str) -> str:
    """The run that nobody disturbs; each of its checkpoints is written before it goes on."""
    return f"whole-{world_of(way)}" + ("-shared" if "FSDP" in way else "")


def torment(home: Path, count: int, seed: int) -> Iterator[Killed]:
    """Kill and continue ``count`` runs in ``home``, each way in turn."""
    dice = random.Random(seed)
    assert wait(fork(home / "tokenizer", 1, lambda: write_tokenizer(home / "tokenizer"))) == [0]
    for way in ("alone", "two", "two, FSDP"):
        name = undisturbed(way)
        codes = wait(train(home / name, home / "tokenizer", way))
        assert codes == [0] * world_of(way), (home / f"{name}.log").read_text()
    for number in range(count):
        yield kill_and_continue(home, number, WAYS[number % len(WAYS)], dice)


def main() -> None:
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    good = 0
    with tempfile.TemporaryDirectory() as folder:
        print(
            f"{'way':34} {'moment':22} {'exit codes':12} {'at':>3} {'from':>4} "
            f"{'kept':>4} {'lost':>4} {'same':>5} {'s':>5}"
        )
        for number, r in enumerate(torment(Path(folder), count, seed)):
            codes = ",".join(map(str, r.codes))
            print(
                f"{r.way:34} {r.moment:22} {codes:12} {r.stopped_at:3} {r.resumed_from:4} "
                f"{len(r.published):4} {len(r.lost):4} {r.same!s:>5} {r.seconds:5.1f}",
                flush=True,
            )
            if r.same and not r.lost and ("SIGTERM" not in r.way or set(r.codes) == {85}):
                good += 1
            else:
                print((Path(folder) / f"run-{number}.log").read_text()[-1500:], file=sys.stderr)
    print(f"seed {seed}: {count} killed, {good} continued as if nothing had been")
    sys.exit(0 if good == count else 1)


if __name__ == "__main__":
    main()
