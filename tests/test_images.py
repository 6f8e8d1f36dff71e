"""Decoding is safe and says what is wrong; pixels are what the arithmetic says."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageChops
import PIL.ImageOps
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.images import FORMATS, MAX_PIXELS, decode, frame, pixels_of, to_pixels, transform_hash
from ghostvis_plugins.errors import ConfigError, DataError, ExitCode
from ghostvis_plugins.types import Image

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
LOSSLESS = {
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 100, "subsampling": 0},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}
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


@pytest.mark.parametrize("size", [(16, 16), (2, 1), (2, 40), (600, 1)])
@pytest.mark.parametrize("format", FORMATS)
def test_formats(format, size):
    found = np.asarray(decode(encode(halves(size=size), format, **LOSSLESS.get(format, {}))), dtype=int)
    assert found.shape == (size[1], size[0], 3)
    assert np.abs(found - np.asarray(halves(size=size), dtype=int)).max() <= (4 if format in ("JPEG", "AVIF") else 0)


def test_heic():
    pytest.importorskip("pi_heif")
    found = np.asarray(decode(Image(path=str(DATA / "halves.heic"))), dtype=int)
    assert np.abs(found - np.asarray(halves(size=(64, 32)), dtype=int)).max() <= 4
    assert "64 x 32" in failure(Image(path=str(DATA / "halves.heic")), max_pixels=2000)


def test_heic_without_its_library(monkeypatch):
    monkeypatch.setattr("components.images._can_read_heic", lambda: False)
    text = failure(Image(path=str(DATA / "halves.heic")))
    assert "halves.heic: is a HEIC image, which needs pi-heif" in text
    assert "pip install pi-heif" in text


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


def test_ycck_jpeg():
    """As Photoshop writes it: an Adobe marker, colours as YCC of the inverted CMY, black inverted beside them.

    Pillow writes CMYK only, so it is handed the numbers that a YCCK file stores, and the marker is changed.
    """
    inverted = PIL.ImageOps.invert(halves(size=(16, 16))).convert("YCbCr")
    stored = PIL.Image.merge("CMYK", [*inverted.split(), PIL.Image.new("L", (16, 16), 255)])
    data = encode(PIL.ImageChops.invert(stored), "JPEG", quality=100, subsampling=0).read()
    marker = data.index(b"Adobe")
    assert data[marker + 11] == 0
    data = data[: marker + 11] + b"\x02" + data[marker + 12 :]
    found = np.asarray(decode(Image(data=data)), dtype=int)
    assert np.abs(found - np.asarray(halves(size=(16, 16)), dtype=int)).max() < 6


DEEP = np.array([[[0, 257, 32896], [65535, 65535, 65535], [51400, 0, 771]]], dtype=np.uint16)  # 257 x an 8-bit value


@pytest.mark.parametrize("kind", ["gray", "gray+alpha", "RGB", "RGBA"])
def test_sixteen_bit_png(kind):
    colours = DEEP if "RGB" in kind else DEEP[..., :1]
    alpha = np.full((*DEEP.shape[:2], 1), 65535, dtype=np.uint16)
    alpha[0, 2] = 0
    clear = kind in ("gray+alpha", "RGBA")
    values = np.concatenate((colours, alpha), axis=2) if clear else colours
    code = {"gray": 0, "RGB": 2, "gray+alpha": 4, "RGBA": 6}[kind]
    data = png(3, 1, b"\0" + values.astype(">u2").tobytes(), bits=16, code=code)
    expected = np.broadcast_to(colours // 257, DEEP.shape).copy()
    if clear:
        expected[0, 2] = 255
    assert np.array_equal(np.asarray(decode(Image(data=data))), expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("samples", [1, 3])
def test_sixteen_bit_tiff(samples, order):
    """Uncompressed, in one strip, by the TIFF 6.0 specification."""
    pixels = DEEP[..., :samples].astype(f"{order}u2").tobytes()
    tags = {256: 3, 257: 1, 259: 1, 262: 1 if samples == 1 else 2, 273: 8, 277: samples, 278: 1, 279: len(pixels)}
    if samples == 1:
        tags[258] = 16
    directory = b"".join(
        struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(tags.items()) if tag < 258
    )
    place = 8 + len(pixels)
    if samples == 3:
        directory += struct.pack(f"{order}HHII", 258, 3, 3, place)
        pixels += struct.pack(f"{order}HHH", 16, 16, 16)
        place += 6
    directory += b"".join(
        struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(tags.items()) if tag >= 258
    )
    count = struct.pack(f"{order}H", len(directory) // 12)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, place)
    found = np.asarray(decode(Image(data=head + pixels + count + directory + bytes(4))))
    assert np.array_equal(found, np.broadcast_to(DEEP[..., :samples] // 257, DEEP.shape))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_with_alpha(bits):
    """Two colours: the first half clear over white, the second opaque."""
    data = png(2, 1, bytes([0, 0b01 << (8 - 2 * bits) & 255] if bits < 8 else [0, 0, 1]), bits=bits, code=3,
               more={b"PLTE": bytes([0, 0, 255, *RED]), b"tRNS": bytes([128])})  # fmt: skip
    found = decode(Image(data=data))
    assert [found.getpixel((0, 0)), found.getpixel((1, 0))] == [(127, 127, 255), RED]


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


@pytest.mark.parametrize("format", sorted({"GIF", "WEBP", "PNG", "TIFF", "AVIF"}.intersection(FORMATS)))
def test_first_frame_of_an_animation(format):
    options = LOSSLESS.get(format, {})
    first, second = PIL.Image.new("RGB", (4, 4), RED), PIL.Image.new("RGB", (4, 4), BLUE)
    data = encode(first, format, save_all=True, append_images=[second], **options)
    assert PIL.Image.open(io.BytesIO(data.read())).n_frames == 2
    found = np.asarray(decode(data), dtype=int)
    assert np.abs(found - np.asarray(first, dtype=int)).max() <= (4 if format == "AVIF" else 0)


def test_a_photo_with_a_second_picture_in_it():
    """MPO, as phones write it: the first picture."""
    data = encode(halves(size=(16, 16)), "MPO", save_all=True, append_images=[PIL.Image.new("RGB", (16, 16))]).read()
    assert np.abs(np.asarray(decode(Image(data=data)))[8, 2] - np.array(RED)).max() < 8
    exact, fast = (pixels_of(Reader(way), Image(data=data)) for way in ("exact", "fast"))
    assert (exact - fast).abs().max() * 255 < 2.01


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


@pytest.mark.parametrize("tenths", range(1, 10))
@pytest.mark.parametrize("format", FORMATS)
def test_truncated(tmp_path, format, tenths):
    """Also by the way that is fast: libjpeg alone would fill up with gray."""
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, format).read()
    path = tmp_path / f"part.{format.lower()}"
    path.write_bytes(data[: len(data) * tenths // 10])
    text = failure(Image(path=str(path)))
    assert path.name in text
    with pytest.raises(DataError, match=path.name):
        pixels_of(Reader("fast"), Image(path=str(path)))


def png(width: int, height: int, rows: bytes, *, bits: int = 8, code: int = 2, more: dict[bytes, bytes] | None = None):
    """A PNG by its specification. ``rows`` begin with their filter byte, ``code`` is the colour type."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, bits, code, 0, 0, 0),
        **(more or {}),
        b"IDAT": zlib.compress(rows, 9),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks.items())


