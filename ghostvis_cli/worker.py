"""One process of a run: ``torchrun --nproc-per-node 8 -m ghostvis_cli.worker --resolved runs/x/resolved.json``.

It reads the resolved run and nothing else: no flags, no environment, no recipe, no plugins but those of the run.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from ghostvis_plugins import ExitCode, GhostVisError
from ghostvis_plugins.resolved import load_resolved, registry_for

EXIT_CODE = "exit_code"
"""File in the run directory in which the first process that fails leaves its exit code."""


def work(resolved_file: Path, *, resume: bool) -> Path:
    """Run the stage; returns the model directory. Raises GhostVisError."""
    from stages.runner import run

    resolved = load_resolved(resolved_file)
    return run(resolved.values, registry_for(resolved), resolved_file.parent, resume=resume)


def main() -> NoReturn:
    """The entry point under torchrun and srun. A user's mistake is said once, by the first process that meets it."""
    from stages.slurm import join_step

    parser = argparse.ArgumentParser(prog="ghostvis_cli.worker", description=__doc__)
    parser.add_argument("--resolved", required=True, type=Path, help="resolved.json of the run")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    arguments = parser.parse_args()
    join_step()
    if os.environ.get("RANK", "0") == "0":
        (arguments.resolved.parent / EXIT_CODE).unlink(missing_ok=True)  # of an earlier failure
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0  # after the loss of a worker
    try:
        work(arguments.resolved, resume=arguments.resume or restarted)
    except GhostVisError as error:
        _leave(arguments.resolved.parent, int(error.exit_code), str(error))
    except KeyboardInterrupt:
        sys.exit(int(ExitCode.INTERRUPTED))
    sys.exit(0)


def _leave(run_dir: Path, code: int, message: str) -> NoReturn:
    """Report once for all ranks; leave the exit code for the parent, since torchrun knows only failure."""
    try:
        with (run_dir / EXIT_CODE).open("x", encoding="utf-8") as file:
            file.write(str(code))
    except FileExistsError:
        pass  # another rank was first
    else:
        print(f"ghostvis: error: rank {os.environ.get('RANK', '0')}: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
