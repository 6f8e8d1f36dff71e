"""Web text for pretraining, a document a row: FineWeb-Edu and ClimbMix.

- ``fineweb_edu``: HuggingFaceFW/fineweb-edu (ODC-By 1.0). Parquet with ``text`` and ten columns about it. No split but
  train is published: 1 % of the rows are set aside, a hundred neighbours at a time, because a hash for each of
  millions of rows takes long. The shuffled copy karpathy/fineweb-edu-100b-shuffle (``text`` alone) is read as well.
- ``climbmix``: karpathy/climbmix-400b-shuffle, shuffled shards of nvidia/Nemotron-ClimbMix (CC BY-NC 4.0) as text. Its
  last shard is validation, as in nanochat, so that numbers compare. The publisher's own files hold token ids of GPT-2
  instead of text and are not read.
"""

from __future__ import annotations

from components.datasets.config_text import CLIMBMIX_HELD_OUT
from components.datasets.published import Layout, Published, Source, words
from components.datasets.tables import FLOAT, INT, STRING, Row, Schema
from ghostvis_plugins.types import Document

_PAGE = Schema(
    required={"text": STRING},
    optional={
        "id": STRING,
        "dump": STRING,
        "url": STRING,
        "file_path": STRING,
        "language": STRING,
        "language_score": FLOAT,
        "token_count": INT,
        "score": FLOAT,
        "int_score": INT,
    },
)
_TEXT = Schema(required={"text": STRING})
BLOCK = 100  # neighbouring rows that are set aside together


def _document(row: Row, source: Source) -> Document:
    words(row["text"], "text")  # an empty one is a bad sample; of others, the space around them counts
    return Document(row["text"])


FINEWEB_EDU = Published(
    name="fineweb_edu",
    license="ODC-By-1.0",
    size="28 GB for 10 billion tokens",
    repo="HuggingFaceFW/fineweb-edu",
    layouts=(
        Layout(files={"train": ["{subset}/*.parquet"]}, schema=_PAGE, convert=_document, block=BLOCK),
        Layout(files={"train": ["shard_*.parquet"]}, schema=_TEXT, convert=_document, block=BLOCK, hub=False),
    ),
)

CLIMBMIX = Published(
    name="climbmix",
    license="CC-BY-NC-4.0",
    size="90 MB a shard, 600 GB in all",
    repo="karpathy/climbmix-400b-shuffle",
    layouts=(
        Layout(
            files={"train": ["shard_{shards}.parquet"], "validation": [f"shard_{CLIMBMIX_HELD_OUT}.parquet"]},
            schema=_TEXT,
            convert=_document,
        ),
    ),
)
