"""Several trackers at once: said by flags, lists, tables or the environment, each validated, all told the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from miniature import registry, values, write_tokenizer
from pydantic import BaseModel, ConfigDict

from components.trackers.jsonl import read_metrics
from ghostvis_plugins import ComponentSpec, ConfigError, MissingError, tracker
from ghostvis_plugins.config import resolve
from ghostvis_plugins.resolved import Resolved
from ghostvis_plugins.settings import Defaults, PluginSettings
from stages.runner import run


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    mode: str = "offline"


def recorder(name: str, told: list[tuple[str, str, int]]) -> ComponentSpec:
    """A tracker that notes what it is told: its name, its mode, the step."""

    class Recorder:
        def __init__(self, config: Options, *, run_dir: Path) -> None:
            self.mode = config.mode

        def log(self, step: int, metrics: Mapping[str, Any]) -> None:
            told.append((name, self.mode, step))

        def finish(self) -> None:
            told.append((name, self.mode, -1))

    return tracker(name, config=Options, build=Recorder)


def resolved(tmp_path: Path, *sets: str, layers: tuple[Defaults, ...] = (), **more: Any) -> Resolved:
    found = registry(recorder("one", []), recorder("two", []))
    found.settings = PluginSettings(layers=(*layers, Defaults(origin="packaged", defaults={"tracker": "jsonl"})))
    return resolve(registry=found, kinds=["tracker"], cwd=tmp_path, sets=sets, **{"env": {}, **more})


BOTH = {"name": "one", "mode": "offline", "also": {"two": {"mode": "online"}}}


def test_every_way_to_say_it(tmp_path: Path) -> None:
    """Flags, names in a list, tables in a list, one table, the environment: equal, with an origin of every value."""
    for name, text in {
        "names": 'tracker = ["one", "two"]\n',
        "tables": '[[tracker]]\nname = "one"\n[[tracker]]\nname = "two"\nmode = "online"\n',
        "table": '[tracker]\nname = "one"\n[tracker.also.two]\nmode = "online"\n',
    }.items():
        (tmp_path / f"{name}.toml").write_text(text)
    online = "tracker.also.two.mode=online"
    flags = {"tracker": ["one", "two"]}
    ways = {
        "flags": resolved(tmp_path, online, flags=flags),
        "--set": resolved(tmp_path, online, 'tracker=["one", "two"]'),
        "names": resolved(tmp_path, online, recipes=["names.toml"]),
        "tables": resolved(tmp_path, recipes=["tables.toml"]),
        "table": resolved(tmp_path, recipes=["table.toml"]),
        "environment": resolved(tmp_path, online, env={"GHOSTVIS_TRACKER": '["one", "two"]'}),
    }
    assert {name: way.values["tracker"] for name, way in ways.items()} == dict.fromkeys(ways, BOTH)
    for name, way in ways.items():
        assert {"tracker:one", "tracker:two"} <= way.components.keys(), name
        assert way.origins["tracker.mode"] == "default"
        expected = "tables.toml" if name == "tables" else "table.toml" if name == "table" else f"--set {online[:-7]}"
        assert way.origins["tracker.also.two.mode"] == expected
        again = Resolved.from_json(way.to_json())
        assert again.values["tracker"] == BOTH


def test_a_choice_replaces_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('tracker = ["one", "two"]\n')
    for flag in ("one", "two", "jsonl"):
        found = resolved(tmp_path, recipes=["a.toml"], flags={"tracker": [flag]}).values["tracker"]
        assert found["name"] == flag
        assert "also" not in found
    assert resolved(tmp_path, recipes=["a.toml"], flags={"tracker": ["none"]}).values["tracker"] is None


def test_options_of_plugins_toml_reach_each(tmp_path: Path) -> None:
    options = {"tracker": {"one": {"mode": "first"}, "two": {"mode": "second"}}}
    own = Defaults(origin="own", options=options)
    found = resolved(tmp_path, layers=(own,), flags={"tracker": ["one", "two"]})
    assert found.values["tracker"] == {"name": "one", "mode": "first", "also": {"two": {"mode": "second"}}}
    assert found.origins["tracker.also.two.mode"] == "own"


def test_what_is_wrong_is_said_with_its_place(tmp_path: Path) -> None:
    both = {"tracker": ["one", "two"]}
    with pytest.raises(ConfigError, match=r"tracker\.also\.two\.mod = 1: .*mode\?.*--set tracker\.also\.two\.mod"):
        resolved(tmp_path, "tracker.also.two.mod=1", flags=both)
    with pytest.raises(MissingError, match=r"'twoo'.*two.*--tracker"):
        resolved(tmp_path, flags={"tracker": ["one", "twoo"]})
    with pytest.raises(ConfigError, match=r"names 'one' twice.*--tracker"):
        resolved(tmp_path, flags={"tracker": ["one", "one"]})
    with pytest.raises(ConfigError, match=r"must be names, or tables with a name"):
        resolved(tmp_path, "tracker=[1]")
    with pytest.raises(ConfigError, match=r"tracker\.also = .*must have a table for each"):
        resolved(tmp_path, "tracker.name=one", "tracker.also=3")


def test_all_of_them_are_told(tmp_path: Path) -> None:
    told: list[tuple[str, str, int]] = []
    found = registry(recorder("one", told), recorder("two", told))
    start = write_tokenizer(tmp_path / "tokenizer")
    given = values(start, stage__steps=2, stage__eval_samples=0, tracker=BOTH)
    run(given, found, tmp_path / "a")
    each = [("one", "offline"), ("two", "online")]
    assert told == [(*who, step) for step in (1, 2, -1) for who in each]
    assert [row["step"] for row in read_metrics(tmp_path / "a")] == [1, 2]
