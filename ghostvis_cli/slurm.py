"""``ghostvis launch slurm``: a run is resolved and checked and gets its folder here; a script starts it there.

A mistake is found before anything waits in a queue. The script says what it does and can be edited; it starts workers
on the run's ``resolved.json``, as every launcher does, by torchrun or one by one by srun (see :mod:`stages.slurm`).
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ghostvis_plugins import ConfigError, ExitCode
from stages.rundir import QUEUED

from .options import Json
from .output import emit_json, examples, note

TEMPLATE = "slurm.sh.jinja"
OWN = {
    *("job-name", "chdir", "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "time", "partition"),
    *("account", "output", "open-mode", "requeue", "signal"),
}
EPILOG = examples(
    "ghostvis launch slurm --time 24:00:00 --out job.sh -- train --recipe 8xh100/2-pretrain --from runs/words/model "
    "--name text",
    "ghostvis launch slurm --nodes 2 --gpus-per-node 8 --partition gpu --launcher srun -- "
    "train --recipe tiny/2-pretrain --from runs/tiny-1-tokenizer/model --name far",
)


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Write the script that starts a run on a cluster.", no_args_is_help=True)
    group.callback()(lambda: None)  # one command, and still by its name
    group.command(epilog=EPILOG)(slurm)
    app.add_typer(group, name="launch", rich_help_panel="Models")


def slurm(
    command: Annotated[
        list[str],
        typer.Argument(help="Behind --, the command to run there: train and its options.", metavar="-- train …"),
    ],
    nodes: Annotated[int, typer.Option("--nodes", help="Machines.", metavar="N", min=1)] = 1,
    gpus_per_node: Annotated[
        int, typer.Option("--gpus-per-node", help="GPUs on each, a process for each.", metavar="G", min=1)
    ] = 8,
    cpus_per_gpu: Annotated[
        int, typer.Option("--cpus-per-gpu", help="Cores for each process.", metavar="N", min=1)
    ] = 8,
    time: Annotated[
        str | None, typer.Option("--time", help="Longest time of one start, such as 24:00:00.", metavar="TIME")
    ] = None,
    partition: Annotated[str | None, typer.Option("--partition", help="SLURM's partition.", metavar="NAME")] = None,
    account: Annotated[str | None, typer.Option("--account", help="SLURM's account.", metavar="NAME")] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            "--sbatch",
            help="Any other option of sbatch, without its dashes: qos=long, or exclusive; may be repeated.",
            metavar="KEY[=VALUE]",
        ),
    ] = None,
    launcher: Annotated[
        Literal["torchrun", "srun"],
        typer.Option("--launcher", help="What starts the processes of a node: a torchrun on it, or srun each."),
    ] = "torchrun",
    out: Annotated[
        Path | None, typer.Option("--out", help="The script; default: runs/NAME/job.sh.", metavar="FILE")
    ] = None,
    json: Json = False,
) -> None:
    """Check a run, make its folder, write its sbatch script.

    The script trains it, and is requeued until it is done.
    """
    options = _options_of_train(command)
    if launcher == "srun" and options["max_restarts"]:
        raise ConfigError("--max-restarts is torchrun's", hint="leave --launcher out; srun starts a process once")
    chosen = [(key, value) for key, value in (("time", time), ("partition", partition), ("account", account)) if value]
    chosen += [_site_option(text) for text in sbatch or ()]

    run_dir = _prepare(options, nodes * gpus_per_node)
    script = out or run_dir / "job.sh"
    torchrun = launcher == "torchrun"
    text = _render(
        name=run_dir.name,
        run_dir=shlex.quote(run_dir.as_posix()),
        folder=shlex.quote(str(Path.cwd())),
        script=script,
        nodes=nodes,
        gpus=gpus_per_node,
        tasks=1 if torchrun else gpus_per_node,
        cpus=cpus_per_gpu * (gpus_per_node if torchrun else 1),
        threads=cpus_per_gpu,
        chosen=[(key, shlex.quote(str(value)) if value else "") for key, value in chosen],
        torchrun=torchrun,
        max_restarts=options["max_restarts"],
    )
    try:
        script.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{script} cannot be written: {error.strerror}") from error
    (run_dir / QUEUED).touch()
    if json:
        emit_json(run=str(run_dir), script=str(script))
        return
    note(f"{run_dir} is ready. Submit it with:")
    print(f"sbatch {shlex.quote(str(script))}")


def _options_of_train(command: list[str]) -> dict[str, Any]:
    """The parsed options of ``train …``. Raises ConfigError for another command, and for what a script decides."""
    from .train import train

    if command[0] != "train":
        raise ConfigError(
            f"'{command[0]}' cannot be launched; train can", hint="ghostvis launch slurm -- train --stage …"
        )
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(train)
    parsed = typer.main.get_command(app).make_context("ghostvis train", command[1:]).params
    itself = "ghostvis train itself"
    meant = {"nproc": "--gpus-per-node", "dry_run": itself, "print_launch": itself, "json": "--json before the --"}
    for name, instead in meant.items():
        if parsed[name] not in (False, "1"):
            raise ConfigError(f"--{name.replace('_', '-')} is not for a script: use {instead}")
    return {name: list(value) or None if isinstance(value, tuple | list) else value for name, value in parsed.items()}


def _prepare(options: dict[str, Any], processes: int) -> Path:
    """Resolve, check, and make the run's folder."""
    from .train import ready

    other = {"set", "recipe", "resume", "nproc", "max_restarts", "dry_run", "print_launch", "json"}
    flags = {key.rstrip("_"): value for key, value in options.items() if key not in other}
    sets, recipes = options["set"] or (), options["recipe"] or ()
    run_dir = ready(flags, sets, recipes, resume=options["resume"], processes=processes)
    assert run_dir is not None  # it is not a dry run
    return run_dir


def _site_option(text: str) -> tuple[str, str]:
    key, equals, value = text.removeprefix("--").partition("=")
    if not key or (equals and not value) or any(character.isspace() for character in key) or "\n" in text:
        raise ConfigError(
            f"--sbatch {text}: is not of the form KEY=VALUE, or KEY", hint="for example --sbatch qos=long"
        )
    if key in OWN:
        raise ConfigError(f"--sbatch {text}: the script says --{key} itself", hint="see ghostvis launch slurm --help")
    return key, value


def _render(**values: Any) -> str:
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined

    from .launch import SIGNALS, STOP_SECONDS, WORKER

    environment = Environment(trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    template = environment.from_string((files(__package__) / TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        **values,
        python=shlex.quote(sys.executable),
        worker=WORKER,
        signals=SIGNALS,
        seconds=STOP_SECONDS,
        requeue=int(ExitCode.REQUEUE),
    )
