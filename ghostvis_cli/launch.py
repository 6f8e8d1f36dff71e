"""From a resolved run to running processes.

The parent has resolved and checked everything before this is called, so a user's mistake never costs eight error
messages. One process runs here, in this interpreter; several are started by torch's own elastic launcher, with the
worker as their only entry point. Under ``torchrun`` or ``srun`` the processes exist already, and this one joins them.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ghostvis_plugins import ConfigError, ExitCode, GhostVisError, UnavailableError
from ghostvis_plugins.resolved import Resolved, load_resolved
from stages.rundir import QUEUED, claim, exit_codes

RUNS = Path("runs")
WORKER = "ghostvis_cli.worker"
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # each is passed on to the workers
ELASTIC = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""For the launcher, whose store outlives a restart: Gloo would find the addresses of the dead in it."""
STOP_SECONDS = 120
"""What workers get to finish a step and save it, after a signal; also what a rank that hangs costs a restart."""


class RunFailedError(GhostVisError):
    """A worker ended with an error that it has already reported; only its exit code is left to pass on."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = ExitCode(code) if code in ExitCode.__members__.values() else ExitCode.FAILED


def prepare(resolved: Resolved, *, resume: bool) -> Path:
    """Make the run directory and write ``resolved.json``. Raises ConfigError where a run would be overwritten.

    Also one that another command has prepared for a job in a queue, unless it is the same.
    """
    from stages.slurm import join_step

    join_step()
    values = resolved.values
    if resume and not values["name"]:
        raise ConfigError("--resume needs the --name of the run to continue")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not values["name"]:
        raise ConfigError("a run of several processes needs a --name that they share")
    if not values["name"]:
        values["name"] = _free_name(values["stage"]["name"])
        resolved.origins["name"] = "default"
    run_dir = RUNS / values["name"]
    file = run_dir / "resolved.json"
    if resume:
        if not file.exists():
            raise ConfigError(f"{run_dir} holds no run to resume", hint="leave --resume out to start it")
        _check_same(file, values, f"{run_dir} was started with other values", "resume it with the former ones")
        return run_dir
    claim(run_dir, resume=False)
    if (run_dir / QUEUED).exists() and file.exists():
        waits = f"{run_dir} was prepared by launch slurm and has not started; its script would run with other values"
        hint = (
            f"choose another --name; if its script was not submitted, or its job was cancelled, remove {run_dir} first"
        )
        _check_same(file, values, waits, hint)
    private = run_dir / f".{file.name}.{os.environ.get('RANK', '0')}"  # each process of a launcher comes by here
    private.write_text(resolved.to_json(), encoding="utf-8")
    private.replace(file)
    return run_dir


def start(run_dir: Path, *, nproc: int, resume: bool, max_restarts: int = 0) -> None:
    """Run the stage of ``run_dir`` in ``nproc`` processes. Raises RunFailedError when one of several fails.

    With ``max_restarts`` also one process has a launcher, which starts them all again when one ends early.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        world = int(os.environ["WORLD_SIZE"])
        if nproc not in (1, world):
            raise ConfigError(f"--nproc {nproc}, but this process was started as one of {world}")
        if max_restarts:
            raise ConfigError("--max-restarts, but this process has another launcher", hint="give it to that one")
        nproc = 1
    if nproc == 1 and not max_restarts:
        from .worker import work

        work(run_dir / "resolved.json", resume=resume)
        return
    _start_workers(run_dir, nproc, resume, max_restarts)


def _start_workers(run_dir: Path, nproc: int, resume: bool, max_restarts: int) -> None:
    """Elastic launch from this process: torchrun's own command would end a user's mistake in its traceback."""
    import logging

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.update(_worker_environment(nproc))
    os.environ.update(ELASTIC)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    _worker_code(run_dir)  # away with that of an earlier start
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=run_dir.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
        signals_to_handle=SIGNALS,
        shutdown_timeout=int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", STOP_SECONDS)),
    )
    try:
        elastic_launch(config, sys.executable)(*_worker_arguments(run_dir, resume))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        code = _worker_code(run_dir) or failure.exitcode
        raise RunFailedError(f"a worker of {run_dir} ended early; its message is above", code) from None
    except SignalException as stop:
        if stop.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        code = _worker_code(run_dir) or ExitCode.FAILED
        raise RunFailedError(f"{run_dir} was stopped by {stop.sigval.name}", code) from None


def _worker_arguments(run_dir: Path, resume: bool) -> list[str]:
    arguments = ["-m", WORKER, "--resolved", str(run_dir / "resolved.json")]
    return [*arguments, "--resume"] if resume else arguments


def launch_text(run_dir: Path, nproc: int, resume: bool, max_restarts: int = 0) -> str:
    """The command line that starts the same workers: what ``--print-launch`` shows."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(nproc)]
    command += ["--max-restarts", str(max_restarts)]
    command += ["--signals-to-handle", SIGNALS, "--shutdown-timeout", str(STOP_SECONDS)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--rdzv-id", run_dir.name]
    variables = [f"{key}={value}" for key, value in {**ELASTIC, **_worker_environment(nproc)}.items()]
    return shlex.join([*variables, *command, *_worker_arguments(run_dir, resume)])


def _worker_environment(nproc: int) -> dict[str, str]:
    """Safe import path (a ``components/`` in the user's folder must not win) and a fair share of the cores."""
    threads = max(1, (os.cpu_count() or 1) // nproc)
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)), "PYTHONSAFEPATH": "1"}


def _worker_code(run_dir: Path) -> int | None:
    """The exit code that the first failing worker left; torchrun turns every failure into 1."""
    files = exit_codes(run_dir)
    try:
        return int(files[0].read_text(encoding="utf-8")) if files else None
    except (OSError, ValueError):
        return None
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def _free_name(stage: str) -> str:
    number = 1
    while (RUNS / f"{stage}-{number}").exists():
        number += 1
    return f"{stage}-{number}"


def _check_same(file: Path, now: Mapping[str, Any], said: str, hint: str) -> None:
    """That ``resolved.json`` holds the same run, whatever its device and its threads are now.

    Raises ConfigError with ``said`` and the values that differ.
    """
    from ghostvis_plugins.layers import flatten

    machine = ("device", "threads")
    old, new = dict(flatten(load_resolved(file).values)), dict(flatten(now))
    changed = sorted(key for key in old.keys() | new.keys() if key not in machine and old.get(key) != new.get(key))
    if changed:
        lines = "\n".join(f"  {key}: {old.get(key)!r} → {new.get(key)!r}" for key in changed)
        raise ConfigError(f"{said}:\n{lines}", hint=hint)


def count_processes(text: str) -> int:
    """``--nproc``: a number, or ``gpu`` for one process per CUDA device. Raises ConfigError, UnavailableError."""
    if text == "gpu":
        import torch

        if not torch.cuda.is_available():
            raise UnavailableError(
                "--nproc gpu: this machine has no CUDA device", hint="give a number, such as --nproc 2"
            )
        return torch.cuda.device_count()
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"--nproc {text}: give a number from 1, or gpu")
    return int(text)
