"""Decoding is safe and says what is wrong; pixels are what the arithmetic says."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.images import MAX_PIXELS, decode, resize, to_pixels, transform_hash
from ghostvis_plugins.errors import ConfigError, DataError, ExitCode
from ghostvis_plugins.types import Image

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encode(image: PIL.Image.Image, format: str = "PNG", **options: object) -> Image:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return Image(data=buffer.getvalue())


def halves(mode: str = "RGB", size: tuple[int, int] = (8, 4)) -> PIL.Image.Image:
    """Left half red, right half blue."""
    image = PIL.Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image.convert(mode)


def failure(image: Image, **options: int) -> str:
    with pytest.raises(DataError) as caught:
        decode(image, **options)
    assert caught.value.exit_code == ExitCode.DATA
    return str(caught.value)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_formats(format):
    options = {"lossless": True} if format == "WEBP" else {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    found = np.asarray(decode(encode(halves(size=(16, 16)), format, **options)), dtype=int)
    assert np.abs(found - np.asarray(halves(size=(16, 16)), dtype=int)).max() <= (4 if format == "JPEG" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    """Store a picture the way a camera held that way does; it comes back upright."""
    upright = PIL.Image.new("RGB", (6, 4), "white")
    upright.putpixel((0, 0), RED)
    upright.putpixel((5, 0), BLUE)
    undo = (
        None,
        "FLIP_LEFT_RIGHT",
        "ROTATE_180",
        "FLIP_TOP_BOTTOM",
        "TRANSPOSE",
        "ROTATE_90",
        "TRANSVERSE",
        "ROTATE_270",
    )
    turn = undo[orientation - 1]
    stored = upright.transpose(PIL.Image.Transpose[turn]) if turn else upright
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(np.asarray(decode(encode(stored, "PNG", exif=exif))), np.asarray(upright))


def test_transparency_becomes_white():
    clear = PIL.Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear.putpixel((1, 0), (255, 0, 0, 128))
    assert decode(encode(clear)).getpixel((0, 0)) == (255, 255, 255)
    assert decode(encode(clear)).getpixel((1, 0)) == (255, 127, 127)
    gray = PIL.Image.new("LA", (1, 1), (0, 0))
    assert decode(encode(gray)).getpixel((0, 0)) == (255, 255, 255)


def test_palette_with_transparency():
    image = PIL.Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((1, 0), 1)
    found = decode(encode(image, transparency=0))
    assert [found.getpixel((0, 0)), found.getpixel((1, 0))] == [(255, 255, 255), RED]


def test_rgb_with_a_transparent_colour():
    found = decode(encode(halves(), transparency=BLUE))
    assert [found.getpixel((0, 0)), found.getpixel((7, 0))] == [RED, (255, 255, 255)]


def test_cmyk_jpeg():
    found = np.asarray(decode(encode(halves("CMYK", (16, 16)), "JPEG", quality=95)), dtype=int)
    assert np.abs(found - np.asarray(halves(size=(16, 16)), dtype=int)).max() < 12


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_gray_keeps_its_range(format):
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    found = np.asarray(decode(encode(PIL.Image.fromarray(values), format)))
    assert found[0, :, 0].tolist() == [0, 1, 128, 255]


def test_float_tiff_is_refused():
    assert "value range" in failure(encode(PIL.Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF"))


def test_black_and_white_and_gray():
    assert decode(encode(PIL.Image.new("1", (3, 2), 1))).getpixel((0, 0)) == (255, 255, 255)
    assert decode(encode(PIL.Image.new("L", (3, 2), 77))).getpixel((0, 0)) == (77, 77, 77)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(format):
    options = {"lossless": True} if format == "WEBP" else {}
    first, second = PIL.Image.new("RGB", (4, 4), RED), PIL.Image.new("RGB", (4, 4), BLUE)
    assert decode(encode(first, format, save_all=True, append_images=[second], **options)).getpixel((1, 1)) == RED


def test_missing_file(tmp_path):
    text = failure(Image(path=str(tmp_path / "cat.jpg")))
    assert "cat.jpg" in text
    assert "No such file" in text


def test_folder(tmp_path):
    assert str(tmp_path) in failure(Image(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "empty"),
        (b"hello, I am not a picture\n" * 3, "text file"),
        ("grüße\n".encode() * 100, "text file"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\x00\x01\x02\x03" * 50, "not an image"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "HEIC"),
    ],
)
def test_what_a_file_is_instead(tmp_path, data, what):
    path = tmp_path / "picture.jpg"
    path.write_bytes(data)
    text = failure(Image(path=str(path)))
    assert "picture.jpg" in text
    assert what in text


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_truncated(tmp_path, format):
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, format).read()
    path = tmp_path / f"half.{format.lower()}"
    path.write_bytes(data[: len(data) // 2])
    text = failure(Image(path=str(path)))
    assert path.name in text


def bomb(width: int, height: int) -> bytes:
    """A small PNG whose header promises ``width`` x ``height`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_000, 12_000, 30_000, 100_000])
def test_bombs_are_refused_before_they_are_decoded(side, monkeypatch):
    monkeypatch.setattr(PIL.Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("pixels were decoded"))
    text = failure(Image(data=bomb(side, side)))
    assert "too large" in text
    assert "40 megapixels" in text


def test_the_limit_is_inclusive():
    image = encode(PIL.Image.new("RGB", (10, 10)))
    assert decode(image, max_pixels=100).size == (10, 10)
    assert "10 x 10" in failure(image, max_pixels=99)
    assert MAX_PIXELS == 40_000_000


def test_squash_and_pad_geometry():
    wide = PIL.Image.new("RGB", (40, 10), RED)
    squashed = np.asarray(resize(wide, 20))
    assert (squashed == RED).all()
    padded = np.asarray(resize(wide, 20, fit="pad"))
    red = (padded == RED).all(axis=-1)
    assert red.sum() == 20 * 5
    assert red[7:12].all()
    assert (padded[~red] == 255).all()


def test_pixels_are_normalised_channels_first():
    pixels = to_pixels(halves(), (4, 8), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    assert pixels.shape == (3, 4, 8)
    assert pixels.dtype.is_floating_point
    assert pixels[:, 0, 0].tolist() == [1.0, -1.0, 0.0]
    assert pixels[:, 0, 7].tolist() == [-1.0, -1.0, 1.0]
    assert pixels.is_contiguous()


def test_scaling_down_is_antialiased():
    """Alternate black and white columns average to gray; picking columns would give one of the two."""
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    for method in ("bilinear", "bicubic", "lanczos"):
        middle = to_pixels(PIL.Image.fromarray(stripes), 8, interpolation=method)[:, 2:-2, 2:-2]
        assert middle.abs().max() < 0.1


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    mode=st.sampled_from(["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "HSV", "LAB"]),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    fit=st.sampled_from(["squash", "pad"]),
)
def test_any_size_and_mode(width, height, mode, size, fit):
    base = np.random.default_rng(width * 100 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    source = PIL.Image.fromarray(base)
    if mode == "I;16":
        source = PIL.Image.fromarray(base[..., 0].astype(np.uint16) * 257)
    elif mode == "LAB":
        source = PIL.Image.frombytes("LAB", (width, height), base.tobytes())
    elif mode == "PA":
        source = source.convert("P").convert("PA")
    else:
        source = source.convert(mode)
    format = "PNG" if mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else "TIFF"
    if mode in ("PA", "HSV"):
        source = source.convert("RGBA")
    found = decode(encode(source, format))
    assert found.mode == "RGB"
    assert found.size == (width, height)
    pixels = to_pixels(found, size, fit=fit)
    assert pixels.shape == (3, *size)
    assert pixels.abs().max() <= 1.0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), format=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"]))
def test_damaged_bytes_never_end_in_anything_but_a_data_error(data, format):
    original = bytearray(encode(halves(size=(24, 24)), format).read())
    for _ in range(data.draw(st.integers(1, 6))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataError):
        assert decode(Image(data=bytes(original)), max_pixels=1_000_000).mode == "RGB"


@pytest.mark.parametrize("options", [{"interpolation": "best"}, {"fit": "stretch"}])
def test_unknown_modes(options):
    with pytest.raises(ConfigError, match="one of"):
        to_pixels(halves(), 8, **options)


def test_transform_hash():
    one = {"size": (224, 224), "mean": [0.5, 0.5, 0.5], "fit": "squash", "scale": 1}
    same = {"scale": 1.0, "fit": "squash", "mean": (0.5, 0.5, 0.5), "size": [224, 224]}
    assert transform_hash(one) == transform_hash(same)
    assert transform_hash(one) != transform_hash({**one, "fit": "pad"})
    assert transform_hash(one) != transform_hash({**one, "size": (224, 225)})
    assert len(transform_hash(one)) == 16
    with pytest.raises(ValueError, match="JSON"):
        transform_hash({"mean": float("nan")})


def test_decoding_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, components.images, components.datasets.scenes; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
