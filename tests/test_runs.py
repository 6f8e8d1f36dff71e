"""What ``ghostvis runs`` tells of run folders, and the curves it draws."""

# ruff: noqa: F811 (fixtures are imported by name)
from __future__ import annotations

import json
import shlex
from pathlib import Path

import PIL.Image
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from miniature import registry, values, write_tokenizer
from test_cli import Cli, cli  # noqa: F401

from ghostvis_cli.runs import app
from ghostvis_plugins.errors import MissingError
from stages.curves import text_plot
from stages.runner import run
from stages.runs import differences, find_run, list_runs, open_run

NAMES = ("cpu-2-pretrain", "cpu-3-align", "cpu-4-sft")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real runs of four steps, of different seeds, and one that died after its second step."""
    root = tmp_path_factory.mktemp("work")
    start = write_tokenizer(root / "tokenizer")
    for number, name in enumerate(NAMES):
        run_dir = root / "runs" / name
        run_dir.mkdir(parents=True)
        given = values(start, stage__steps=4, stage__eval_every=2, seed=number, name=name)
        document = {"values": given, "argv": ["/usr/bin/ghostvis", "train", "--name", name], "git_commit": "abc"}
        (run_dir / "resolved.json").write_text(json.dumps(document))
        if name != "cpu-3-align":
            run(given, registry(), run_dir)
    dead = root / "runs" / "cpu-3-align"
    lines = (root / "runs" / NAMES[0] / "metrics.jsonl").read_text().splitlines(keepends=True)
    (dead / "metrics.jsonl").write_text("".join(lines[:2]) + '{"step": 3, "lo')
    return root


def test_the_listing_tells_how_far_each_came(folder: Path) -> None:
    runs = list_runs(folder / "runs")
    assert {run.name for run in runs} == set(NAMES)
    dead = find_run("cpu-3-align", folder / "runs")
    now = dead.touched
    assert (dead.state(now + 5), dead.state(now + 3600)) == ("running", "failed")
    summary = dead.summary(now + 3600)
    assert (summary["step"], summary["steps"], summary["age_seconds"]) == (2, 4, 3600)
    whole = find_run(str(folder / "runs" / NAMES[0]), Path("elsewhere"))
    assert whole.state() == "finished"
    assert whole.summary()["val_loss"] == whole.metrics[-1]["val_loss"]
    with pytest.raises(MissingError, match="Did you mean 'cpu-4-sft'"):
        find_run("cpu-4-stf", folder / "runs")


def test_figures_are_sums_over_steps(folder: Path) -> None:
    run = find_run(NAMES[0], folder / "runs")
    figures = run.figures()
    assert figures["tokens"] == sum(row["tokens"] for row in run.metrics)
    assert figures["flops"] == sum(row["flops"] for row in run.metrics)
    assert figures["best_val_loss"] == min(row["val_loss"] for row in run.metrics if "val_loss" in row)
    assert open_run(folder / "tokenizer").figures() == {}


def test_only_what_differs_is_compared(folder: Path) -> None:
    first, second = (find_run(name, folder / "runs") for name in (NAMES[0], NAMES[2]))
    assert differences([first, second]) == {"seed": [0, 2]}
    assert differences([first, first]) == {}


def epilogs() -> dict[str, str]:
    return {name: command.epilog or "" for name, command in typer.main.get_group(app).commands.items()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", epilogs())
def test_examples_run(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(folder)
    lines = [line.strip() for line in epilogs()[command].splitlines() if line.strip().startswith("ghostvis")]
    assert len(lines) == 2
    for line in lines:
        code, out, err = cli(*shlex.split(line)[1:])
        assert code == 0, err
        if "--json" in line:
            assert json.loads(out)["schema"] == 1
        if "--out" in line:
            with PIL.Image.open(folder / "loss.png") as picture:
                picture.verify()


def test_an_empty_folder_and_a_wrong_name(cli: Cli) -> None:
    assert cli("runs", "list")[:2] == (0, "")
    code, _, err = cli("runs", "show", "nothing")
    assert code == 4
    assert "no run 'nothing'" in err


def test_a_picture_of_no_kind(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    code, _, err = cli("runs", "compare", *NAMES, "--out", "loss.nonsense")
    assert (code, "cannot be written" in err) == (3, True)


@given(st.lists(st.lists(st.tuples(st.integers(0, 10**6), st.floats(-1e6, 1e6)), max_size=20), max_size=3))
def test_a_plot_shows_every_curve_within_its_frame(curves: list[list[tuple[float, float]]]) -> None:
    lines = text_plot(curves, width=20, height=5)
    if not any(curves):
        assert lines == []
        return
    assert [len(line) for line in lines] == [20] * 5
    shown = {who for line in lines for _, who in line}
    assert shown >= {max(number for number, curve in enumerate(curves) if curve)}
    assert all((character == " ") == (who is None) for line in lines for character, who in line)


def test_a_falling_line_falls() -> None:
    lines = text_plot([[(1, 2.0), (2, 1.0)], [(1, float("nan"))]], width=4, height=2)
    assert lines[0][0][0] != " "
    assert lines[0][3][0] == " "
    assert lines[1][0][0] == " "
    assert lines[1][3][0] != " "