@pytest.fixture
def undecoded(monkeypatch):
    monkeypatch.setattr(PIL.Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("pixels were decoded"))
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *a, **k: pytest.fail("pixels were decoded"))


@pytest.mark.parametrize("side", [8_000, 12_000, 30_000, 100_000])
@pytest.mark.usefixtures("undecoded")
def test_bombs_are_refused_before_they_are_decoded(side):
    text = failure(Image(data=png(side, side, b"\0" * 100_000)))
    assert "too large" in text
    assert "40 megapixels" in text


@pytest.mark.usefixtures("undecoded")
def test_a_whole_bomb():
    """200 megapixels, every one of them there, in 24 KB; a WebP of 268 in 34 bytes; a JPEG header of 4,295."""
    data = png(20_000, 10_000, bytes(10_000 * (1 + 20_000 // 8)), bits=1, code=0)
    assert len(data) < 25_000
    webp = bytes.fromhex("524946461a000000574542505650384c0e0000002ffebfff0f071011fd0f4444ff03")
    jpeg = bytes.fromhex("ffd8ffc0000b08ffffffff01011100") + b"\xff\xda" + bytes(20)
    for bomb in (data, webp, jpeg):
        assert "too large" in failure(Image(data=bomb))
        with pytest.raises(DataError, match="too large"):
            pixels_of(Reader("fast"), Image(data=bomb))


def test_the_limit_is_inclusive():
    image = encode(PIL.Image.new("RGB", (10, 10)))
    assert decode(image, max_pixels=100).size == (10, 10)
    assert "10 x 10" in failure(image, max_pixels=99)
    assert MAX_PIXELS == 40_000_000


class Reader:
    """The preprocessing of an encoder alone."""

    def __init__(self, resize: str, **options: object) -> None:
        self.options = {"size": 32, "mean": [0, 0, 0], "std": [1, 1, 1], "resize": resize, **options}

    def transform(self) -> dict[str, object]:
        return self.options

    def preprocess(self, image: object) -> object:
        return to_pixels(image, **self.options)


@settings(max_examples=50, deadline=None)
@given(
    width=st.integers(1, 200),
    height=st.integers(1, 200),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    mode=st.sampled_from(["L", "RGB"]),
    coding=st.fixed_dictionaries(
        {"subsampling": st.integers(0, 2), "progressive": st.booleans(), "quality": st.integers(5, 95)}
    ),
)
def test_fast_is_exact_but_for_rounding(width, height, size, interpolation, mode, coding):
    """The values that Pillow decodes, under the filter that Pillow has, first the width and then the height."""
    values = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = encode(PIL.Image.fromarray(values).convert(mode), "JPEG", **coding)
    same = pixels_of(Reader("fast", size=(height, width)), image)
    assert np.array_equal(same.numpy().transpose(1, 2, 0), np.asarray(decode(image), dtype=np.float32) / 255)
    method = PIL.Image.Resampling[interpolation.upper()]
    expected = decode(image).resize((size[1], height), method).resize(size[::-1], method)
    found = pixels_of(Reader("fast", size=size, interpolation=interpolation), image)
    assert found.shape == (3, *size)
    assert np.abs(found.numpy().transpose(1, 2, 0) * 255 - np.asarray(expected, dtype=np.float32)).max() < 2.01


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
@pytest.mark.parametrize("size", [(300, 200), (37, 53), (64, 64), (641, 479), (1, 90), (1, 1), (2000, 3)])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_fast_has_the_same_frame(fit, size, format):
    """Each pixel of a smooth picture says where it came from."""
    slope = PIL.Image.linear_gradient("L").resize(size)
    picture = PIL.Image.merge("RGB", [slope, PIL.Image.linear_gradient("L").rotate(90).resize(size), slope])
    image = encode(picture, format)
    exact, fast = (pixels_of(Reader(way, size=(40, 50), fit=fit), image) for way in ("exact", "fast"))
    assert (exact - fast).abs().max() * 255 < 2.01


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_fast_reads_the_orientation(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    image = encode(halves(size=(64, 32)), "JPEG", exif=exif)
    exact, fast = (pixels_of(Reader(way), image) for way in ("exact", "fast"))
    assert (exact - fast).abs().max() * 255 < 2.01


def test_fast_takes_the_way_that_is_fast(monkeypatch):
    """Plain JPEGs never become a Pillow picture; others do, once."""
    loads = []
    real = PIL.ImageFile.ImageFile.load
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", lambda self: loads.append(self.format) or real(self))
    pixels_of(Reader("fast"), encode(halves(size=(64, 32)), "JPEG"))
    assert not loads
    pixels_of(Reader("fast"), encode(halves("CMYK", size=(64, 32)), "JPEG"))
    assert loads


def test_values_are_normalised_to_the_bit():
    """The same operations in float32, in the same order as numpy's."""
    image = PIL.Image.effect_noise((40, 30), 90).convert("RGB")
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    unit = np.asarray(image.resize((20, 24), PIL.Image.Resampling.BICUBIC), dtype=np.float32) / 255.0
    expected = (unit - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    assert np.array_equal(to_pixels(image, (24, 20), mean, std).numpy(), expected.transpose(2, 0, 1))


def test_squash_and_pad_geometry():
    wide = PIL.Image.new("RGB", (40, 10), RED)
    squashed = np.asarray(frame(wide, 20))
    assert (squashed == RED).all()
    padded = np.asarray(frame(wide, 20, fit="pad"))
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
@given(data=st.data(), format=st.sampled_from(FORMATS))
def test_damaged_bytes_never_end_in_anything_but_a_data_error(data, format):
    original = bytearray(encode(halves(size=(24, 24)), format).read())
    for _ in range(data.draw(st.integers(1, 6))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataError):
        assert decode(Image(data=bytes(original)), max_pixels=1_000_000).mode == "RGB"


@pytest.mark.parametrize(
    "options",
    [
        {"interpolation": "best"},
        {"fit": "stretch"},
        {"resize": "faster"},
        {"resize": "fast", "interpolation": "lanczos"},
        {"resize": "fast", "fit": "stretch"},
    ],
)
def test_unknown_modes(options):
    with pytest.raises(ConfigError, match="one of"):
        to_pixels(halves(), 8, **options)


def test_transform_hash():
    one = {"size": (224, 224), "mean": [0.5, 0.5, 0.5], "fit": "squash", "scale": 1}
    same = {"scale": 1.0, "fit": "squash", "mean": (0.5, 0.5, 0.5), "size": [224, 224]}
    assert transform_hash(one) == transform_hash(same)
    assert transform_hash(one) != transform_hash({**one, "fit": "pad"})
    assert transform_hash(one) != transform_hash({**one, "resize": "fast"})
    assert transform_hash(one) != transform_hash({**one, "size": (224, 225)})
    assert len(transform_hash(one)) == 16
    with pytest.raises(ValueError, match="JSON"):
        transform_hash({"mean": float("nan")})


def test_decoding_leaves_the_warnings_of_other_threads_alone():
    """Pillow's are silenced by a filter of their own, set once."""
    code = """
import io, sys, threading, warnings
from components.images import decode
from ghostvis_plugins.types import Image
import PIL.Image
buffer = io.BytesIO()
PIL.Image.new("RGB", (400, 400)).save(buffer, "PNG")
PIL.Image.warnings.warn_explicit("odd metadata", UserWarning, "TiffImagePlugin.py", 1, module="PIL.TiffImagePlugin")
stop = threading.Event()
def work():
    while not stop.is_set():
        decode(Image(data=buffer.getvalue()))
threads = [threading.Thread(target=work) for _ in range(4)]
before = list(warnings.filters)
for thread in threads: thread.start()
same = all(warnings.filters == before for _ in range(100_000))
stop.set()
for thread in threads: thread.join()
assert same and warnings.filters == before
warnings.warn("ours")
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert "ours" in done.stderr
    assert "odd metadata" not in done.stderr


def test_decoding_imports_no_torch():
    code = "import sys, components.images, components.datasets.scenes; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
