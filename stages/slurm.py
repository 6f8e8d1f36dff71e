"""``srun`` as a launcher: what SLURM tells a task, as the variables of torchrun that everything else reads.

Only srun names a step and its tasks (``SLURM_STEP_ID``, ``SLURM_STEP_NUM_TASKS``; in SLURM's source, src/common/env.c).
The shell of ``salloc`` and the script of ``sbatch`` know their rank 0 and the number of tasks of the *job* as well, and
what is started there without srun is one process, not one of so many.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

PORTS = range(20_000, 30_000)  # below those that Linux hands out by itself


def join_step() -> None:
    """Set ``RANK``, ``WORLD_SIZE`` and the others from SLURM's, in a task of a step with several of them.

    Does nothing where a launcher has set them, and in a terminal that ``srun --pty`` opened: a person started this.
    """
    if not ("RANK" in os.environ or os.isatty(0)):
        os.environ.update(torchrun_variables(os.environ))


def torchrun_variables(slurm: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would have set in the task with the environment ``slurm``; nothing outside of a step of several.

    A task that is shown a single GPU has it as its first, whichever task of the node it is. ``MASTER_ADDR`` and
    ``MASTER_PORT`` are kept where they are given, else the first node of the step and a port that steps do not share.
    """
    if not {"SLURM_STEP_ID", "SLURM_PROCID"} <= slurm.keys() or int(slurm.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return {}
    alone = len(slurm.get("CUDA_VISIBLE_DEVICES", ",").split(",")) == 1
    number = int(slurm.get("SLURM_JOB_ID", "0")) * 7 + int(slurm["SLURM_STEP_ID"])
    return {
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": slurm["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": "0" if alone else slurm.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": slurm.get("MASTER_ADDR") or first_node(slurm.get("SLURM_STEP_NODELIST", "127.0.0.1")),
        "MASTER_PORT": slurm.get("MASTER_PORT") or str(PORTS[number % len(PORTS)]),
    }


def first_node(nodes: str) -> str:
    """The first host of SLURM's short form: "gpu[07-09,12]-ib,login" is gpu07-ib."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert first is not None
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])
