"""The tokenizer: no text produces a control id, text survives a round trip, streams equal wholes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miniature import as_others_read
from tokenizers import Tokenizer as Backend

from components.tokenizers import CONTROL_TOKENS, MIN_VOCAB_SIZE, PIECE, PRE_TOKENIZERS, StreamDecoder, Tokenizer
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
    ids = as_others_read(TOKENIZER)
    assert set(TOKENIZER.control) == set(CONTROL_TOKENS)
    for token, number in TOKENIZER.control.items():
        assert ids(token) == [number]
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


TEXTS = ["What is in the picture?", "A red circle, left of the tree.", "user\nassistant\n", "the red fox 'tis 1\n"]


def _with_pre_tokenizer(kind: str) -> Tokenizer:
    """The same merges under another vocabulary's rules of where texts are split."""
    description = json.loads(Tokenizer.train([*TEXTS, "don't 123 foo.\n\nbar"] * 4, 500)._backend.to_str())
    description["pre_tokenizer"] = PRE_TOKENIZERS[kind]
    description["normalizer"] = {"type": "NFC"} if kind == "qwen2" else None
    return Tokenizer(Backend.from_str(json.dumps(description)))


PRE_TOKENIZED = {"own": Tokenizer.train([*TEXTS, "don't 123 foo.\n\nbar"] * 4, 500)} | {
    kind: _with_pre_tokenizer(kind) for kind in PRE_TOKENIZERS
}
AWKWARD = st.text(
    st.sampled_from("ab Z9 \n\t\r.,'!<|>_-é漢\u0301\u00a0\u2028\u3000\x1c\x85 \n 're"), max_size=24
) | st.text(st.characters(codec="utf-8"), max_size=12)


@pytest.mark.parametrize("kind", PRE_TOKENIZED)
@given(parts=st.lists(AWKWARD, max_size=4), joint=st.sampled_from(["", " ", "\n", " \n", "\n\n", ". ", "'s ", "  "]))
@settings(deadline=None, max_examples=300)
def test_pieces_give_the_ids_of_the_whole_text(kind: str, parts: list[str], joint: str) -> None:
    tokenizer, text = PRE_TOKENIZED[kind], joint.join(parts)
    assert tokenizer._cuts
    whole = tokenizer._plain.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == whole
    assert tokenizer._pieces.cut(text) == whole
    # Sharper, since two tokens may be the same ids though they were split elsewhere:
    split = tokenizer._plain.pre_tokenizer.pre_tokenize_str
    pieces = PIECE.findall(text)
    assert "".join(pieces) == text
    assert [part for piece in pieces for part, _ in split(piece)] == [part for part, _ in split(text)]


def test_an_unknown_pre_tokenizer_is_asked_for_whole_texts() -> None:
    """One that joins words across blanks: pieces would give other ids."""
    description = json.loads(PRE_TOKENIZED["own"]._backend.to_str())
    split = description["pre_tokenizer"]["pretokenizers"][0]
    split["pattern"] = {"Regex": r"\w+ \w+|."}
    tokenizer = Tokenizer(Backend.from_str(json.dumps(description)))
    assert not tokenizer._cuts
    text = "the red fox and the red fox"
    assert tokenizer.encode(text) == tokenizer._plain.encode(text, add_special_tokens=False).ids


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.tokenizers.MOST_PIECES", 10)
    tokenizer = Tokenizer.train(TEXTS * 4, 400)
    texts = [f"word{n} and{n} {n}" for n in range(60)]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts
    assert len(tokenizer._pieces) <= 10
    assert len(tokenizer._words) <= 10


def test_bytes_behind_the_ids() -> None:
    tokenizer = Tokenizer.train(TEXTS * 4, 400)
    for text in ("naïve 漢字 🐱", "plain"):
        assert sum(tokenizer.token_bytes[i] for i in tokenizer.encode(text)) == len(text.encode())
    assert all(tokenizer.token_bytes[number] == 0 for number in tokenizer.control_ids)
