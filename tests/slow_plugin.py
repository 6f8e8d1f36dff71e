"""A plugin file for tests that signal a real `ghostvis train`: its texts need no download, its steps take a while."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ghostvis_plugins import ComponentSpec, dataset, hookimpl, tracker
from ghostvis_plugins.types import Document, SampleList, Split


class NoOptions(BaseModel):
    pass


class SlowOptions(BaseModel):
    seconds: float = 0.05


class Slow:
    """A tracker that takes its time."""

    def __init__(self, config: SlowOptions, *, run_dir: Path) -> None:
        self.seconds = config.seconds

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        time.sleep(self.seconds)

    def finish(self) -> None: ...


def build_words(config: NoOptions, *, split: Split) -> SampleList:
    words = ["the", "red", "fox", "sees", "a", "green", "leaf", "and", "a", "blue", "bird", "under", "yellow", "light"]
    texts = [" ".join(words[i % 5 : 3 + i % 11] or words[:1]) for i in range(60)]
    return SampleList([Document(text, f"words/{split}/{i}") for i, text in enumerate(texts)])


@hookimpl
def ghostvis_components() -> Iterator[ComponentSpec]:
    yield dataset("words", config=NoOptions, build=build_words)
    yield tracker("slow", config=SlowOptions, build=Slow)
