"""Byte-level BPE whose control tokens no text can produce.

A tokenizer has two views of the same vocabulary. The one that is saved knows the added tokens
(``<|im_start|>`` and friends), so other tools that load the folder see a normal chat tokenizer. The one
that ``encode`` goes through was stripped of them: whatever a user types is ordinary text, and control
ids enter a sequence only by number (:mod:`components.rendering`).

Notable choices:

- a line break is always a token of its own, so a ChatML header and the text behind it tokenise the same
  alone and together, and segment-wise ids equal those of the saved chat template;
- control tokens take the last ids, outside the BPE model's own vocabulary;
- decoding goes through bytes, so a whole answer and a streamed one are the same by construction.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from ghostvis_plugins.errors import ConfigError, DataError, MissingError

END_OF_TEXT, IM_START, IM_END, IMAGE = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image|>"
TOOL_CALL, TOOL_CALL_END = "<tool_call>", "</tool_call>"
TOOL_RESPONSE, TOOL_RESPONSE_END = "<tool_response>", "</tool_response>"
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
    """Text to ids and back. ``encode`` is safe for any text; control ids are in :attr:`control`."""

    def __init__(self, backend: Backend, chat_template: str = CHAT_TEMPLATE) -> None:
        """Raises DataError when ``backend`` is not byte-level, lacks a control token, or could leak one."""
        description = json.loads(backend.to_str())
        if "ByteLevel" not in json.dumps(description["decoder"]):
            raise DataError("the tokenizer is not byte-level BPE; GhostVis decodes through bytes and needs it to be")
        self.control: dict[str, int] = {token["content"]: token["id"] for token in description["added_tokens"]}
        missing = [token for token in CONTROL_TOKENS if token not in self.control]
        if missing:
            raise DataError(f"the tokenizer has no token {', '.join(missing)}")
        self.chat_template = chat_template
        self._backend = backend
        self._plain = Backend.from_str(json.dumps({**description, "added_tokens": [], "post_processor": None}))
        self.eos = self.control[END_OF_TEXT]
        self.im_start = self.control[IM_START]
        self.im_end = self.control[IM_END]
        self.image = self.control[IMAGE]
        self._bytes = _token_bytes(backend, self.control)
        self._cached = lru_cache(maxsize=16384)(self._encode)
        self.control_ids = frozenset(self.control.values())
        self.plain_ids = tuple(number for number, text in enumerate(self._bytes) if text)
        for token in self.control:
            if self.control_ids.intersection(self._encode(token)):
                raise DataError(f"the tokenizer turns the plain text {token!r} into its control id")

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._plain.encode(text, add_special_tokens=False).ids)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` as plain text: never the id of a control or other added token."""
        return list(self.encode_tuple(text))

    def encode_tuple(self, text: str) -> tuple[int, ...]:
        """The same without a copy; short texts (role headers, common questions) come from a cache."""
        return self._cached(text) if len(text) <= 256 else self._encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; control tokens carry none. Invalid UTF-8 becomes U+FFFD."""
        return b"".join([self._bytes[i] for i in ids]).decode("utf-8", "replace")

    def encode_template(self, text: str) -> list[int]:
        """Ids of an already rendered chat template, control tokens recognised. Never for a user's text."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    @property
    def vocab_size(self) -> int:
        """Number of ids, control tokens included."""
        return len(self._bytes)

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
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": IM_END,
            "pad_token": END_OF_TEXT,
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read a folder written by :meth:`save`. Raises MissingError without one, DataError when it is corrupt."""
        file = Path(folder) / "tokenizer.json"
        if not file.is_file():
            raise MissingError(f"{folder} holds no tokenizer (no tokenizer.json)")
        try:
            backend = Backend.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception for every kind of damage
            raise DataError(f"{file} is not a tokenizer: {error}") from error
        template = Path(folder) / "chat_template.jinja"
        return cls(backend, template.read_text(encoding="utf-8") if template.is_file() else CHAT_TEMPLATE)


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


def _token_bytes(backend: Backend, control: dict[str, int]) -> Sequence[bytes]:
    """The bytes behind each id; empty for control tokens and for ids that the vocabulary skips."""
    alphabet = _byte_alphabet()
    vocabulary = backend.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        if token not in control:
            table[number] = bytes([alphabet[character] for character in token])
    return table
