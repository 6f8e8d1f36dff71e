"""The report and what a run says on the way."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import PIL.Image
import pytest
from miniature import registry, values, write_tokenizer

from components.trackers.jsonl import JsonlTracker, read_metrics, rewind
from ghostvis_plugins.types import Conversation, assistant, user
from stages.progress import Progress, clock
from stages.report import _credit
from stages.runner import run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    start = write_tokenizer(runs / "tokenizer")
    given = values(
        start, stage__show_samples=3, stage__eval_every=5, stage__train={"projector": 1e-2, "backbone": 1e-2}
    )
    run(given, registry(), runs / "shown")
    return runs / "shown"


def test_the_report_shows_what_happened(run_dir: Path) -> None:
    text = (run_dir / "report.md").read_text()
    last = read_metrics(run_dir)[-1]
    assert f"| training loss | {last['loss']:.4f} |" in text
    assert f"{last['val_loss']:.4f}" in text
    assert "encoder           frozen" in text
    assert "What colour is it?" in text
    for word in ("command", "hardware", "commit"):
        assert f"| {word} |" in text


def test_a_picture_is_credited_where_its_data_set_says_so() -> None:
    credited = Conversation((user("?"), assistant("!")), metadata={"author": "", "attribution": "A", "license": "B"})
    assert _credit(credited) == {"picture": "A; B"}
    assert _credit(Conversation((user("?"), assistant("!")))) == {}


def test_every_link_is_relative_and_there(run_dir: Path) -> None:
    links = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (run_dir / "report.md").read_text())
    assert "loss.png" in links
    assert len(links) >= 3
    for link in links:
        assert not Path(link).is_absolute()
        with PIL.Image.open(run_dir / link) as picture:
            picture.verify()


def test_the_report_says_nothing_of_pictures_without_samples(tmp_path: Path) -> None:
    start = write_tokenizer(tmp_path / "tokenizer")
    run(values(start, stage__steps=1), registry(), tmp_path / "a")
    assert "Held-out samples" not in (tmp_path / "a" / "report.md").read_text()


def test_metrics_rewind(tmp_path: Path) -> None:
    rewind(tmp_path, 3)  # nothing there yet
    tracker = JsonlTracker(tmp_path)
    for step in range(1, 6):
        tracker.log(step, {"loss": 0.5})
    tracker.finish()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # the process died here
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    rewind(tmp_path, 3)
    tracker = JsonlTracker(tmp_path)
    tracker.log(4, {"loss": 0.4})
    tracker.finish()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_progress_off_a_terminal_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert not sys.stderr.isatty()
    progress = Progress("align", 0, 10, talks=True, every=0.0)
    progress.update(4, {"loss": 1.25, "tokens_per_second": 1234.5})
    progress.update(10, {"loss": 1.0, "tokens_per_second": 1000, "val_loss": 0.5, "val_accuracy": 0.875})
    progress.close()
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines[0].startswith("align 4/10  loss 1.2500  1,234 tok/s  eta 0:0")
    assert lines[2] == "align 10/10  validation loss 0.5000  accuracy 87.5%"
    assert "\x1b" not in said.err


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("align", 0, 1, talks=False, every=0.0)
    progress.update(1, {"loss": 1.0, "tokens_per_second": 1.0, "val_loss": 1.0, "val_accuracy": 1.0})
    progress.say("x")
    assert capsys.readouterr().err == ""


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0.4, 59.6, 3599, 3600, 7325)] == [
        "0:00",
        "1:00",
        "59:59",
        "1:00:00",
        "2:02:05",
    ]
