"""The tokenizer of a checkpoint as a folder that :meth:`components.tokenizers.Tokenizer.load` reads.

A folder of Hugging Face's holds it already. A GGUF file carries the same facts as fields (``tokenizer.ggml.*``), and
they are written to the cache once, as ``tokenizer.json`` and ``tokenizer_config.json``.

How text is split before its bytes are merged is a mere name in a GGUF file (``tokenizer.ggml.pre``). The splits used
here are those that the checkpoint was trained with. Where llama.cpp, which gave the names, deviates:

- ``qwen2``: text is normalised to NFC first; llama.cpp does not normalise, so decomposed accents differ;
- ``smollm``: every digit by itself, then GPT-2's split. (transformers' own GGUF import leaves the digits out, and
  its ids differ from ours on numbers; llama.cpp splits them.)
- ``gpt-2``, ``llama-bpe``: none known.

What counts as a letter, a digit or white space follows the Unicode tables of the library, which may be of another
version than llama.cpp's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.cache import cache_dir, publish
from components.tokenizers import PRE_TOKENIZERS, bpe_description
from ghostvis_plugins.errors import DataError, MissingError

from .gguf import GGUFFile, open_gguf

FORMAT = 1  # of what is written to the cache
FILES = ("tokenizer.json", "tokenizer_config.json")
CONTROL, USER_DEFINED, UNUSED, UNKNOWN = 3, 4, 5, 2  # token types of GGUF; 1 is ordinary text


def tokenizer_folder(source: Path) -> Path:
    """A folder with the tokenizer of ``source``: a folder (which is returned as it is), a ``.gguf`` file, or another
    file of weights, whose tokenizer lies beside it.

    Raises MissingError when there is no tokenizer, DataError when it is damaged or of a kind that is not supported.
    """
    source = Path(source)
    if source.is_file() and source.suffix != ".gguf":
        source = source.parent
    if source.is_dir():
        if not any((source / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise MissingError(
                f"{source} holds no tokenizer (no tokenizer.json, and no vocab.json with merges.txt)",
                hint="Copy the tokenizer files of the checkpoint into that folder.",
            )
        return source
    if not source.is_file():
        raise MissingError(f"no tokenizer at {source}: there is no such file or folder")
    about = os.stat(source)
    identity = f"{FORMAT} {source.resolve()} {about.st_size} {about.st_mtime_ns}"
    target = cache_dir() / "tokenizers" / f"{source.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if _complete(target):
        return target
    files = _convert(source)

    def fill(folder: Path) -> None:
        for name, content in zip(FILES, files, strict=True):
            (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    return publish(target, fill, is_valid=_complete)


def _complete(folder: Path) -> bool:
    """Whether both files are there and whole."""
    try:
        return all((folder / name).read_bytes()[-1:] == b"}" for name in FILES)
    except OSError:
        return False


def _convert(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The contents of ``tokenizer.json`` and ``tokenizer_config.json``."""
    file = open_gguf(path)
    model, kind = file.field("tokenizer.ggml.model"), file.field("tokenizer.ggml.pre")
    if model != "gpt2" or not isinstance(kind, str) or kind not in PRE_TOKENIZERS:
        raise DataError(
            f"{path}: a tokenizer of model {model!r} with pre-tokenizer {kind!r} is not supported",
            hint=f"Supported: model 'gpt2' (byte-level BPE) with {', '.join(PRE_TOKENIZERS)}.",
        )
    tokens = _list(file, "tokens", str)
    types = _list(file, "token_type", int)
    merges = [pair.split(" ") for pair in _list(file, "merges", str)]
    if len(types) != len(tokens):
        raise DataError(f"{path}: {len(tokens)} tokens and {len(types)} token types")
    if bad := next((pair for pair in merges if len(pair) != 2), None):
        raise DataError(f"{path}: merge {' '.join(bad)!r} is no pair of tokens")
    used = len(tokens)
    while used and types[used - 1] == UNUSED:  # rows that only round the embedding up
        used -= 1
    vocabulary = {token: number for number, token in enumerate(tokens[:used])}
    if len(vocabulary) != used:
        raise DataError(f"{path}: {used - len(vocabulary)} of {used} tokens are there twice")
    added = [
        {"content": token, "id": number, "special": types[number] != USER_DEFINED}
        for number, token in enumerate(tokens[:used])
        if types[number] in (CONTROL, USER_DEFINED, UNUSED, UNKNOWN)
    ]
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name in ("bos", "eos"):
        number = file.field(f"tokenizer.ggml.{name}_token_id")
        if number is not None:
            if not isinstance(number, int) or not 0 <= number < used:
                raise DataError(f"{path}: {name}_token_id {number} is no id of its {used} tokens")
            config[f"{name}_token"] = tokens[number]
    template = file.field("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    return bpe_description(vocabulary, merges, added, kind), config


def _list(file: GGUFFile, name: str, kind: type) -> Sequence[Any]:
    values = file.field(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not values or not all(isinstance(value, kind) for value in values):
        raise DataError(f"{file.path}: field tokenizer.ggml.{name} is missing or not a list of {kind.__name__}")
    return values
