"""The store of encoder features: what damages it, what fills it, what makes it stale."""

from __future__ import annotations

import errno
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from miniature import features_of

from components.encoders.config import EfficientNetLite as Config
from components.encoders.efficientnet_lite import EfficientNetLite
from ghostvis_plugins.types import Image
from stages.features import FeatureCache, encoder_fingerprint

Make = Callable[[], FeatureCache]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setenv("GHOSTVIS_CACHE", str(tmp_path))
    torch.manual_seed(0)
    encoder = EfficientNetLite(Config(image_size=32, feature_layer=1, weights="random"))
    encoder.init_weights()
    encoder.requires_grad_(False)
    rest: dict[str, Any] = {"memory_bytes": 2**20, "encode_batch": 2, "device": torch.device("cpu")}
    return lambda: FeatureCache(encoder, {}, on_disk=True, **rest)


def test_damaged_files_are_made_again(make: Make, make_picture: Callable[[int], Image]) -> None:
    """Whatever numpy raises for them: a header is a Python literal that may be cut or altered anywhere."""
    expected = features_of(make(), [make_picture(0)])
    (path,) = make().folder.rglob("*.npy")  # type: ignore[union-attr]
    whole = path.read_bytes()

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(at=st.integers(0, 127), value=st.integers(0, 255), length=st.integers(0, len(whole)))
    def check(at: int, value: int, length: int) -> None:
        damaged = bytearray(whole)
        damaged[at] = value
        path.write_bytes(damaged[:length] if length < 200 else damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (found,) = features_of(make(), [make_picture(0)])
        assert isinstance(found, torch.Tensor)
        assert found.shape == expected[0].shape  # type: ignore[union-attr]

    check()


@pytest.mark.parametrize("raised", [RecursionError, MemoryError, KeyError, SyntaxError, UnicodeDecodeError])
def test_any_error_of_reading_is_damage(
    make: Make, make_picture: Callable[[int], Image], monkeypatch: pytest.MonkeyPatch, raised: type[Exception]
) -> None:
    (expected,) = features_of(make(), [make_picture(0)])

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise raised("utf-8", b"", 0, 1, "damaged") if raised is UnicodeDecodeError else raised("damaged")

    monkeypatch.setattr(np, "load", fail)
    with pytest.warns(UserWarning, match=rf"damaged \({raised.__name__}"):
        (found,) = features_of(make(), [make_picture(0)])
    assert torch.equal(found, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["folder", "file", "rename"])
def test_a_full_disk_costs_the_store_and_not_the_run(
    make: Make, make_picture: Callable[[int], Image], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    def half(file: io.BufferedWriter, array: np.ndarray) -> None:
        file.write(array.tobytes()[:100])
        full()

    if where == "folder":
        monkeypatch.setattr(Path, "mkdir", full)
    elif where == "file":
        monkeypatch.setattr(np, "save", half)
    else:
        monkeypatch.setattr(Path, "replace", full)
    cache, pictures = make(), [make_picture(number) for number in range(5)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found, again = features_of(cache, pictures), features_of(cache, pictures)
    assert [str(warning.message) for warning in caught] == [
        f"features cannot be kept in {cache.folder} (No space left on device); from here on they stay in memory, and "
        "what does not fit there is encoded again"
    ]
    assert cache.encoded == 5
    assert all(map(torch.equal, found, again))  # type: ignore[arg-type]
    assert cache.folder is not None
    assert not [path for path in cache.folder.rglob("*") if path.is_file()], "nothing half written stays behind"


def test_another_way_of_decoding_makes_other_features(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make().encoder
    before = encoder_fingerprint(encoder, {})
    assert encoder_fingerprint(encoder, {}) == before
    monkeypatch.setattr("components.images.DECODE_VERSION", 99)
    assert encoder_fingerprint(encoder, {}) != before
