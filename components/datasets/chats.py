"""Conversations that models wrote: SmolTalk and OpenThoughts.

- ``smoltalk``: HuggingFaceTB/smoltalk (Apache-2.0, older sources under licences of their own), ``messages`` of role and
  content, and their ``source``; a folder of its smaller sibling HuggingFaceTB/smol-smoltalk is read too. Published
  splits: train and test.
- ``openthoughts``: open-thoughts/OpenThoughts3-1.2M (Apache-2.0), ``conversations`` in ShareGPT's shape, with
  ``difficulty``, ``source`` and ``domain``; a folder of OpenThoughts-114k, which has a ``system`` prompt instead, is
  read too. What the model thought is part of the answer's text as published (``<think>…</think>`` in the former, other
  marks in the latter), and is learnt as the text that it is.
"""

from __future__ import annotations

from components.datasets.messages import sample_of
from components.datasets.published import Layout, Published, Source
from components.datasets.tables import INT, STRING, Row, Schema, list_of, struct_of
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Image, Sample

_MESSAGES = Schema(
    required={"messages": list_of(struct_of(content=STRING, role=STRING))},
    optional={"source": STRING},
)
_CONVERSATIONS = Schema(
    required={"conversations": list_of(struct_of(**{"from": STRING, "value": STRING}))},
    optional={"system": STRING, "difficulty": INT, "source": STRING, "domain": STRING},
)


def conversation(row: Row, source: Source) -> Sample:
    """Messages of text; a system prompt in a column of its own comes first."""
    row = {key: value for key, value in row.items() if value is not None and not key.startswith("_")}
    prompt = row.pop("system", None)
    if prompt:
        row["conversations"] = [{"from": "system", "value": prompt}, *row["conversations"]]
    return sample_of(row, id="", picture=_none)


def _none(source: str) -> Image:
    raise DataError(f"a picture ({source[:80]}) in a set of texts")


SMOLTALK = Published(
    name="smoltalk",
    license="Apache-2.0; older sources their own",
    size="2.2 GB",
    repo="HuggingFaceTB/smoltalk",
    layouts=(
        Layout(
            files={"train": ["data/{subset}/train-*.parquet"], "test": ["data/{subset}/test-*.parquet"]},
            schema=_MESSAGES,
            convert=conversation,
        ),
        Layout(
            files={"train": ["data/train-*.parquet"], "test": ["data/test-*.parquet"]},
            schema=_MESSAGES,
            convert=conversation,
            hub=False,
        ),
    ),
)

OPENTHOUGHTS = Published(
    name="openthoughts",
    license="Apache-2.0",
    size="28 GB",
    repo="open-thoughts/OpenThoughts3-1.2M",
    layouts=(Layout(files={"train": ["data/train-*.parquet"]}, schema=_CONVERSATIONS, convert=conversation),),
)
