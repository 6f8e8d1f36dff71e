"""Byte-level BPE whose control tokens no text can produce.

A tokenizer has two views of the same vocabulary. The one that is saved knows the added tokens
(``<|im_start|>`` and friends), so other tools that load the folder see a normal chat tokenizer. The one
that ``encode`` goes through was stripped of them: whatever a user types is ordinary text, and control
ids enter a sequence only by number (:mod:`components.rendering`). That holds for every added token of a
foreign vocabulary, too, whether its folder calls it special or not.

Notable choices:

- in our own vocabularies a line break is always a token of its own, so a ChatML header and the text behind
  it tokenise the same alone and together;
- control tokens take the last ids, outside the BPE model's own vocabulary; foreign ones stay where they are,
  and a vocabulary without a token for pictures gets ``<|image|>`` behind its last id;
- a text is cut where no pre-tokenizer we know ever joins, and the ids of the pieces, which are words mostly, are
  remembered: five times as fast as one call of the library (`bench/rendering.py`), with the same ids;
- decoding goes through bytes, so a whole answer and a streamed one are the same by construction;
- a byte that a foreign vocabulary lacks (SmolLM2 has no token for some control characters) is dropped, as
  transformers and llama.cpp do, and never becomes the unknown token, which is a control token.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from ghostvis_plugins.errors import ConfigError, DataError, MissingError

from .chat_formats import (
    CHATML,
    CONFIG_KEY,
    END_OF_TEXT,
    IM_END,
    IM_START,
    IMAGE,
    IMAGE_TOKENS,
    ROLES,
    TOOL_CALL,
    TOOL_CALL_END,
    TOOL_RESPONSE,
    TOOL_RESPONSE_END,
    ChatFormat,
    Segments,
    detect,
)

CONTROL_TOKENS = (
    END_OF_TEXT,
    IM_START,
    IM_END,
    IMAGE,
    TOOL_CALL,
    TOOL_CALL_END,
    TOOL_RESPONSE,
    TOOL_RESPONSE_END,
)
MIN_VOCAB_SIZE = 256 + len(CONTROL_TOKENS)

# Contractions; a word with at most one character before it; one or two digits (numbers stay short, as in
# GPT-4's pattern); punctuation; a line break alone; other white space, leaving one blank for the word behind it.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)"
    r"|[^\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]+"
    r"|\n"
    r"|[^\S\n]+(?!\S)"
    r"|[^\S\n]+"
)

# The pre-tokenizers of foreign vocabularies: facts that their merges were learnt with.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)
LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

# Pieces of a text that tokenise alone as they do in it. All patterns above, and GPT-2's, end a token
# - before a blank, where something else than white space stands in front of it,
# - between an ASCII letter and ASCII punctuation or a blank (a contraction begins with its apostrophe),
# - behind a lone line break between two things that are no white space, whichever token has the line break.
PIECE = re.compile(
    r" ?[A-Za-z]+(?:\n(?=\S)|(?=[ -/:-@[-`{-~]|\Z))"
    r"|\s*\S+(?:(?!\n\S)[^\S ]\s*\S+)*(?:\n(?=\S)|\s+\Z)?"
    r"|\s+"
)
WORD = re.compile(r" ?[A-Za-z]+")
PIECE_LENGTH = 32  # characters of the longest piece that is remembered
MOST_PIECES = 1 << 16  # some 15 MB of them

LOSSLESS = "One two.\n  three\tFour"  # what every vocabulary must be able to write: case, blanks, line breaks
STOPS_KEY = "ghostvis_stop_tokens"  # in tokenizer_config.json

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}{{ '\\n' }}
{%- if message.role == 'tool' -%}
<tool_response>{{ '\\n' }}{{ message.content }}{{ '\\n' }}</tool_response>
{%- elif message.content is string -%}
{{ message.content }}
{%- elif message.content -%}
{%- for part in message.content -%}
{%- if part.type == 'text' -%}{{ part.text }}{%- else -%}<|image|>{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}
<tool_call>{{ '\\n{"name": "' }}{{ call.function.name }}{{ '", "arguments": ' -}}
{{ call.function.arguments }}{{ '}\\n' }}</tool_call>
{%- endfor -%}
<|im_end|>{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant{{ '\\n' }}
{%- endif -%}
"""


