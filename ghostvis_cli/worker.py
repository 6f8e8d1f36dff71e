"""One process of a run: ``torchrun --nproc-per-node 8 -m ghostvis_cli.worker --resolved runs/x/resolved.json``.

It reads the resolved run and nothing else: no flags, no environment, no recipe, no plugins but those of the run.
"""

from __future__ import annotations

import argparse
import glob
import os
import platform
import sys
from pathlib import Path
from typing import NoReturn

from ghostvis_plugins import ExitCode, GhostVisError
from ghostvis_plugins.resolved import load_resolved, registry_for
from stages.rundir import EXIT_CODE, QUEUED


def work(resolved_file: Path, *, resume: bool) -> Path:
    """Run the stage; returns the model directory. Raises GhostVisError."""
    resolved = load_resolved(resolved_file)
    (resolved_file.parent / QUEUED).unlink(missing_ok=True)  # a job that has started waits no more
    from stages.runner import run  # torch, after what may be wrong without it

    return run(resolved.values, registry_for(resolved), resolved_file.parent, resume=resume)


def main() -> NoReturn:
    """The entry point under torchrun and srun. A user's mistake is said once, by the first process that meets it."""
    from stages.slurm import join_step

    parser = argparse.ArgumentParser(prog="ghostvis_cli.worker", description=__doc__)
    parser.add_argument("--resolved", required=True, type=Path, help="resolved.json of the run")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    arguments = parser.parse_args()
    join_step()
    own = _own_file(arguments.resolved.parent)
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0  # after the loss of a worker
    try:
        work(arguments.resolved, resume=arguments.resume or restarted)
    except GhostVisError as error:
        _leave(own, int(error.exit_code), str(error))
    except KeyboardInterrupt:
        sys.exit(int(ExitCode.INTERRUPTED))
    sys.exit(0)


def _own_file(run_dir: Path) -> Path | None:
    """The file that the processes of this start share, on each node under torchrun; None where nobody started several.

    Those of earlier starts are removed, of which no process is left here.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        agent = os.getppid()
        begun = Path(f"/proc/{agent}/stat")  # a later process may have its number
        ticks = begun.read_text(encoding="utf-8").rpartition(")")[2].split()[19] if begun.exists() else ""
        place, start = platform.node(), f"{agent}-{ticks}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1 and "SLURM_STEP_ID" in os.environ:
        names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")
        place, start = "slurm", "-".join(os.environ.get(name, "0") for name in names)
    else:
        return None
    own = run_dir / f"{EXIT_CODE}.{place}.{start}"
    for file in run_dir.glob(f"{EXIT_CODE}.{glob.escape(place)}.*"):
        if file != own:
            file.unlink(missing_ok=True)
    return own


def _leave(own: Path | None, code: int, message: str) -> NoReturn:
    """Report once for all ranks; leave the exit code for the parent, since torchrun knows only failure."""
    try:
        if own is not None:
            with own.open("x", encoding="utf-8") as file:
                file.write(str(code))
    except FileExistsError:
        pass  # another rank was first
    else:
        print(f"ghostvis: error: rank {os.environ.get('RANK', '0')}: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
