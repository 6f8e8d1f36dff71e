"""The stages end to end in miniature: what trains, what stays, what they leave, and how they chain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import BACKBONE, registry, values, write_tokenizer
from safetensors.torch import load_file

from components.tokenizers import Tokenizer
from components.weights import load_model
from ghostvis_plugins.errors import ConfigError, DataError, MissingError
from stages.config import AlignConfig, PretrainConfig, SFTConfig
from stages.rundir import read_latest, set_latest
from stages.runner import run

REGISTRY = registry()
TEXT: dict[str, Any] = {"encoder": None, "resampler": None, "projector": None}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer → pretrain → align → sft, each from the directory of the one before."""
    runs = tmp_path_factory.mktemp("runs")
    given = values(runs, "tokenizer")
    given["stage"] = {"name": "tokenizer", "vocab_size": 330}
    del given["from"]
    model = run(given, REGISTRY, runs / "tokenizer")
    data = {"texts": {"weight": 1.0}}
    model = run({**values(model, "pretrain", dataset=data), **TEXT}, REGISTRY, runs / "pretrain")
    sees = {
        "stage__features": "memory",
        "stage__show_samples": 2,
        "resampler": {"name": "perceiver", "heads": 2, "latents": 3},
    }
    model = run(values(model, "align", **sees), REGISTRY, runs / "align")
    model = run(values(model, "sft", **sees), REGISTRY, runs / "sft")
    return runs