class Tokenizer:
    """Text to ids and back. ``encode`` is safe for any text; control ids are in :attr:`control`.

    Ids are ``im_end``, which ends a turn (whatever its name), ``document`` around a document, ``eos``, the second of
    them, ``image``, which stands for a picture, and ``stops``, which end an answer. The rest is the chat format with
    its control tokens as ids: ``headers`` (by role), ``begin``, ``thought``, ….
    """

    def __init__(
        self,
        backend: Backend,
        chat_template: str = CHAT_TEMPLATE,
        chat_format: ChatFormat = CHATML,
        stops: Iterable[int | str] = (),
    ) -> None:
        """``stops`` are ids or names of further tokens that end an answer.

        Raises DataError when ``backend`` is not byte-level BPE, lacks a control token of the format, could leak one,
        or changes plain text.
        """
        description = json.loads(backend.to_str())
        if description["model"].get("type") != "BPE" or "ByteLevel" not in json.dumps(description["decoder"]):
            raise DataError("the tokenizer is not byte-level BPE; GhostVis decodes through bytes and needs it to be")
        if not any(token["content"] in IMAGE_TOKENS for token in description["added_tokens"]):
            backend.add_special_tokens([AddedToken(IMAGE, normalized=False, special=True)])
            description["added_tokens"].append({"content": IMAGE, "id": backend.token_to_id(IMAGE)})
        self.control: dict[str, int] = {token["content"]: token["id"] for token in description["added_tokens"]}
        missing = [token for token in dict.fromkeys(chat_format.required()) if token not in self.control]
        if missing:
            raise DataError(
                f"the tokenizer has no token {', '.join(missing)}, which the chat format '{chat_format.name}' needs"
            )
        self.chat_template, self.format = chat_template, chat_format
        self._backend = backend
        self._bytes = _token_bytes(description, self.control)
        self._plain = _plain(description, self.control)
        self._pieces = _Pieces(self._plain)
        self._starts, self._words = _Words(self._pieces, ""), _Words(self._pieces, " ")
        self._cuts = _cuts_at_blanks(description)
        self.im_end = self.control[chat_format.end]
        first, last = (self.control.get(token, self.im_end) for token in chat_format.document)
        self.document, self.eos = (first, last), last
        self.image = next(self.control[token] for token in IMAGE_TOKENS if token in self.control)
        self.stops = self._stops(stops)
        self.control_ids = frozenset(self.control.values())
        self.plain_ids = tuple(number for number, text in enumerate(self._bytes) if text)
        for token in self.control:
            if self.control_ids.intersection(self.encode(token)):
                raise _leak(token)
        if (back := self.decode(self.encode(LOSSLESS))) != LOSSLESS:
            raise DataError(
                f"the tokenizer does not give back the text that it is given: {LOSSLESS!r} becomes {back!r}"
            )
        self.headers = {role: self.resolve(chat_format.header(role)) for role in ROLES}
        controls = all(header and type(header[0]) is int for header in self.headers.values())
        self.turn_gap = tuple(self.encode(chat_format.after_end)) if controls else None
        self.begin, self.thought = self.resolve(chat_format.begin), self.resolve(chat_format.thought)
        self.call_start, self.call_end = self.resolve(chat_format.call_start), self.resolve(chat_format.call_end)
        self.result_start = self.resolve(chat_format.result_start)
        self.result_end = self.resolve(chat_format.result_end)

    def resolve(self, segments: Segments) -> tuple[int | str, ...]:
        """Segments of a chat format with their control tokens as ids; optional ones that are missing stay text."""
        return tuple(s if isinstance(s, str) else self.control.get(s.token, s.token) for s in segments)

    def _stops(self, further: Iterable[int | str]) -> frozenset[int]:
        """Ids that end an answer: of the turn, of a document, the format's, and ``further`` ones."""
        found = {self.im_end, self.eos}
        found.update(self.control[token] for token in self.format.stops if token in self.control)
        for token in further:
            number = self._backend.token_to_id(token) if isinstance(token, str) else token
            if number is None or not 0 <= number < self.vocab_size:
                raise DataError(f"token {token!r} is said to end an answer, and the tokenizer has none such")
            found.add(number)
        return frozenset(found)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` as plain text: never the id of a control or other added token."""
        if not self._cuts:
            return self._plain.encode(text, add_special_tokens=False).ids  # type: ignore[no-any-return]
        if (known := self._pieces.get(text)) is not None:
            return list(known)
        first, *words = text.split(" ")
        line, cut, rest = first.partition("\n")  # most often a header and what is said
        alone = cut and line and rest and not (line[-1].isspace() or rest[0].isspace())
        try:
            start = (*self._pieces[line + cut], *self._starts[rest]) if alone else self._starts[first]
            return [*start, *chain.from_iterable(map(self._words.__getitem__, words))]
        except _OpenEnd:
            return self._pieces.cut(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; control tokens carry none. Invalid UTF-8 becomes U+FFFD."""
        return b"".join([self._bytes[i] for i in ids]).decode("utf-8", "replace")

    def spell(self, ids: Iterable[int]) -> str:
        """The text of ``ids`` with control tokens by name: what a chat template writes."""
        names = {number: token.encode() for token, number in self.control.items()}
        return b"".join([names.get(i, self._bytes[i]) for i in ids]).decode("utf-8", "replace")

    @property
    def token_bytes(self) -> list[int]:
        """How many bytes of text each id stands for; none for a control token."""
        return [len(text) for text in self._bytes]

    @property
    def vocab_size(self) -> int:
        """Number of ids, control tokens included."""
        return len(self._bytes)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits: tokenizers that give the same ids to every conversation have the same ones."""
        text = json.dumps([self._backend.to_str(), self.format.saved()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn merges from ``texts``. The vocabulary is smaller than asked for when the texts run out of pairs.

        Raises ConfigError when ``vocab_size`` cannot hold the 256 bytes and the control tokens.
        """
        if vocab_size < MIN_VOCAB_SIZE:
            raise ConfigError(f"vocab_size = {vocab_size}: at least {MIN_VOCAB_SIZE} (256 bytes and control tokens)")
        backend = Backend(models.BPE())
        split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(CONTROL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in CONTROL_TOKENS])
        return cls(backend)

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja`` into ``folder``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / "tokenizer.json"))
        usual = {self.im_end, self.eos}
        names = {number: token for token, number in self.control.items()}
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.format.end,
            "pad_token": names[self.eos],
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            CONFIG_KEY: self.format.saved(),
        }
        if self.stops != usual:
            config[STOPS_KEY] = [self._backend.id_to_token(number) for number in sorted(self.stops - usual)]
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if self.chat_template:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read a folder written by :meth:`save`, or one of Hugging Face's: ``tokenizer.json``, else ``vocab.json`` and
        ``merges.txt``; added tokens, chat template and stop tokens from the JSON files beside them.

        Raises MissingError without a tokenizer, DataError when it is corrupt or its chat template says what none of
        our formats does.
        """
        folder = Path(folder)
        config = _read_json(folder / "tokenizer_config.json")
        if (folder / "tokenizer.json").is_file():
            file = folder / "tokenizer.json"
            backend = _read_backend(file)
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            file = folder / "vocab.json"
            backend = _build_backend(folder, config)
        else:
            raise MissingError(f"{folder} holds no tokenizer (no tokenizer.json)")
        backend.no_truncation()
        backend.no_padding()
        try:
            added = {token.content for token in backend.get_added_tokens_decoder().values()}
            template = _template(folder, config)
            chat_format = detect(config, template, added, str(folder))
            if not template and chat_format == CHATML:
                template = CHAT_TEMPLATE
            tokenizer = cls(backend, template, chat_format, _saved_stops(folder, config))
            if CONFIG_KEY not in config and template not in ("", CHAT_TEMPLATE):
                from .chat_templates import check_template  # which renders, and so needs this module

                check_template(tokenizer, template, config, str(folder))
            return tokenizer
        except DataError as error:
            if str(folder) not in error.message:
                error.message = f"{file}: {error.message}"
            raise


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty when there is no such file. Raises DataError for anything else."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds no JSON object")
    return content


def _read_backend(file: Path) -> Backend:
    try:
        return _checked_backend(file.read_text(encoding="utf-8"))
    except DataError as error:
        raise DataError(f"{file}: {error.message}") from error
    except Exception as error:  # the library raises bare Exception for every kind of damage
        raise DataError(f"{file} is not a tokenizer: {error}") from error


def _checked_backend(text: str) -> Backend:
    """The library's tokenizer, with the very ids of the file: it renumbers added tokens without a word."""
    description = json.loads(text)
    _check_ids(description)
    backend = Backend.from_str(text)
    for added in description.get("added_tokens") or ():
        if backend.token_to_id(added["content"]) != added["id"]:
            raise DataError(f"added token {added['content']!r} cannot have id {added['id']}: its place is elsewhere")
    return backend


def _check_ids(description: Mapping[str, Any]) -> None:
    """Every id once, none left out."""
    model = description.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict):
        return  # no BPE, which is refused later, or no tokenizer at all
    owner = {number: token for token, number in vocabulary.items()}
    if len(owner) != len(vocabulary):
        twice = next(token for token, number in vocabulary.items() if owner[number] != token)
        raise DataError(f"id {vocabulary[twice]} belongs to {twice!r} and to {owner[vocabulary[twice]]!r}")
    for added in description.get("added_tokens") or ():
        token, number = added["content"], added["id"]
        if owner.setdefault(number, token) != token:
            raise DataError(f"id {number} belongs to {owner[number]!r} and to {token!r}")
        if vocabulary.get(token, number) != number:
            raise DataError(f"token {token!r} has the ids {vocabulary[token]} and {number}")
    if owner and (min(owner) != 0 or max(owner) != len(owner) - 1):
        hole = next(number for number in range(len(owner)) if number not in owner)
        raise DataError(f"{len(owner)} tokens have ids up to {max(owner)}, and none has id {hole}")


def _build_backend(folder: Path, config: Mapping[str, Any]) -> Backend:
    """A tokenizer from ``vocab.json`` and ``merges.txt``, as GPT-2 (or Qwen2, where the folder says so) reads them."""
    vocabulary = _read_json(folder / "vocab.json")
    merges = []
    try:
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / 'merges.txt'} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise DataError(f"{folder / 'merges.txt'}, line {number}: {line!r} is no pair of tokens")
        merges.append(pair)
    added = _added_tokens(folder, config)
    kind = str(config.get("tokenizer_class", "")) + str(_read_json(folder / "config.json").get("model_type", ""))
    qwen = kind.lower().startswith("qwen")
    tokens = [{"content": token, "id": number, "special": True} for number, token in sorted(added.items())]
    description = bpe_description(vocabulary, merges, tokens, "qwen2" if qwen else "gpt-2")
    try:
        return _checked_backend(json.dumps(description))
    except DataError as error:
        raise DataError(f"{folder / 'vocab.json'}: {error.message}") from error
    except Exception as error:  # see _read_backend
        raise DataError(f"{folder / 'vocab.json'} and merges.txt are not a tokenizer: {error}") from error


def _added_tokens(folder: Path, config: Mapping[str, Any]) -> dict[int, str]:
    """Added tokens of a folder without ``tokenizer.json``, by id."""
    try:
        table = config.get("added_tokens_decoder")
        if table is not None:
            return {int(number): str(token["content"]) for number, token in table.items()}
        return {int(number): token for token, number in _read_json(folder / "added_tokens.json").items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder}: the table of added tokens cannot be read: {error}") from error


def bpe_description(
    vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]], added: Iterable[Mapping[str, Any]], kind: str
) -> dict[str, Any]:
    """The content of ``tokenizer.json`` for a byte-level BPE; ``kind`` (a key of :data:`PRE_TOKENIZERS`) says how text
    is split. ``added`` are ``{content, id, special}``."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, **token} for token in added
        ],
        "normalizer": {"type": "NFC"} if kind == "qwen2" else None,
        "pre_tokenizer": PRE_TOKENIZERS[kind],
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": kind == "llama-bpe",
            "vocab": dict(vocabulary),
            "merges": [list(pair) for pair in merges],
        },
    }


def _template(folder: Path, config: Mapping[str, Any]) -> str:
    """The chat template beside a tokenizer; empty for none. Of several the one called ``default``."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read: {error}") from error
    template = config.get("chat_template") or ""
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default", "")
    if not isinstance(template, str):
        raise DataError(f"{folder / 'tokenizer_config.json'}: chat_template is not text")
    return template


def _saved_stops(folder: Path, config: Mapping[str, Any]) -> list[int | str]:
    """Tokens that the files beside a tokenizer say end an answer. Raises DataError, naming file and key, for others."""
    generation = _read_json(folder / "generation_config.json").get("eos_token_id")
    named = config.get("eos_token")
    named = named.get("content") if isinstance(named, dict) else named
    generation = generation if isinstance(generation, list) else [generation]
    said = (
        ("tokenizer_config.json", STOPS_KEY, config.get(STOPS_KEY) or [], (str,)),
        ("tokenizer_config.json", "eos_token", [named] if named else [], (str,)),
        ("generation_config.json", "eos_token_id", generation, (int, str)),
    )
    stops: list[int | str] = []
    for file, key, tokens, kinds in said:
        if not isinstance(tokens, list):
            raise DataError(f"{folder / file}: {key} says what ends an answer, and {tokens!r} is no list of tokens")
        for token in tokens:
            if type(token) in kinds:
                stops.append(token)
            elif token is not None:
                raise DataError(f"{folder / file}: {key} says what ends an answer, and {token!r} is no token")
    return stops


class StreamDecoder:
    """Decodes one id at a time and holds back incomplete UTF-8, so every piece is whole characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = tokenizer._bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that ``token`` completes; often, in the middle of one, none."""
        return self._decoder.decode(self._bytes[token])

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that never became whole."""
        return self._decoder.decode(b"", final=True)


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(256 + number): byte for number, byte in enumerate(rest)}


def _token_bytes(description: Mapping[str, Any], control: Mapping[str, int]) -> Sequence[bytes]:
    """The bytes behind each id; empty for control tokens. Raises DataError for a token that spells no bytes."""
    alphabet = _byte_alphabet()
    vocabulary = {**description["model"]["vocab"], **control}
    table = [b""] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        if token not in control:
            try:
                table[number] = bytes([alphabet[character] for character in token])
            except KeyError as error:
                raise DataError(f"token {token!r} (id {number}) is not of a byte-level vocabulary") from error
    return table


def _plain(description: Mapping[str, Any], control: Mapping[str, int]) -> Backend:
    """The tokenizer without its added tokens, and without a way to make one. Raises DataError where that can't be."""
    model = description["model"]
    inside = control.keys() & model["vocab"].keys()
    spelt = inside.intersection(map("".join, model["merges"]))
    spelt |= inside.intersection(_byte_alphabet())
    if spelt:
        raise _leak(min(spelt))
    vocabulary = {token: number for token, number in model["vocab"].items() if token not in inside}
    model = {**model, "vocab": vocabulary, "unk_token": None, "dropout": None}
    plain = {**description, "model": model, "added_tokens": [], "post_processor": None}
    return Backend.from_str(json.dumps({**plain, "truncation": None, "padding": None}))


class _Pieces(dict[str, tuple[int, ...]]):
    """Ids by piece of text. Found by the library when they are asked for, and kept while there is room."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self._backend, self._model = backend, backend.model

    def __missing__(self, piece: str) -> tuple[int, ...]:
        if WORD.fullmatch(piece):  # which no pattern splits: four fifths of the library's time are saved
            spelt = piece.replace(" ", "Ġ")
            return _kept(self, piece, tuple(token.id for token in self._model.tokenize(spelt)))
        return _kept(self, piece, tuple(self._backend.encode(piece, add_special_tokens=False).ids))

    def cut(self, text: str) -> list[int]:
        """Ids of a text, by its pieces."""
        return list(chain.from_iterable(map(self.__getitem__, PIECE.findall(text))))


class _OpenEnd(Exception):
    """White space at the end of a word: what follows may belong to it."""


class _Words(dict[str, tuple[int, ...]]):
    """Ids by what stands between two blanks, with the blank in front of it; quicker to find than the pieces in it."""

    def __init__(self, pieces: _Pieces, blank: str) -> None:
        super().__init__()
        self._pieces, self._blank = pieces, blank

    def __missing__(self, word: str) -> tuple[int, ...]:
        if not word or word[-1].isspace():
            raise _OpenEnd
        return _kept(self, word, tuple(self._pieces.cut(self._blank + word)))


def _kept(known: dict[str, tuple[int, ...]], text: str, ids: tuple[int, ...]) -> tuple[int, ...]:
    if len(text) <= PIECE_LENGTH:
        if len(known) >= MOST_PIECES:
            known.clear()
        known[text] = ids
    return ids


def _cuts_at_blanks(description: Mapping[str, Any]) -> bool:
    """Whether the pre-tokenizer is one of which :data:`PIECE` holds true, and nothing else looks across a cut."""
    normalizer = description.get("normalizer")
    if normalizer is not None and normalizer.get("type") != "NFC":
        return False
    outer = description.get("pre_tokenizer") or {}
    steps = outer.get("pretokenizers", []) if outer.get("type") == "Sequence" else [outer]
    return bool(steps) and all(map(_cuts, steps))


def _cuts(step: Mapping[str, Any]) -> bool:
    kind = step.get("type")
    if kind == "Split":
        pattern = (step.get("pattern") or {}).get("Regex")
        known = (PATTERN, QWEN2_PATTERN, LLAMA3_PATTERN)
        return pattern in known and step.get("behavior") == "Isolated" and not step.get("invert")
    return kind == "Digits" or (kind == "ByteLevel" and not step.get("add_prefix_space"))


def _leak(token: str) -> DataError:
    return DataError(f"the tokenizer turns the plain text {token!r} into its control id")


def _split(pattern: str) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}


_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": _GPT2,
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _GPT2]},
    "qwen2": _split(QWEN2_PATTERN),
    "llama-bpe": _split(LLAMA3_PATTERN),
}
