"""SLURM of one machine, as far as a batch script sees it: ``install`` puts sbatch, srun and scontrol into a folder.

What they set in the environment, whom they signal and how they end is SLURM's: the batch shell knows a rank and the
job's number of tasks but no step; srun's tasks are signalled together; a requeued job is killed and started again.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

JOB, NODE = "4711", "localhost"
STEP, REQUEUED = "step.pids", "requeued"  # files in the folder of the commands


def install(folder: Path) -> dict[str, str]:
    """The environment in which a shell finds the commands."""
    folder.mkdir()
    for name in ("sbatch", "srun", "scontrol"):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} {name} "$@"\n')
        script.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    return {**kept, "PATH": f"{folder}:{kept['PATH']}", "FAKE_SLURM": str(folder)}


def sbatch(script: str) -> int:
    """Run the job until it is not requeued any more; the exit code of its last start."""
    state = Path(os.environ["FAKE_SLURM"])
    lines = [shlex.split(line)[1] for line in Path(script).read_text().splitlines() if line.startswith("#SBATCH --")]
    options = dict(part.removeprefix("--").partition("=")[::2] for part in lines)
    tasks = int(options["nodes"]) * int(options["ntasks-per-node"])
    assert options["signal"].startswith("USR1@")
    assert "requeue" in options
    environment = {**os.environ, "SLURM_JOB_ID": JOB, "SLURM_JOB_NODELIST": NODE, "SLURM_PROCID": "0"}
    environment |= {"SLURM_LOCALID": "0", "SLURM_NTASKS": str(tasks), "SLURM_NTASKS_PER_NODE": str(tasks)}
    environment |= {"SLURM_CPUS_PER_TASK": options["cpus-per-task"]}
    restarts = 0
    while True:
        (state / REQUEUED).unlink(missing_ok=True)
        output = Path(options["chdir"]) / options["output"].replace("%j", JOB)
        with output.open("a" if options["open-mode"] == "append" else "w") as log:
            code = subprocess.run(
                ["bash", script],
                cwd=options["chdir"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            ).returncode
        if not (state / REQUEUED).exists():
            return code
        restarts += 1
        environment["SLURM_RESTART_COUNT"] = str(restarts)


def srun(*words: str) -> int:
    """As many processes as the job has tasks; the highest of their exit codes."""
    command = list(words)
    while command[0].startswith("--"):
        assert "=" in command.pop(0)
    count = int(os.environ["SLURM_NTASKS"])
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(count), "SLURM_STEP_NODELIST": NODE}
    processes = []
    for rank in range(count):
        own = {**os.environ, **step, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        processes.append(subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL, start_new_session=True))
    (Path(os.environ["FAKE_SLURM"]) / STEP).write_text(" ".join(str(process.pid) for process in processes))
    codes = [process.wait() for process in processes]
    return max(128 - code if code < 0 else code for code in codes)


def scontrol(verb: str, *words: str) -> int:
    if verb == "requeue":
        assert words == (JOB,)
        (Path(os.environ["FAKE_SLURM"]) / REQUEUED).touch()
        os.kill(os.getppid(), signal.SIGKILL)  # the batch shell
        return 0
    assert (verb, *words) == ("show", "hostnames", NODE)
    print(NODE)
    return 0


def signal_step(folder: Path, number: signal.Signals) -> None:
    """Signal every process of the step, children of its tasks included."""
    for task in (folder / STEP).read_text().split():
        os.killpg(int(task), number)


def wait_for_start(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Until srun has started its tasks."""
    deadline = time.monotonic() + 60
    while not (folder / STEP).exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit({"sbatch": sbatch, "srun": srun, "scontrol": scontrol}[sys.argv[1]](*sys.argv[2:]))
