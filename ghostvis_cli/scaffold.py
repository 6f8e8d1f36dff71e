"""Files that ``ghostvis plugins`` writes: a plugin package to start from, and one line of ``plugins.toml``."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from string import Template

from ghostvis_plugins import ConfigError, MissingError
from ghostvis_plugins.errors import did_you_mean
from ghostvis_plugins.settings import read_toml
from ghostvis_plugins.versions import ghostvis_version

_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "$dist"
version = "0.1.0"
description = "A $kind for GhostVis."
requires-python = ">=3.11"
dependencies = ["ghostvis>=$version"]

[project.entry-points.ghostvis]
$entry = "$module"

[tool.hatch.build.targets.wheel]
packages = ["$module"]
"""

_INIT = '''\
"""A $kind for GhostVis."""

from ghostvis_plugins import $kind, hookimpl


@hookimpl
def ghostvis_components():
    yield $kind("$entry", config="$module.config:Config", build="$module.build:build", summary="TODO: one line.")
'''

_CONFIG = '''\
"""Options of the $kind. This module must not import torch."""

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")

    $option
'''

_TEST = '''\
"""The contract of a $kind, checked on the real component."""

from ghostvis_plugins.testing import assert_component_ok

import $module


def test_component():
    for spec in $module.ghostvis_components():
        assert_component_ok(spec)
'''

_BUILD = {
    "encoder": (
        'image_size: int = Field(64, ge=8, description="Height and width in pixels.")',
        '''\
"""A vision encoder: mean colour of each cell of a grid, through a linear layer."""

import torch
from torch import nn


class Encoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.image_size = (config.image_size, config.image_size)
        self.tokens = 16
        self.out_dim = 32
        self.linear = nn.Linear(3, self.out_dim)

    def transform(self):
        return {"size": self.image_size[0], "scale": 255}

    def preprocess(self, image):
        image = image.resize((self.image_size[1], self.image_size[0]))
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return pixels.view(*self.image_size, 3).permute(2, 0, 1).float() / 255

    def init_weights(self):
        nn.init.normal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, pixels):  # [I, 3, H, W] -> [I, P, Dv]
        cells = nn.functional.adaptive_avg_pool2d(pixels, 4).flatten(2).transpose(1, 2)
        return self.linear(cells)


def build(config):
    return Encoder(config)
''',
    ),
    "resampler": (
        'tokens: int = Field(4, ge=1, description="Vectors left of each image.")',
        '''\
"""A resampler: averages neighbouring positions."""

from torch import nn


class Resampler(nn.Module):
    def __init__(self, config, in_dim, in_tokens):
        super().__init__()
        self.tokens = min(config.tokens, in_tokens)
        self.out_dim = in_dim

    def init_weights(self):
        """There is nothing to fill."""

    def forward(self, features):  # [I, P, Dv] -> [I, N, Dr]
        return nn.functional.adaptive_avg_pool1d(features.transpose(1, 2), self.tokens).transpose(1, 2)


def build(config, *, in_dim, in_tokens):
    return Resampler(config, in_dim, in_tokens)
''',
    ),
    "projector": (
        'bias: bool = Field(True, description="Whether the layer adds a bias.")',
        '''\
"""A projector: one linear layer."""

from torch import nn


class Projector(nn.Module):
    def __init__(self, config, in_dim, out_dim):
        super().__init__()
        self.out_dim = out_dim
        self.linear = nn.Linear(in_dim, out_dim, bias=config.bias)

    def init_weights(self):
        nn.init.normal_(self.linear.weight, std=self.linear.in_features**-0.5)
        if self.linear.bias is not None:
            nn.init.zeros_(self.linear.bias)

    def forward(self, features):  # [I, N, Dr] -> [I, N, D]
        return self.linear(features)


def build(config, *, in_dim, out_dim):
    return Projector(config, in_dim, out_dim)
''',
    ),
    "dataset": (
        'size: int = Field(100, ge=1, description="Number of samples in each split.")',
        '''\
"""A data set: sums of two numbers. The splits share no question."""

from ghostvis_plugins.types import Conversation, Length, assistant, length_of, user

OFFSET = {"train": 0, "validation": 1, "test": 2}


class Sums:
    def __init__(self, size, split):
        self.size, self.split = size, split

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if not 0 <= index < self.size:
            raise IndexError(index)
        left, right = index, 3 * index + OFFSET[self.split]
        turns = (user(f"{left} + {right}?"), assistant(str(left + right)))
        return Conversation(turns, id=f"sums/{self.split}/{index}")

    def length(self, index) -> Length:
        return length_of(self[index])


def build(config, *, split):
    return Sums(config.size, split)
''',
    ),
}


def write_package(name: str, kind: str, parent: Path) -> Path:
    """Write the package ``name`` under ``parent``. Raises ConfigError for a bad name, MissingError for the kind."""
    if kind not in _BUILD:
        raise MissingError(
            f"there is no template for '{kind}'.{did_you_mean(kind, _BUILD)} Kinds: {', '.join(_BUILD)}."
        )
    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or not module.isidentifier():
        raise ConfigError(f"'{name}' is not a package name: use lower-case letters, digits and '-'")
    folder = parent / name
    if folder.exists():
        raise ConfigError(f"'{name}' exists already in this folder")
    option, build = _BUILD[kind]
    entry = module.removeprefix("ghostvis_")
    words = {
        "dist": name,
        "module": module,
        "entry": entry,
        "kind": kind,
        "option": option,
        "version": ghostvis_version(),
    }
    files = {
        "pyproject.toml": _PYPROJECT,
        f"{module}/__init__.py": _INIT.replace("TODO: one line.", f"A {kind} of {name}."),
        f"{module}/config.py": _CONFIG,
        f"{module}/build.py": build,
        f"tests/test_{module}.py": _TEST,
    }
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(Template(text).substitute(words), encoding="utf-8")
    return folder


def edit_disabled(path: Path, name: str, *, add: bool) -> None:
    """Add or remove a name in ``[plugins] disabled`` of one file, leaving everything else as it is.

    The file is edited as text, to keep its comments, and parsed again before it is written. Raises ConfigError when
    that does not give the intended list, and when there is nothing to remove.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else "schema = 1\n\n[plugins]\n"
    before = read_toml(path).get("plugins", {}).get("disabled", []) if path.is_file() else []
    if not add and name not in before:
        raise ConfigError(f"'{name}' is not in 'disabled' of {path}")
    wanted = [*before, name] if add and name not in before else [item for item in before if add or item != name]
    line = f"disabled = {json.dumps(wanted)}"
    pattern = re.compile(r"^disabled\s*=\s*\[[^\]]*\]", re.MULTILINE)
    if pattern.search(text):
        text = pattern.sub(lambda _: line, text, count=1)
    elif re.search(r"^\[plugins\]", text, re.MULTILINE):
        text = re.sub(
            r"^\[plugins\][^\n]*\n?", lambda match: f"{match.group().rstrip()}\n{line}\n", text, count=1, flags=re.M
        )
    else:
        text = f"{text.rstrip()}\n\n[plugins]\n{line}\n"
    try:
        result = tomllib.loads(text).get("plugins", {}).get("disabled")
    except tomllib.TOMLDecodeError:
        result = None
    if result != wanted:
        raise ConfigError(f"{path} is laid out in a way that cannot be edited here; write {line} under [plugins]")
    path.write_text(text, encoding="utf-8")
