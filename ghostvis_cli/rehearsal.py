"""What a speedrun would do, found without its data: every recipe resolved, every model put together on the meta device.

Each stage is shown a directory that says what the one before would leave: a vocabulary, and the parts of the model.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .session import registry
from .train import check

H100_FLOPS = 989.4e12  # dense bfloat16, of the SXM card
UTILISATION = 0.4  # of it, assumed: what small models of this kind reach on such cards


def rehearse(recipes: Sequence[str], cards: int) -> list[dict[str, Any]]:
    """For each recipe: stage, data sets, steps, tokens, floating-point operations and seconds (None: not known).

    The seconds are those of so many H100; without one nothing is said about time, which depends on what the cache holds
    and on the machine. Raises what resolving a recipe and building
    its model raise.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        vocab_size: int | None = None
        parts: dict[str, Any] = {}
        for recipe in recipes:
            values, estimate, vocab_size = _of_stage(recipe, Path(folder), vocab_size, max(1, cards))
            parts |= {
                kind: values[kind] for kind in ("encoder", "resampler", "projector", "backbone") if values.get(kind)
            }
            left = {"components": parts, "vocab_size": vocab_size}
            (Path(folder) / "config.json").write_text(json.dumps(left), encoding="utf-8")
            rows.append({"recipe": recipe, **_row(values, estimate, cards)})
    return rows


def _of_stage(
    recipe: str, before: Path, vocab_size: int | None, processes: int
) -> tuple[dict[str, Any], dict[str, Any], int | None]:
    from ghostvis_plugins.config import resolve

    first = vocab_size is None
    resolved = resolve(
        registry=registry(), flags={"from": None if first else str(before)}, recipes=[recipe], argv=sys.argv
    )
    stage, backbone = resolved.values["stage"], resolved.values.get("backbone")
    if backbone is None:
        return resolved.values, {}, stage.get("vocab_size")
    vocab_size = vocab_size or _published_vocabulary(backbone)
    return resolved.values, check(resolved, vocab_size, processes), vocab_size


def _published_vocabulary(backbone: dict[str, Any]) -> int | None:
    """Token ids of a pretrained model that a preset begins with; None where only its files would tell."""
    from components.backbones.checkpoints import CHECKPOINTS

    known = CHECKPOINTS.get(str(backbone.get("checkpoint"))) if backbone.get("weights") in ("hub", "package") else None
    return int(known.architecture["vocab_size"]) if known else None


def _row(values: dict[str, Any], estimate: dict[str, Any], cards: int) -> dict[str, Any]:
    stage = values["stage"]
    row = {"stage": stage["name"], "datasets": sorted(values.get("dataset") or {}), "steps": stage.get("steps")}
    row |= {key: estimate.get(key) for key in ("parameters", "peak_bytes")}
    row |= {"tokens": None, "flops": None, "seconds": None}
    if estimate and row["steps"]:
        row["tokens"] = row["steps"] * stage["batch_tokens"]
        row["flops"] = row["steps"] * estimate["step_flops"]
        row["seconds"] = row["flops"] / (cards * H100_FLOPS * UTILISATION) if cards else None
    return row


def cards_of(preset: str) -> int:
    """How many H100 a preset is for, by its name; 0 for another machine."""
    found = re.fullmatch(r"(\d+)xh100", preset)
    return int(found[1]) if found else 0


def cells(row: dict[str, Any], run: str) -> tuple[str, ...]:
    """A row for people."""
    numbers = [
        "" if row[key] is None else f"{row[key] / unit:,.{digits}f}{suffix}"
        for key, unit, digits, suffix in (
            ("parameters", 1e6, 1, " M"),
            ("tokens", 1e6, 1, " M"),
            ("flops", 1e15, 2, " P"),
            ("seconds", 60, 0, " min"),
        )
    ]
    return (row["recipe"], f"runs/{run}", row["stage"], *numbers, ", ".join(row["datasets"]))


HEADERS = ("recipe", "run", "stage", "weights", "tokens", "flop", "time", "data sets")
