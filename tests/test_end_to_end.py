"""The whole thing as a user has it: the installed command as a process, in an empty folder, on real data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import ROOT, Run, ghostvis


def test_the_speedrun_leaves_a_report_scores_and_a_model(home: Path) -> None:
    report = (home / "runs/tiny/report.md").read_text()
    for word in ("tiny/3-align", "easy_vqa", "openmoji_names", "scenes", "in all", "commit", "majority", "permuted"):
        assert word in report, word
    results = json.loads((home / "runs/tiny/results.json").read_text())
    assert {name: task["model"]["score"]["n"] for name, task in results["tasks"].items()} == {
        "easy_vqa": 40,
        "openmoji_names": 40,
        "scenes": 40,
    }
    assert (home / "runs/latest").resolve() == (home / "runs/tiny-4-sft/model").resolve()
    shown = re.findall(r"\]\(((?:samples|curves)/[^)]+)\)", report)
    assert [path for path in shown if path.startswith("curves/")] == [
        f"curves/tiny-{stage}.png" for stage in ("2-pretrain", "3-align", "4-sft")
    ]
    for path in shown:
        assert (home / "runs/tiny" / path).is_file(), path
    for stage in ("2-pretrain", "3-align", "4-sft"):
        last = json.loads((home / f"runs/tiny-{stage}/metrics.jsonl").read_text().splitlines()[-1])
        (row,) = [line for line in report.splitlines() if line.startswith(f"| tiny-{stage} ")]
        assert f"| {last['step']} |" in row
        assert f"last {last['val_loss']:.3f} |" in row


def test_nothing_written_names_this_machine(home: Path, shared: Path) -> None:
    for file in [*home.rglob("*.json"), *home.rglob("*.md"), *home.rglob("*.jsonl")]:
        text = file.read_text()
        for private in (str(shared), str(Path.home()) + "/", str(ROOT), "index-url", "simple/"):
            assert private not in text, f"{private} in {file}"


def test_a_finished_speedrun_is_not_run_again(home: Path, warm: Run) -> None:
    said = warm(home, "speedrun", "--preset", "tiny", "--eval-limit", "40").stderr
    assert said.count("is complete") == 4


def test_a_model_directory_is_all_that_chat_needs(home: Path, tmp_path: Path) -> None:
    model = tmp_path / "anywhere"
    (home / "runs/tiny-4-sft/model").rename(model)
    try:
        arguments = ["chat", "--model", str(model), "--image", str(ROOT / "tests/data/scene.png"), "--prompt", "hello"]
        said = json.loads(ghostvis(tmp_path, *arguments, "--json", GHOSTVIS_CACHE=str(tmp_path / "empty")).stdout)
    finally:
        model.rename(home / "runs/tiny-4-sft/model")
    assert said["finish_reason"] in ("stop", "length")


def test_two_processes_give_the_losses_of_one(home: Path, warm: Run) -> None:
    def losses(name: str, nproc: str) -> list[float]:
        shorter = ["--set", "stage.steps=3", "--set", "stage.eval_samples=0"]
        start = ["--recipe", "tiny/2-pretrain", "--from", "runs/tiny-1-tokenizer/model", "--name", name]
        command = warm if nproc == "1" else ghostvis
        command(home, "train", *start, "--nproc", nproc, *shorter)
        rows = (home / "runs" / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(row)["loss"] for row in rows]

    assert losses("two", "2") == pytest.approx(losses("one", "1"), rel=1e-5)


def test_a_worker_under_torchrun_keeps_its_exit_code(home: Path) -> None:
    arguments = ["--recipe", "tiny/2-pretrain", "--from", "runs/tiny-1-tokenizer/model", "--name", "unfit"]
    too_long = ["--set", "backbone.max_positions=8", "--set", "dataset.chitchat.form=conversations"]
    done = ghostvis(home, "train", *arguments, *too_long, "--nproc", "2", code=3)
    assert done.stderr.count("ghostvis: error: rank") == 1


@pytest.mark.parametrize("package", ["ghostvis-patchmean", "ghostvis-swatches"])
def test_the_example_packages_are_small_and_import_only_the_contract(package: str) -> None:
    sources = [path.read_text() for path in (ROOT / "examples" / package / package.replace("-", "_")).glob("*.py")]
    lines = [line for source in sources for line in source.splitlines() if line.strip()]
    assert len(lines) <= 30
    imported = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert not imported & {"components", "stages", "ghostvis_cli"}


def test_third_party_packages_train_and_answer_by_name(home: Path, warm: Run, installed: dict[str, str]) -> None:
    ours = installed
    listed = json.loads(warm(home, "components", "list", "--json", **ours).stdout)["components"]
    assert {"patchmean", "swatches"} <= {component["name"] for component in listed}
    arguments = ["--stage", "align", "--encoder", "patchmean", "--resampler", "avgpool", "--dataset", "swatches"]
    shorter = ["--set", "stage.steps=3", "--set", "stage.eval_samples=8"]
    warm(home, "train", *arguments, "--from", "runs/tiny-2-pretrain/model", "--name", "theirs", *shorter, **ours)
    picture = str(ROOT / "tests/data/scene.png")
    question = ["--image", picture, "--prompt", "Which colour is on the left?"]
    said = json.loads(warm(home, "chat", "--model", "theirs", *question, "--json", **ours).stdout)
    assert said["model"].endswith("theirs/model")

    missing = warm(home, "chat", "--model", "theirs", *question, code=4).stderr
    assert "patchmean" in missing


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "--stage", "alingn"], 4, ["alingn", "Did you mean 'align'"]),
        (["train", "--stage", "sft", "--encoder", "siglib"], 4, ["siglib", "--encoder"]),
        (["train", "--recipe", "cpu/1-tokenizer", "--set", "stage.vocab_sise=9"], 3, ["vocab_sise", "vocab_size"]),
        (["train", "--recipe", "nope.toml"], 4, ["nope.toml"]),
        (["speedrun", "--preset", "cpo"], 4, ["cpo", "cpu"]),
        (["eval", "easy_vqua"], 4, ["easy_vqua", "easy_vqa"]),
        (["chat", "--prompt", "hi", "--image", "no.jpg"], 6, ["no.jpg"]),
        (["chat", "--prompt", "hi", "--image", "text.jpg"], 6, ["text.jpg"]),
        (["chat", "--prompt", "hi", "--model", "elsewhere"], 4, ["elsewhere"]),
        (["train", "--recipe", "tiny/2-pretrain", "--from", "nowhere"], 4, ["nowhere"]),
        (["train", "--recipe", "tiny/2-pretrain", "--nproc", "none"], 3, ["--nproc none"]),
        (
            [
                "train",
                "--recipe",
                "tiny/3-align",
                "--from",
                "runs/tiny-2-pretrain/model",
                "--set",
                "projector.in_dim=768",
            ],
            3,
            ["projector.in_dim 768", "432"],
        ),
    ],
)
def test_mistakes_are_said_in_plain_words(
    home: Path, warm: Run, arguments: list[str], code: int, words: list[str]
) -> None:
    (home / "text.jpg").write_text("no picture at all")
    said = warm(home, *arguments, code=code).stderr
    for word in words:
        assert word in said


def test_a_run_is_neither_overwritten_nor_in_its_own_way(home: Path, warm: Run) -> None:
    start = ["train", "--recipe", "tiny/2-pretrain", "--from", "runs/tiny-1-tokenizer/model"]
    assert "--resume" in warm(home, *start, "--name", "tiny-2-pretrain", code=3).stderr
    assert "--name" in warm(home, *start, "--resume", code=3).stderr
    changed = warm(home, *start, "--name", "tiny-2-pretrain", "--resume", "--seed", "7", code=3).stderr
    assert "seed: 0 → 7" in changed
    failing = ["--set", "backbone.max_positions=8", "--set", "dataset.chitchat.form=conversations"]
    warm(home, *start, "--name", "again", *failing, code=3)
    warm(home, *start, "--name", "again", "--set", "stage.steps=2", "--set", "stage.eval_samples=0")


def test_without_a_model_chat_says_how_to_get_one(tmp_path: Path) -> None:
    assert "ghostvis speedrun" in ghostvis(tmp_path, "chat", "--prompt", "hi", code=4).stderr
