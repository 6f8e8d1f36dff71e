"""Runs under SLURM: its variables, the script that is written, and the script run by a SLURM of one machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import fake_slurm
import pytest
import slow_runs
from commands import Run
from miniature import registry, values, write_tokenizer

from components.trackers.jsonl import read_metrics
from stages.runner import run
from stages.runs import open_run
from stages.slurm import first_node, torchrun_variables

ROOT = Path(__file__).resolve().parents[1]

# As `env | grep SLURM` prints them, less what nobody reads.
BATCH_SHELL = {"SLURM_JOB_ID": "205500", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
TASK = {**BATCH_SHELL, "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "4"}
TASK["SLURM_STEP_NODELIST"] = "gnode[07-09,12],login"


def test_a_task_of_a_step_is_a_rank() -> None:
    found = torchrun_variables(TASK)
    port = found.pop("MASTER_PORT")
    assert found == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "gnode07"}
    assert torchrun_variables({**TASK, "SLURM_STEP_ID": "3"})["MASTER_PORT"] != port
    assert 1024 < int(port) < 32_768
    given = {**TASK, "MASTER_ADDR": "head", "MASTER_PORT": "5000"}
    assert (torchrun_variables(given)["MASTER_ADDR"], torchrun_variables(given)["MASTER_PORT"]) == ("head", "5000")
    assert torchrun_variables({**TASK, "CUDA_VISIBLE_DEVICES": "1"})["LOCAL_RANK"] == "0"
    assert torchrun_variables({**TASK, "CUDA_VISIBLE_DEVICES": "0,1"})["LOCAL_RANK"] == "1"


@pytest.mark.parametrize(
    "slurm",
    [
        {},
        {"SLURM_JOB_ID": "205500", "SLURM_NTASKS": "4", "SLURM_NNODES": "1"},  # the shell of salloc
        BATCH_SHELL,
        {**BATCH_SHELL, "SLURM_STEP_NUM_TASKS": "4"},  # submitted by such a task: sbatch hands its environment on
        {**TASK, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},  # srun --ntasks 1
    ],
)
def test_what_srun_did_not_start_is_one_process(slurm: dict[str, str]) -> None:
    assert torchrun_variables(slurm) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a", "a"), ("a,b", "a"), ("gpu[07-09,12]", "gpu07"), ("gpu[3,5]-ib,x", "gpu3-ib"), ("r[1-2]n[05-9]", "r1n05")],
)
def test_the_first_node(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_two_processes_that_know_only_slurm(tmp_path: Path) -> None:
    given = values(write_tokenizer(tmp_path / "tokenizer"), stage__steps=4, stage__train={"backbone": 1e-2})
    run(given, registry(), tmp_path / "one")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
    }
    common |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MASTER_PORT": port}
    runs = json.dumps([[str(tmp_path / "two"), given, False]])
    processes = [
        subprocess.Popen(
            [sys.executable, "tests/miniature.py", runs],
            cwd=ROOT,
            env={**os.environ, **common, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "trained" in said[0]
    assert "trained" not in said[1]
    for one, two in zip(read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two"), strict=True):
        assert two["data_hash"] == one["data_hash"]
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)


@pytest.fixture
def launch(warm: Run) -> Run:
    """``launch slurm`` in a folder, whose runs are slow ones."""

    def launch(home: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return warm(home, *slow_runs.PLUGIN, "launch", "slurm", *words, code=code)

    return launch


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slow_runs.make_home(tmp_path_factory.mktemp("a b"))


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_the_script(home: Path, launch: Run, launcher: str) -> None:
    size = ["--nodes", "2", "--gpus-per-node", "4", "--cpus-per-gpu", "6", "--time", "1:00:00", "--sbatch", "qos=long"]
    arguments = ["train", "--recipe", "8xh100/1-tokenizer", "--name", f"script-{launcher}"]
    done = launch(home, *size, "--launcher", launcher, "--out", f"{launcher} job.sh", "--", *arguments)
    assert done.stdout == f"sbatch '{launcher} job.sh'\n"
    script = home / f"{launcher} job.sh"
    subprocess.run(["bash", "-n", script], check=True)
    lines = script.read_text().splitlines()
    tasks = {"torchrun": ("1", "24"), "srun": ("4", "6")}[launcher]
    for option in ("nodes=2", f"ntasks-per-node={tasks[0]}", f"cpus-per-task={tasks[1]}", "gpus-per-node=4"):
        assert f"#SBATCH --{option}" in lines
    for option in ("time=1:00:00", "qos=long", "requeue", "open-mode=append", f"chdir='{home}'"):
        assert f"#SBATCH --{option}" in lines
    assert (home / "runs" / f"script-{launcher}" / "resolved.json").is_file()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--", "eval", "vqa"], 3, "'eval' cannot be launched"),
        (["--", "train", "--stage", "alingn"], 4, "Did you mean 'align'"),
        (["--", "train", "--nproc", "2"], 3, "--gpus-per-node"),
        (["--", "train", "--dry-run"], 3, "--dry-run"),
        (["--launcher", "srun", "--", "train", "--max-restarts", "2"], 3, "torchrun"),
        (["--sbatch", "qos=", "--", "train"], 3, "KEY=VALUE"),
        (["--sbatch", "exclusive", "--", "train"], 3, "no stage is chosen"),
        (["--sbatch", "nodes=3", "--", "train"], 3, "--nodes"),
        (["--", "train", "--stge", "align"], 2, "--stge"),
        ([], 2, "train"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    home: Path, launch: Run, words: list[str], code: int, said: str
) -> None:
    before = sorted(home.rglob("*"))
    assert said in launch(home, *words, code=code).stderr
    assert sorted(home.rglob("*")) == before


def test_a_run_that_waits_for_its_job_is_not_overwritten(home: Path, launch: Run, warm: Run) -> None:
    """By no command; until the job starts, which then fails here for want of its data set's plugin."""
    script = ["--out", "waiting.sh", "--"]
    launch(home, *script, *slow_runs.arguments("waiting"))
    file = home / "runs/waiting/resolved.json"
    assert open_run(file.parent).state() == "queued"
    before = file.read_bytes()
    other = [*slow_runs.arguments("waiting"), "--set", "stage.steps=7"]
    for words in (["launch", "slurm", *script, *other], other):
        done = warm(home, *slow_runs.PLUGIN, *words, code=3)
        assert f"stage.steps: {slow_runs.STEPS} → 7" in done.stderr
        assert "choose another --name" in done.stderr
        assert file.read_bytes() == before
    launch(home, "--nodes", "2", *script, *slow_runs.arguments("waiting"))  # the same run, by another script
    assert "#SBATCH --nodes=2" in (home / "waiting.sh").read_text()
    file.write_text(file.read_text().replace('"words"', '"wards"'))
    worker = [sys.executable, "-m", "ghostvis_cli.worker", "--resolved", str(file)]
    assert subprocess.run(worker, cwd=home, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode
    launch(home, *script, *other)


def test_help_says_that_options_of_sbatch_may_have_no_value(home: Path, launch: Run) -> None:
    assert "KEY[=VALUE]" in launch(home, "--help").stdout


def test_the_printed_launch_sets_what_the_real_one_does(home: Path, warm: Run) -> None:
    command = ["train", "--recipe", "8xh100/1-tokenizer", "--name", "printed", "--print-launch"]
    done = warm(home, *slow_runs.PLUGIN, *command)
    assert done.stdout.startswith("TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 ")
    assert " PYTHONSAFEPATH=1 " in done.stdout


@pytest.fixture(scope="module")
def whole(home: Path) -> list[dict[str, object]]:
    """The metrics of the run that nobody disturbed."""
    assert slow_runs.end(slow_runs.train(home, "whole", seconds=0)) == 0, slow_runs.log_of(home, "whole")
    return slow_runs.rows(home, "whole")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_a_job_that_runs_out_of_time_is_requeued_and_ends_as_if_it_had_not(
    home: Path, launch: Run, whole: list[dict[str, object]], launcher: str, tmp_path: Path
) -> None:
    launch(home, "--gpus-per-node", "2", "--launcher", launcher, "--", *slow_runs.arguments(launcher))
    environment = fake_slurm.install(tmp_path / "bin")
    job = subprocess.Popen(["sbatch", f"runs/{launcher}/job.sh"], cwd=home, env=environment)
    log = home / "runs" / launcher / f"slurm-{fake_slurm.JOB}.log"
    slow_runs.wait_for_step(home, launcher, 3, job)
    fake_slurm.signal_step(tmp_path / "bin", signal.SIGUSR1)
    assert job.wait(120) == 0, log.read_text()
    said = log.read_text()
    assert said.count("goes back into the queue") == 1
    assert said.count("stopped by a signal after step") == 1
    for row, other in zip(slow_runs.rows(home, launcher), whole, strict=True):
        assert row["data_hash"] == other["data_hash"]
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_cancelled_job_saves_and_stays_away(home: Path, launch: Run, tmp_path: Path) -> None:
    launch(home, "--gpus-per-node", "2", "--launcher", "srun", "--", *slow_runs.arguments("cancelled"))
    environment = fake_slurm.install(tmp_path / "bin")
    job = subprocess.Popen(["sbatch", "runs/cancelled/job.sh"], cwd=home, env=environment, start_new_session=True)
    slow_runs.wait_for_step(home, "cancelled", 3, job)
    for shell in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split():
        os.kill(int(shell), signal.SIGTERM)
    fake_slurm.signal_step(tmp_path / "bin", signal.SIGTERM)
    assert job.wait(120) == 85
    assert "goes back" not in (home / f"runs/cancelled/slurm-{fake_slurm.JOB}.log").read_text()
    assert list((home / "runs/cancelled/checkpoints").glob("step_*"))
