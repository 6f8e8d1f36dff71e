"""A real model small enough for every test: all parts, with random weights and a tokenizer of its own."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the hub; its library reads this once, when it is imported
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core for each worker and for what it starts

from commands import copied, home, installed, shared, trained, warm  # noqa: F401  # fixtures, of this environment

if TYPE_CHECKING:
    from pathlib import Path

    from components.tokenizers import Tokenizer
    from components.vlm import VLM
    from ghostvis_plugins.manager import Registry
    from ghostvis_plugins.types import Image

# Files of half a minute and more, the longest first; but two that want ``trained`` don't start together, or one waits.
LONG = [
    *("distributed", "commands_of_docs", "speedrun", "cli", "cli_weights", "commands_of_readme", "fsdp", "end_to_end"),
    *("loop", "slurm", "saving", "examples", "bfloat16", "stopping", "rollback", "prepare"),
]
WORDS = (
    "what is the shape colour of a red green blue circle square triangle cat dog? it looks like yes no naïve 漢字 🐱"
)


def pytest_configure(config: pytest.Config) -> None:
    """Workers get whole files in the order of collection, not by their number of tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first: one begun last would keep one worker busy and leave the others without work."""
    rank = {f"test_{name}.py": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session")
def builtin_registry() -> Registry:
    """The built-in components, however many plugins are installed."""
    from components.builtin import ghostvis_components
    from ghostvis_plugins.manager import Registry

    return Registry.from_specs(ghostvis_components())


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer that runs in miniature start from; nobody writes to it."""
    from miniature import write_tokenizer

    return write_tokenizer(tmp_path_factory.mktemp("start") / "tokenizer")


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    from components.tokenizers import Tokenizer

    return Tokenizer.train([WORDS] * 20, 320)


@pytest.fixture
def tiny_values() -> dict[str, Any]:
    """Resolved values of the tiny model: 4 vectors per picture, 2 layers of width 32."""
    return {
        "encoder": {"name": "efficientnet_lite", "image_size": 32, "feature_layer": 3, "weights": "random"},
        "resampler": {"name": "perceiver", "latents": 4, "heads": 2, "dim": 16, "depth": 1},
        "projector": {"name": "mlp"},
        "backbone": {"name": "gpt", "depth": 2, "aspect": 16, "head_dim": 8, "max_positions": 256},
    }


@pytest.fixture
def tiny_model(tiny_values: dict[str, Any], builtin_registry: Registry, tiny_tokenizer: Tokenizer) -> VLM:
    """The tiny model with every weight alive: outputs that start at zero would hide what tests look for."""
    import torch

    from components.compose import build_model

    torch.manual_seed(0)
    model = build_model(tiny_values, builtin_registry, tiny_tokenizer.vocab_size)
    with torch.no_grad():
        for block in model.backbone.blocks:
            for linear in (block.out, block.down):
                linear.weight.normal_(std=0.2)
        model.backbone.head.weight.normal_(std=0.5)
    return model.eval()


@pytest.fixture(scope="session")
def make_picture() -> Callable[[int], Image]:
    """A picture by number: noise, different for every number."""
    import numpy as np
    import PIL.Image

    from ghostvis_plugins.types import Image

    def make(number: int) -> Image:
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        PIL.Image.fromarray(pixels).resize((32, 32), PIL.Image.Resampling.NEAREST).save(buffer, "PNG")
        return Image(data=buffer.getvalue())

    return make


@pytest.fixture
def tiny_config(tiny_model: VLM, tiny_values: dict[str, Any], builtin_registry: Registry) -> dict[str, Any]:
    """What ``config.json`` says about ``tiny_model``."""
    from components.compose import components_of

    return {"components": components_of(tiny_model, tiny_values, builtin_registry), "eval": ["easy_vqa"]}
