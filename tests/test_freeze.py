"""What a stage's table says trains, moves; everything else is the same bit for bit. For each stage and each table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import BACKBONE, registry, values, write_tokenizer
from safetensors.torch import load_file

from ghostvis_plugins.errors import ConfigError
from stages.runner import run

REGISTRY = registry()
DEPTH = 3
TEXT: dict[str, Any] = {"encoder": None, "resampler": None, "projector": None}
MIXTURE = {"texts": {"weight": 1.0}, "colours": {"weight": 1.0}}
PARTS = {"resampler": {"name": "perceiver", "heads": 2, "latents": 3}, "backbone": {**BACKBONE, "depth": DEPTH}}

# Stage and table (None: the stage's own) → prefixes of what moves, as the model's tensors are called.
TABLES: dict[str, tuple[str, dict[str, float] | None, tuple[str, ...]]] = {
    "pretrain": ("pretrain", None, ("backbone.",)),
    "pretrain of the head": ("pretrain", {"backbone.head": 0.05}, ("backbone.head.",)),
    "mid": ("mid", None, ("backbone.", "resampler.", "projector.")),
    "mid of text": ("mid", {"backbone.blocks.:2": 0.05}, ("backbone.blocks.0.", "backbone.blocks.1.")),
    "align": ("align", None, ("resampler.", "projector.")),
    "align of the projector": ("align", {"projector": 0.05}, ("projector.",)),
    "sft": ("sft", None, ("backbone.", "resampler.", "projector.")),
    "sft of the last two layers": (
        "sft",
        {"projector": 0.05, "backbone.blocks.-2:": 0.05},
        ("projector.", "backbone.blocks.1.", "backbone.blocks.2."),
    ),
    "sft of matrices by name": (
        "sft",
        {"backbone.*.*.down": 0.05},
        tuple(f"backbone.blocks.{n}.down" for n in range(3)),
    ),
    "sft with the encoder": ("sft", {"*": 0.05, "backbone": 0.0}, ("encoder.", "resampler.", "projector.")),
}


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that sees and has moved from its beginning: the zeros of a fresh one keep some gradients at zero."""
    runs = tmp_path_factory.mktemp("freeze")
    table = {"resampler": 1e-2, "projector": 1e-2, "backbone": 1e-2}
    given = values(write_tokenizer(runs / "words"), "sft", stage__steps=3, stage__train=table, dataset=MIXTURE, **PARTS)
    return run(given, REGISTRY, runs / "start")


@pytest.mark.parametrize("case", TABLES)
def test_exactly_what_the_table_names_moves(
    case: str, seeing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, table, moving = TABLES[case]
    text = stage == "pretrain"
    data = {"texts": {"weight": 1.0}} if text else {"colours": {"weight": 1.0}} if stage == "align" else MIXTURE
    options: dict[str, Any] = {} if table is None else {"stage__train": table, "stage__features": "none"}
    given = values(seeing, stage, stage__steps=3, dataset=data, **{**PARTS, **options})
    given = {**given, **TEXT} if stage in ("pretrain", "mid") else given
    after = load_file(run(given, REGISTRY, tmp_path / "run") / "model.safetensors")
    before = load_file(seeing / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {name for name in before if "running_" in name or name.endswith("num_batches_tracked")}
    assert moved - statistics == {name for name in before if name.startswith(moving)} - statistics
    assert all(name.startswith(moving) for name in moved)  # nor do the statistics of a frozen norm move
    printed = capsys.readouterr().err
    parameters = {name: tensor.numel() for name, tensor in before.items() if name not in statistics}
    trained = sum(count for name, count in parameters.items() if name.startswith(moving))
    assert f"{trained:,} of {sum(parameters.values()):,}" in printed


def test_a_model_without_eyes_goes_through_mid(seeing: Path, tmp_path: Path) -> None:
    """Text conversations and documents; the vision paths of the default table fall away, and nothing is built."""
    words = write_tokenizer(tmp_path / "words")
    text = {"texts": {"weight": 1.0}}
    blind = {**values(words, "pretrain", stage__steps=1, dataset=text, **PARTS), **TEXT}
    model = run(blind, REGISTRY, tmp_path / "blind")
    given = {**values(model, "mid", stage__steps=2, dataset=text, **PARTS), **TEXT}
    after = load_file(run(given, REGISTRY, tmp_path / "mid") / "model.safetensors")
    before = load_file(model / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    given["stage"]["train"] = {"projector": 1e-3}
    with pytest.raises(ConfigError, match="nothing is left to train"):
        run(given, REGISTRY, tmp_path / "nothing")
