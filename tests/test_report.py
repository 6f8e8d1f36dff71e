"""The report and what a run says on the way."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import PIL.Image
import pytest
from miniature import registry, values, write_tokenizer

from components.trackers.jsonl import JsonlTracker, read_metrics, rewind
from ghostvis_plugins.types import Conversation, assistant, user
from stages.meter import PHASES, _powercap
from stages.progress import Progress, clock, figures_of, si
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


def test_a_loss_that_is_no_number_is_null_on_disk_and_nan_again(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    tracker.log(1, {"loss": float("nan"), "grad_norm": float("inf"), "tokens": 7})
    tracker.log(2, {"loss": 0.5})
    tracker.finish()
    first = (tmp_path / "metrics.jsonl").read_text().splitlines()[0]
    assert json.loads(first) == {"step": 1, "loss": None, "grad_norm": None, "tokens": 7}
    assert math.isnan(read_metrics(tmp_path)[0]["loss"])
    rewind(tmp_path, 1)
    assert (tmp_path / "metrics.jsonl").read_text() == f"{first}\n"


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


def test_every_step_is_accounted_for(run_dir: Path) -> None:
    """Phases add up to the step, work to the rate; nothing is said of a peak that nobody knows."""
    for row in read_metrics(run_dir):
        phases = [row[f"time_{name}"] for name in (*PHASES, "other")]
        assert sum(phases) == pytest.approx(row["seconds"], abs=1e-4)
        assert min(row[f"time_{name}"] for name in ("forward", "backward", "optimizer")) > 0
        assert row["flops"] == pytest.approx(row["flops_per_second"] * row["seconds"], rel=0.01)
        assert row["images_per_second"] == pytest.approx(row["images"] / row["seconds"], rel=0.01)
        assert row["memory_bytes"] > 50e6
        assert "mfu" not in row
    text = (run_dir / "report.md").read_text()
    for name in ("computed", "time goes to", "pictures per second", "peak memory"):
        assert f"| {name} |" in text


def test_pictures_are_encoded_once_and_paid_once(tmp_path: Path) -> None:
    """With kept features the second epoch costs less, by what the encoder would have cost."""
    start = write_tokenizer(tmp_path / "tokenizer")
    flops = {}
    for kept in ("none", "memory"):
        given = values(start, stage__features=kept, stage__eval_samples=0, dataset__colours__size=4, stage__steps=8)
        given["dataset"].pop("texts")
        run(given, registry(), tmp_path / kept)
        flops[kept] = [row["flops"] for row in read_metrics(tmp_path / kept)]
    assert flops["none"][0] >= flops["memory"][0]
    assert flops["none"][-1] > flops["memory"][-1]


def test_energy_is_read_where_it_may_be(tmp_path: Path) -> None:
    assert _powercap(tmp_path) is None
    counters = [tmp_path / f"intel-rapl:{number}" / "energy_uj" for number in range(2)]
    for number, counter in enumerate(counters):
        counter.parent.mkdir()
        counter.write_text(f"{number + 1}000000\n")
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of package 0, which is in its sum
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("5000000\n")
    read = _powercap(tmp_path)
    assert read is not None
    assert read() == 3.0
    counters[0].unlink()
    counters[0].mkdir()  # cannot be read
    assert _powercap(tmp_path) is None


def test_figures_of_a_step_are_short() -> None:
    row = {"loss": 1.5, "tokens_per_second": 1234.5, "images_per_second": 9.6, "mfu": 0.4123, "memory_bytes": 3 * 2**30}
    assert figures_of(row) == "loss 1.5000  1,234 tok/s  10 img/s  MFU 41.2%  3.0 GiB"
    assert figures_of({"loss": 1, "tokens_per_second": 1, "flops_per_second": 12.34e9}).endswith("12.3 GFLOP/s")
    assert [si(value) for value in (12, 1234, 5e12)] == ["12 ", "1.23 k", "5 T"]


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