def state(chain: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(chain / stage / "model" / "model.safetensors")


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Parts with a tensor that differs, of those both have."""
    return {name.split(".")[0] for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}


def test_each_stage_trains_its_parts_and_no_others(chain: Path) -> None:
    pretrained, aligned, tuned = (state(chain, stage) for stage in ("pretrain", "align", "sft"))
    assert {name.split(".")[0] for name in pretrained} == {"backbone"}
    assert changed(pretrained, aligned) == set()  # the language model came through alignment bit for bit
    assert {name.split(".")[0] for name in aligned} == {"backbone", "encoder", "resampler", "projector"}
    assert changed(aligned, tuned) == {"backbone", "resampler", "projector"}


def test_default_tables() -> None:
    assert set(PretrainConfig(steps=1).train) == {"backbone"}
    assert set(AlignConfig(steps=1).train) == {"resampler", "projector"}
    assert set(SFTConfig(steps=1).train) == {"resampler", "projector", "backbone"}
    assert PretrainConfig.kinds != AlignConfig.kinds


def test_a_tokenizer_directory_holds_a_tokenizer(chain: Path) -> None:
    folder = chain / "tokenizer" / "model"
    config = json.loads((folder / "config.json").read_text())
    tokenizer = Tokenizer.load(folder)
    assert config == {"format_version": 1, "architecture": "ghostvis-tokenizer", "vocab_size": tokenizer.vocab_size}
    assert len(tokenizer.encode(" yellow")) < 4  # it learnt words of the mixture
    assert len(tokenizer.encode("What colour is it?")) < 8


def test_model_directories_stand_alone(chain: Path) -> None:
    for stage in ("pretrain", "align", "sft"):
        loaded = load_model(chain / stage / "model", REGISTRY)
        assert loaded.tokenizer.vocab_size == Tokenizer.load(chain / "tokenizer" / "model").vocab_size
        assert (chain / stage / "model" / "resolved.json").is_file()
    config = json.loads((chain / "sft" / "model" / "config.json").read_text())
    assert config["components"]["resampler"]["latents"] == 3
    assert config["components"]["backbone"]["name"] == "gpt"


def test_latest_points_to_the_newest_model(chain: Path) -> None:
    assert read_latest(chain) == chain / "sft" / "model"
    moved = chain.rename(chain.with_name("moved"))
    try:
        assert read_latest(moved) == moved / "sft" / "model"  # relative: the folder of runs may move
    finally:
        moved.rename(chain)


def test_latest_without_symbolic_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_latest(tmp_path) is None

    def refuse(*_: object, **__: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    for name in ("a", "b"):
        (tmp_path / name / "model").mkdir(parents=True)
        set_latest(tmp_path / name, tmp_path / name / "model")
        assert read_latest(tmp_path) == tmp_path / name / "model"
    (tmp_path / "b" / "model").rmdir()
    assert read_latest(tmp_path) is None


def test_pretraining_goes_on_from_a_model(chain: Path, tmp_path: Path) -> None:
    given = {**values(chain / "pretrain" / "model", "pretrain", dataset={"texts": {}}, stage__steps=2), **TEXT}
    run(given, REGISTRY, tmp_path / "more")
    first = json.loads((tmp_path / "more" / "metrics.jsonl").read_text().splitlines()[0])
    begun = json.loads((chain / "pretrain" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] < begun["loss"] - 0.25


def test_components_that_the_model_does_not_have_are_refused(chain: Path, tmp_path: Path) -> None:
    model = chain / "align" / "model"
    with pytest.raises(ConfigError, match=r"resampler = 'avgpool', but the model in .* has 'perceiver'"):
        run(values(model, "sft"), REGISTRY, tmp_path / "a")
    perceiver = {"name": "perceiver", "heads": 2, "latents": 5}
    with pytest.raises(ConfigError, match=r"resampler\.latents = 5, but the model in .* has 3"):
        run(values(model, "sft", resampler=perceiver), REGISTRY, tmp_path / "b")
    with pytest.raises(ConfigError, match=r"backbone\.depth = 2"):
        run(values(chain / "pretrain" / "model", backbone={**BACKBONE, "depth": 2}), REGISTRY, tmp_path / "c")
    silent = dict.fromkeys(("encoder", "resampler", "projector", "backbone"))
    run({**values(model, "sft", stage__steps=1), **silent}, REGISTRY, tmp_path / "d")  # the model's own


def test_wrong_starts_are_explained(chain: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="starts from a directory with a tokenizer"):
        run({**values(tmp_path), "from": None}, REGISTRY, tmp_path / "a")
    with pytest.raises(MissingError, match="no such directory"):
        run(values(tmp_path / "nowhere"), REGISTRY, tmp_path / "b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match=r"config\.json"):
        run(values(tmp_path / "empty"), REGISTRY, tmp_path / "c")
    start = write_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(ConfigError, match="no encoder is chosen"):
        run({**values(start), "encoder": None}, REGISTRY, tmp_path / "d")
    with pytest.raises(ConfigError, match="no data set is chosen"):
        run({**values(start), "dataset": {}}, REGISTRY, tmp_path / "e")
    blind = {**values(start, "pretrain", dataset={"colours": {}}, stage__train={"backbone": 1e-3}), **TEXT}
    with pytest.raises(DataError, match="holds a picture"):
        run(blind, REGISTRY, tmp_path / "f")
    with pytest.raises(MissingError, match="aling"):
        run(values(start, "aling"), REGISTRY, tmp_path / "g")
    with pytest.raises(ConfigError, match="no stage is chosen"):
        run({}, REGISTRY, tmp_path / "h")


def test_options_are_checked() -> None:
    for options, message in (
        ({}, "exactly one of steps and epochs"),
        ({"steps": 3, "epochs": 1.0}, "exactly one of steps and epochs"),
        ({"steps": 3, "train": {"backbone": -1.0}}, "negative"),
        ({"steps": 3, "bach_tokens": 5}, "bach_tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            REGISTRY.make_config("stage", "align", options)


def test_epochs_become_steps(tmp_path: Path) -> None:
    """Two epochs of the mixture draw about twice as many samples as there are."""
    start = write_tokenizer(tmp_path / "tokenizer")
    run(values(start, stage__steps=None, stage__epochs=2.0, stage__eval_samples=0), REGISTRY, tmp_path / "a")
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["samples"] for row in rows) == pytest.approx(2 * 80, rel=0.1)


def test_the_tokenizer_says_when_texts_run_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = values(tmp_path, "tokenizer")
    given["stage"] = {"name": "tokenizer", "vocab_size": 5000}
    folder = run(given, REGISTRY, tmp_path / "a")
    size = Tokenizer.load(folder).vocab_size
    assert 270 < size < 5000
    assert f"no more than {size} of 5000 tokens" in capsys.readouterr().err
    assert read_latest(tmp_path) is None  # nothing to talk to
    with pytest.raises(ConfigError, match="already holds a run"):
        run(given, REGISTRY, tmp_path / "a")
    assert run(given, REGISTRY, tmp_path / "a", resume=True) == folder


def test_bfloat16_trains_close_to_float32(tmp_path: Path) -> None:
    start = write_tokenizer(tmp_path / "tokenizer")
    losses = []
    for dtype in ("float32", "bfloat16"):
        given = values(start, stage__train={"projector": 1e-2, "backbone": 1e-2}, stage__steps=8)
        run({**given, "dtype": dtype}, REGISTRY, tmp_path / dtype)
        rows = [json.loads(line) for line in (tmp_path / dtype / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows])
        assert {t.dtype for t in state(tmp_path, dtype).values()} <= {torch.float32, torch.int64}
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]
