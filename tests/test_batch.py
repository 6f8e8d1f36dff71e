"""Packing: boundaries, positions, targets and image spans."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.batch import Batch
from components.rendering import Rendered
from ghostvis_plugins import DataError
from ghostvis_plugins.types import Image

PICTURE = Image(data=b"never decoded here")
MARK = 9


def doc(
    ids: list[int], mask: list[bool] | None = None, spans: list[tuple[int, int]] | None = None, name: str = "a"
) -> Rendered:
    spans = spans or []
    return Rendered(ids, mask or [True] * len(ids), spans, (PICTURE,) * len(spans), name)


@given(
    st.lists(st.lists(st.tuples(st.integers(10, 99), st.booleans()), min_size=1, max_size=9), min_size=1, max_size=6)
)
def test_targets_are_the_masked_tokens_after_the_first_of_each_document(docs: list[list[tuple[int, bool]]]) -> None:
    batch = Batch.pack([doc([t for t, _ in d], [m for _, m in d], name=str(n)) for n, d in enumerate(docs)])
    assert batch.ids[batch.target_rows + 1].tolist() == [t for d in docs for t, m in d[1:] if m]
    assert batch.positions.tolist() == [n for d in docs for n in range(len(d))]
    assert batch.document_ids.tolist() == [n for n, d in enumerate(docs) for _ in d]
    assert batch.cu_seqlens.tolist() == [sum(len(d) for d in docs[:n]) for n in range(len(docs) + 1)]
    assert batch.cu_seqlens.dtype == torch.int32


def test_image_rows_are_those_of_the_placeholders() -> None:
    batch = Batch.pack([
        doc([1, MARK, MARK, 2, MARK, MARK], spans=[(1, 2), (4, 2)], name="two"),
        doc([3, 4], name="none"),
        doc([MARK, MARK, 5], spans=[(0, 2)], name="one"),
    ])  # fmt: skip
    assert torch.equal(batch.image_rows, torch.nonzero(batch.ids == MARK).flatten())
    assert batch.image_owner == [0, 0, 2]
    assert batch.placeholders == [4, 0, 2]
    assert len(batch.images) == 3


@pytest.mark.parametrize(
    ("rendered", "message"),
    [
        (doc([1, MARK], spans=[(1, 2)], name="cut"), "'cut'.*outside"),
        (doc([MARK, MARK, 1], spans=[(0, 1)], name="more"), "'more': 2 image placeholders, 1 of them"),
        (doc([MARK, 1, 1], spans=[(0, 2)], name="fewer"), "'fewer'"),
        (Rendered([1, 2], [True], [], (), "mask"), "'mask'.*loss mask"),
        (Rendered([MARK], [True], [(0, 1)], (), "lost"), "'lost': 0 images, but 1"),
    ],
)
def test_a_sample_that_contradicts_itself_is_named(rendered: Rendered, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Batch.pack([doc([MARK, 1], spans=[(0, 1)], name="fine"), rendered])


def test_a_stray_placeholder_in_another_document_is_found() -> None:
    with pytest.raises(DataError, match="'stray': 1 image placeholders, 0 of them"):
        Batch.pack([doc([MARK, 1], spans=[(0, 1)], name="fine"), doc([1, MARK], name="stray")])
