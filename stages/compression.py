"""How well a vocabulary compresses: bytes of text per token, beside the vocabularies of GPT-2 and GPT-4.

Those are read from what the machine has already, tiktoken's cache or the hub's; nothing is downloaded for a comparison.
One that is not there is said to be missing, with where it would be found.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ghostvis_plugins.errors import UnavailableError

Count = Callable[[str], int]
"""Text → number of its tokens."""

_BLOBS = "https://openaipublic.blob.core.windows.net"


@dataclass(frozen=True, slots=True)
class Reference:
    """A published vocabulary: tiktoken's name of it and the files it keeps, and a hub repository with the same one."""

    name: str
    encoding: str
    files: tuple[str, ...]
    repository: str

    def open(self) -> Count:
        """What counts its tokens. Raises UnavailableError when neither cache has it."""
        return self._tiktoken() or self._hub()

    def _tiktoken(self) -> Count | None:
        cached = [_cache() / hashlib.sha1(f"{_BLOBS}/{file}".encode()).hexdigest() for file in self.files]
        if find_spec("tiktoken") is None or not all(path.is_file() for path in cached):
            return None
        import tiktoken

        encoding = tiktoken.get_encoding(self.encoding)
        return lambda text: len(encoding.encode_ordinary(text))

    def _hub(self) -> Count:
        from huggingface_hub import try_to_load_from_cache
        from tokenizers import Tokenizer as Backend

        path = try_to_load_from_cache(self.repository, "tokenizer.json")
        if not isinstance(path, str):
            raise UnavailableError(
                f"not on this machine: neither {self.encoding} in tiktoken's cache nor {self.repository} in the hub's"
            )
        backend = Backend.from_file(path)
        return lambda text: len(backend.encode(text, add_special_tokens=False).ids)


REFERENCES = (
    Reference(
        "GPT-2",
        "gpt2",
        ("gpt-2/encodings/main/vocab.bpe", "gpt-2/encodings/main/encoder.json"),
        "openai-community/gpt2",
    ),
    Reference("GPT-4", "cl100k_base", ("encodings/cl100k_base.tiktoken",), "Xenova/gpt-4"),
)


def _cache() -> Path:
    """Where tiktoken keeps its files, as its ``load.py`` finds it."""
    chosen = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    return Path(chosen) if chosen else Path(tempfile.gettempdir()) / "data-gym-cache"


def compression(texts: Mapping[str, Sequence[str]], own: Count, references: Sequence[Reference] = REFERENCES) -> str:
    """A Markdown table of bytes per token for each data set's texts, and a line for each reference that is missing."""
    counts: dict[str, Count] = {"this vocabulary": own}
    missing: list[str] = []
    for reference in references:
        try:
            counts[reference.name] = reference.open()
        except UnavailableError as error:
            missing.append(f"{reference.name}: {error.message}.")
    rows = [["held-out texts", "bytes", *counts], ["---"] * (2 + len(counts))]
    sizes = {name: sum(len(text.encode()) for text in own_texts) for name, own_texts in texts.items()}
    tokens = {name: [sum(map(count, own_texts)) for count in counts.values()] for name, own_texts in texts.items()}
    if len(texts) > 1:
        sizes["all"] = sum(sizes.values())
        tokens["all"] = [sum(column) for column in zip(*tokens.values(), strict=True)]
    for name, size in sizes.items():
        rows.append([name, f"{size:,}", *(f"{size / max(count, 1):.3f}" for count in tokens[name])])
    return "\n".join(["\n".join(f"| {' | '.join(row)} |" for row in rows), *(f"\n{line}" for line in missing)])
