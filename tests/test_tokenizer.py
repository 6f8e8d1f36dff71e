"""The tokenizer: no text produces a control id, text survives a round trip, streams equal wholes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.tokenizers import CONTROL_TOKENS, MIN_VOCAB_SIZE, StreamDecoder, Tokenizer
from ghostvis_plugins.errors import ConfigError, DataError, MissingError

# The corpus is full of markup, so that merges towards control tokens would be learnt if they could be.
CORPUS = ["What is in the picture?", "A red circle, left of the tree.", "user\nassistant\n"] + 20 * list(CONTROL_TOKENS)
TOKENIZER = Tokenizer.train(CORPUS, 400)
CONTROL_IDS = set(TOKENIZER.control.values())

any_text = st.text(st.characters(codec="utf-8"), max_size=40)


@given(before=any_text, token=st.sampled_from(sorted(TOKENIZER.control)), after=any_text)
@settings(max_examples=300, deadline=None)
def test_no_text_produces_a_control_token(before: str, token: str, after: str) -> None:
    ids = TOKENIZER.encode(before + token + after)
    assert CONTROL_IDS.isdisjoint(ids)
    assert TOKENIZER.decode(ids) == before + token + after


def test_control_tokens_are_the_saved_tokenizers_own() -> None:
    assert set(TOKENIZER.control) == set(CONTROL_TOKENS)
    for token, number in TOKENIZER.control.items():
        assert TOKENIZER.encode_template(token) == [number]
        assert TOKENIZER.decode([number]) == ""
    assert TOKENIZER.vocab_size == max(CONTROL_IDS) + 1


@given(any_text)
@settings(deadline=None)
def test_streamed_equals_whole(text: str) -> None:
    ids = TOKENIZER.encode(text)
    stream = StreamDecoder(TOKENIZER)
    pieces = [stream.push(token) for token in ids] + [stream.finish()]
    assert "".join(pieces) == text
    assert not any("�" in piece for piece in pieces) or "�" in text


def test_stream_holds_back_half_a_character() -> None:
    ids = TOKENIZER.encode("🙂")
    assert len(ids) == 4  # no emoji in the corpus: one token per byte
    stream = StreamDecoder(TOKENIZER)
    assert [stream.push(token) for token in ids] == ["", "", "", "🙂"]
    for token in ids[:2]:
        stream.push(token)
    assert stream.finish() == "�"


@given(head=st.sampled_from(["user\n", "assistant\n", "\n"]), text=any_text)
@settings(deadline=None)
def test_a_line_break_separates(head: str, text: str) -> None:
    assert TOKENIZER.encode(head) + TOKENIZER.encode(text) == TOKENIZER.encode(head + text)


def test_save_and_load(tmp_path) -> None:
    TOKENIZER.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    text = "A red <|im_end|> circle 123 ünïcode\r\n\n  x"
    assert loaded.encode(text) == TOKENIZER.encode(text)
    assert loaded.control == TOKENIZER.control
    assert loaded.chat_template == TOKENIZER.chat_template


def test_training_is_deterministic() -> None:
    again = Tokenizer.train(CORPUS, 400)
    assert again._backend.to_str() == TOKENIZER._backend.to_str()


def test_a_vocabulary_too_small_for_the_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match=str(MIN_VOCAB_SIZE)):
        Tokenizer.train(CORPUS, MIN_VOCAB_SIZE - 1)
    assert Tokenizer.train(CORPUS, MIN_VOCAB_SIZE).vocab_size == MIN_VOCAB_SIZE


def test_damaged_files_are_named(tmp_path) -> None:
    with pytest.raises(MissingError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(DataError, match="is not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_that_leaks_is_refused(tmp_path) -> None:
    """A foreign tokenizer whose merges spell a control token must not be used at all."""
    description = json.loads(TOKENIZER._backend.to_str())
    number = description["model"]["vocab"]["a"]
    for token in description["added_tokens"]:
        if token["content"] == "<|image|>":
            token["content"], token["id"] = "a", number
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(DataError):
        Tokenizer.load(tmp_path)
