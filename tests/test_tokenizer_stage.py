"""The tokenizer stage: what it leaves out, when it stops, and what its report says about compression."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from miniature import registry, values
from pydantic import BaseModel, ConfigDict

from components.tokenizers import Tokenizer
from ghostvis_plugins import dataset
from ghostvis_plugins.errors import DataError, UnavailableError
from ghostvis_plugins.types import Document, Sample, Split
from stages.compression import REFERENCES, Reference, compression
from stages.runner import run

WORDS = ["the", "red", "fox", "sees", "a", "green", "leaf", "and", "a", "blue", "bird", "under", "yellow", "light"]


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = 400
    bad: dict[int, str] = {}  # index → what happens there


class Faulty:
    """Documents, some of which cannot be read."""

    def __init__(self, config: Options, split: Split) -> None:
        self.config, self.split = config, split

    def __len__(self) -> int:
        return self.config.size if self.split == "train" else 20

    def __getitem__(self, index: int) -> Sample:
        text = " ".join(WORDS[(index * k) % len(WORDS)] for k in range(1, 9))
        match self.config.bad.get(index) if self.split == "train" else None:
            case "data":
                raise DataError("a row that is no text")
            case "disk":
                raise OSError("input/output error")
            case "surrogate":
                text += "\ud83d"
            case "defect":
                raise ZeroDivisionError
        return Document(text, f"faulty/{self.split}/{index}")


def build_faulty(config: Options, *, split: Split) -> Faulty:
    return Faulty(config, split)


REGISTRY = registry(dataset("faulty", config=Options, build=build_faulty))


def given(**options: Any) -> dict[str, Any]:
    result = values(Path(), "tokenizer", dataset={"faulty": {"weight": 1.0, **options.pop("data", {})}})
    return {**result, "from": None, "stage": {"name": "tokenizer", "vocab_size": 300, **options}}


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No vocabulary of others on this machine, until a test puts one there."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_rows_that_cannot_be_read_are_written_down_and_left_out(tmp_path: Path) -> None:
    bad = {3: "data", 50: "disk", 77: "surrogate"}
    model = run(given(data={"bad": bad}, max_bad_fraction=0.01), REGISTRY, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/bad_samples.jsonl").read_text().splitlines()]
    assert {line["index"]: line["reason"].split(":")[0] for line in lines} == {
        3: "a row that is no text",
        50: "OSError",
        77: "UnicodeEncodeError",
    }
    report = (tmp_path / "run/report.md").read_text()
    assert "397 samples" in report
    assert "3 unusable" in report
    without = run(given(data={"bad": dict.fromkeys(bad, "data")}, max_bad_fraction=0.01), REGISTRY, tmp_path / "other")
    assert Tokenizer.load(model).fingerprint == Tokenizer.load(without).fingerprint  # what is wrong does not matter


def test_too_many_of_them_stop_the_stage(tmp_path: Path) -> None:
    bad = dict.fromkeys(range(5), "data")
    with pytest.raises(DataError, match="unusable of 400 training samples, and 4 are allowed"):
        run(given(data={"bad": bad}, max_bad_fraction=0.01), REGISTRY, tmp_path / "run")
    assert not (tmp_path / "run/model").exists()


def test_a_defect_is_no_bad_row(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(given(data={"bad": {1: "defect"}}, max_bad_fraction=1.0), REGISTRY, tmp_path / "run")


def test_the_report_gives_bytes_per_token_of_held_out_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = run(given(), REGISTRY, tmp_path / "run")
    tokenizer, held = Tokenizer.load(model), Faulty(Options(), "validation")
    texts = [held[n].text for n in range(len(held))]  # type: ignore[union-attr]
    size = sum(len(text.encode()) for text in texts)
    expected = size / sum(len(tokenizer.encode(text)) for text in texts)
    report = (tmp_path / "run/report.md").read_text()
    row = f"| faulty | {size:,} | {expected:.3f} |"
    assert row in report
    assert row in capsys.readouterr().err
    assert "GPT-2: not on this machine" in report
    assert "GPT-4: not on this machine" in report
    assert expected > 2
    assert str(tmp_path) not in report


def test_a_vocabulary_in_the_hubs_cache_is_compared(empty_caches: Path) -> None:
    other = Tokenizer.train([" ".join(WORDS)] * 3, 290)
    repository = empty_caches / "hub/models--openai-community--gpt2"
    other.save(repository / "snapshots/abc")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    texts = {"a": ["the red fox", "ä light"], "b": ["under"]}
    said = compression(texts, len)
    tokens = {name: sum(len(other.encode(text)) for text in own) for name, own in texts.items()}
    assert f"| a | 19 | {19 / 18:.3f} | {19 / tokens['a']:.3f} |" in said
    assert f"| all | 24 | {24 / 23:.3f} | {24 / sum(tokens.values()):.3f} |" in said
    assert "GPT-2: not" not in said
    assert "GPT-4: not on this machine" in said


def test_a_vocabulary_in_tiktokens_cache_is_compared(empty_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the name that tiktoken gives its file, with tiktoken's own reader; a download would be an error here."""
    tiktoken = pytest.importorskip("tiktoken")
    load, public = pytest.importorskip("tiktoken.load"), pytest.importorskip("tiktoken_ext.openai_public")

    def no_download(path: str) -> bytes:
        raise AssertionError(f"asked for {path}")

    monkeypatch.setattr(load, "read_file", no_download)
    asked: list[str] = []
    real = load.read_file_cached

    def seen(path: str, expected_hash: str | None = None) -> bytes:
        asked.append(path)
        return real(path)  # the file below is not the published one

    monkeypatch.setattr(load, "read_file_cached", seen)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    reference = REFERENCES[1]
    url = f"https://openaipublic.blob.core.windows.net/{reference.files[0]}"
    assert url in Path(public.__file__).read_text()
    with pytest.raises(UnavailableError):
        reference.open()
    import base64

    ranks = [bytes([byte]) for byte in range(256)] + [b"re"]
    lines = b"\n".join(base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(ranks))
    cache = empty_caches / "tiktoken"
    cache.mkdir()
    (cache / hashlib.sha1(url.encode()).hexdigest()).write_bytes(lines)
    count = reference.open()
    assert asked == [url]
    assert count("red <|endoftext|>") == len("red <|endoftext|>") - 1  # "re" is one token, control text is plain text


def test_the_names_of_the_files_are_tiktokens() -> None:
    public = pytest.importorskip("tiktoken_ext.openai_public")
    source = Path(public.__file__).read_text()
    for reference in REFERENCES:
        assert callable(public.ENCODING_CONSTRUCTORS[reference.encoding])
        assert all(re.search(re.escape(file), source) for file in reference.files)
    assert isinstance(REFERENCES[0], Reference)
