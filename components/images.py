"""Encoded pictures to RGB, and RGB to pixels: one way for training, evaluation, chat and serving.

:func:`decode` takes bytes nobody vouches for. It looks at the header before it decodes, so a 20 KB file
that would unfold to gigabytes is refused; every reason to refuse is a DataError naming the picture.
:func:`to_pixels` is the resize and normalisation that encoders share. What an encoder does is hashed by
:func:`transform_hash`, and the hash travels with a model, so a changed preprocessing cannot go unnoticed.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import PIL.Image
import PIL.ImageOps

from ghostvis_plugins.errors import ConfigError, DataError
from ghostvis_plugins.types import Image

if TYPE_CHECKING:
    from torch import Tensor

DECODE_VERSION = 1
"""Part of every transform hash; raised when :func:`decode` gives other pixels for some picture."""

MAX_PIXELS = 40_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
WHITE = (255, 255, 255)

MAX_ASPECT = 16
"""Strips longer than this are cut to their middle before "crop" scales them: whole, they could need gigabytes."""

Fit = Literal["squash", "pad", "crop"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
_FILTERS = {
    "nearest": PIL.Image.Resampling.NEAREST,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "lanczos": PIL.Image.Resampling.LANCZOS,
}


def decode(image: Image, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
    """An RGB picture: the first frame, turned as its EXIF orientation says, transparency on white.

    Raises DataError for a file that is missing, empty, of another format, damaged or larger than ``max_pixels``.
    """
    name = f"image {image.path}" if image.path is not None else "image (bytes)"
    try:
        data = image.read()
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}", hint="Check the path.") from error
    if not data:
        raise DataError(f"{name}: is empty (0 bytes)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd metadata; its bomb warning is our size check
        with _open(name, data, max_pixels) as opened:
            try:
                return _oriented_rgb(opened)
            except DataError:
                raise
            except Exception as error:  # a decoder raises nearly anything on damaged bytes
                reason = str(error) or type(error).__name__
                raise DataError(f"{name}: is a damaged {opened.format} file: {reason}") from error


def _open(name: str, data: bytes, max_pixels: int) -> PIL.Image.Image:
    """Read the header only, and refuse what must not be decoded."""
    try:
        opened = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except PIL.Image.DecompressionBombError as error:
        raise _too_large(name, "too many pixels", max_pixels) from error
    except PIL.UnidentifiedImageError as error:
        raise DataError(f"{name}: {_guess(data)}", hint=f"Supported: {', '.join(FORMATS)}.") from error
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{name}: has a damaged header: {reason}") from error
    width, height = opened.size
    if width * height > max_pixels:
        opened.close()
        raise _too_large(name, f"{width} x {height} pixels", max_pixels)
    if width < 1 or height < 1:
        opened.close()
        raise DataError(f"{name}: has no pixels ({width} x {height})")
    return opened


def _too_large(name: str, size: str, max_pixels: int) -> DataError:
    limit = f"the limit is {max_pixels / 1e6:g} megapixels"
    return DataError(f"{name}: is too large: {size}; {limit}", hint="Scale it down first.")


def _guess(data: bytes) -> str:
    """What a file that no decoder recognises seems to be."""
    head = data[:512].lstrip().lower()
    if head.startswith((b"<svg", b"<?xml")) and b"<svg" in data[:4096].lower():
        return "is an SVG drawing, not a pixel image"
    if data[:4] == b"%PDF":
        return "is a PDF document, not an image"
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"):
        return "is a HEIC or AVIF image, which is not supported"
    if not set(data[:512]) - set(range(32, 256)) - set(b"\t\n\r\f"):
        try:
            data[:512].decode("utf-8", errors="strict")
        except UnicodeDecodeError as error:
            if error.start < 508:  # not just a character cut at the end of the sample
                return "is not an image in a supported format"
        return "is a text file, not an image"
    return "is not an image in a supported format, or its first bytes are damaged"


def _oriented_rgb(opened: PIL.Image.Image) -> PIL.Image.Image:
    opened.load()
    upright = PIL.ImageOps.exif_transpose(opened)
    if upright.mode.startswith("I") or upright.mode == "F":
        return _gray8(upright).convert("RGB")
    if upright.has_transparency_data:
        # Straight alpha over white. "RGBa" and "La" (premultiplied) convert through RGBA as well.
        layers = upright.convert("RGBA")
        canvas = PIL.Image.new("RGBA", layers.size, (*WHITE, 255))
        return PIL.Image.alpha_composite(canvas, layers).convert("RGB")
    return upright.convert("RGB")


def _gray8(image: PIL.Image.Image) -> PIL.Image.Image:
    """16-bit gray to 8 bits. Pillow's own conversion clips at 255, which turns scans white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise DataError(f"an image of mode {image.mode} has no known value range", hint="Save it with 8 bits.")
    return PIL.Image.fromarray((values.astype(np.uint32) * 255 + 32767) // 65535).convert("L")


def to_pixels(
    image: PIL.Image.Image,
    size: int | Sequence[int],
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    interpolation: Interpolation = "bicubic",
    fit: Fit = "squash",
    edge: int | None = None,
) -> Tensor:
    """Resize an RGB picture to ``size`` (height, width) and normalise it: float32 ``[3, H, W]``.

    ``fit`` is ``"squash"`` (both sides scaled on their own), ``"pad"`` (aspect kept, centred on white) or ``"crop"``
    (aspect kept, the shorter side scaled to ``edge``, the longer of ``size`` when not given, and the middle cut out).
    Scaling down is antialiased. Pixels are ``(value / 255 - mean) / std``. Raises ConfigError for unknown modes.
    """
    import torch  # here, so that data sets and listings decode pictures without it

    unit = np.asarray(resize(image, size, interpolation, fit, edge), dtype=np.float32) / 255.0
    array = (unit - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def resize(
    image: PIL.Image.Image,
    size: int | Sequence[int],
    interpolation: Interpolation = "bicubic",
    fit: Fit = "squash",
    edge: int | None = None,
) -> PIL.Image.Image:
    """The geometric half of :func:`to_pixels`: an RGB picture of exactly ``size`` (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    if interpolation not in _FILTERS:
        raise ConfigError(f"interpolation = {interpolation!r}: unknown; one of {', '.join(_FILTERS)}")
    method = _FILTERS[interpolation]
    if fit == "squash":
        return image.resize((width, height), method)
    if fit == "crop":
        return _middle(image, height, width, method, edge or max(height, width))
    if fit != "pad":
        raise ConfigError(f"fit = {fit!r}: unknown; one of squash, pad, crop")
    scale = min(width / image.width, height / image.height)
    inner = (max(1, min(width, round(image.width * scale))), max(1, min(height, round(image.height * scale))))
    canvas = PIL.Image.new("RGB", (width, height), WHITE)
    canvas.paste(image.resize(inner, method), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def _middle(
    image: PIL.Image.Image, height: int, width: int, method: PIL.Image.Resampling, edge: int
) -> PIL.Image.Image:
    """The shorter side to ``edge``, then the middle of ``height`` x ``width``; rounded as torchvision does."""
    if edge < max(height, width):
        raise ConfigError(f"edge = {edge}: smaller than the {height} x {width} pixels that are cut out")
    long = MAX_ASPECT * min(image.size)
    if max(image.size) > long:
        image = _cut(image, min(image.height, long), min(image.width, long))
    short = min(image.size)
    scaled = image.resize((edge * image.width // short, edge * image.height // short), method)
    return _cut(scaled, height, width)


def _cut(image: PIL.Image.Image, height: int, width: int) -> PIL.Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def transform_hash(transform: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that name a preprocessing: equal values give equal hashes, on every machine.

    ``transform`` holds plain JSON values; order of keys, tuple or list, 1 or 1.0 make no difference.
    """
    text = json.dumps([DECODE_VERSION, _plain(transform)], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
