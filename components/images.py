"""Encoded pictures to RGB, and RGB to pixels: one way for training, evaluation, chat and serving.

:func:`decode` takes bytes nobody vouches for. It looks at the header before it decodes, so a 20 KB file
that would unfold to gigabytes is refused; every reason to refuse is a DataError naming the picture.
:func:`to_pixels` is the resize and normalisation that encoders share. What an encoder does is hashed by
:func:`transform_hash`, and the hash travels with a model, so a changed preprocessing cannot go unnoticed.

Notable choices:

- Pillow resizes, as the processors of the published encoders do, to the bit. An encoder may ask for ``resize="fast"``
  instead: torch's antialiased resize of bytes, and, with simplejpeg (``ghostvis[fast]``), no Pillow at all for most
  JPEGs. Few values differ, by one or two in 255; more beside hard edges where Pillow 13 scales the height first,
  because that is cheaper, and torch the width. It is an option of the transform, so it is in its hash: training,
  evaluation and serving always agree on it.
- AVIF comes with Pillow 11.3, HEIC with pi-heif (``pip install ghostvis[heic]``).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
import PIL.features
import PIL.Image
import PIL.ImageOps

from ghostvis_plugins.errors import ConfigError, DataError
from ghostvis_plugins.types import Image

if TYPE_CHECKING:
    from torch import Tensor

# Pillow warns of odd metadata; its bomb warning is our size check. Not `catch_warnings` around decoding: that changes
# the filters of all threads, and pictures are decoded in several.
warnings.filterwarnings("ignore", module=r"PIL\.")

T = TypeVar("T")

DECODE_VERSION = 1
"""Part of every transform hash; raised when :func:`decode` gives other pixels for some picture."""

MAX_PIXELS = 40_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", *(("AVIF",) if PIL.features.check("avif") else ()))
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
WHITE = (255, 255, 255)

ORIENTATION = 0x0112  # the EXIF tag
FAST = ("bilinear", "bicubic")  # what resize = "fast" can do

MAX_ASPECT = 16
"""Strips longer than this are cut to their middle before "crop" scales them: whole, they could need gigabytes."""

Fit = Literal["squash", "pad", "crop"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Resize = Literal["exact", "fast"]
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
    return _decode(image, max_pixels, lambda opened, data: _oriented_rgb(opened))


def pixels_of(encoder: Any, image: Image) -> Tensor:
    """What ``encoder`` takes of an encoded picture: float32 ``[3, H, W]``. Raises DataError as :func:`decode` does.

    One that resizes ``"fast"`` is given the same RGB values as uint8 ``[3, h, w]`` where that saves the way through
    Pillow.
    """
    if encoder.transform().get("resize") == "fast":
        return encoder.preprocess(_decode(image, MAX_PIXELS, _tensor_or_picture))  # type: ignore[no-any-return]
    return encoder.preprocess(decode(image))  # type: ignore[no-any-return]


def _decode(image: Image, max_pixels: int, convert: Callable[[PIL.Image.Image, bytes], T]) -> T:
    """``convert`` gets a picture of which only the header was read, and the bytes of its file."""
    name = f"image {image.path}" if image.path is not None else "image (bytes)"
    try:
        data = image.read()
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}", hint="Check the path.") from error
    if not data:
        raise DataError(f"{name}: is empty (0 bytes)")
    with _open(name, data, max_pixels) as opened:
        try:
            return convert(opened, data)
        except DataError:
            raise
        except Exception as error:  # a decoder raises nearly anything on damaged bytes
            reason = str(error) or type(error).__name__
            raise DataError(f"{name}: is a damaged {opened.format} file: {reason}") from error


def _open(name: str, data: bytes, max_pixels: int) -> PIL.Image.Image:
    """Read the header only, and refuse what must not be decoded."""
    formats = (*FORMATS, "HEIF") if _is_heic(data) and _can_read_heic() else FORMATS
    try:
        opened = PIL.Image.open(io.BytesIO(data), formats=formats)
    except PIL.Image.DecompressionBombError as error:
        raise _too_large(name, "too many pixels", max_pixels) from error
    except PIL.UnidentifiedImageError as error:
        raise DataError(f"{name}: {_guess(data)}", hint=_way_out(data)) from error
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


def _is_heic(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS


@cache
def _can_read_heic() -> bool:
    """Whether pi-heif is here, which this makes known to Pillow."""
    try:
        import pi_heif
    except ImportError:
        return False
    pi_heif.register_heif_opener()
    return True


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
    if _is_heic(data):
        return "is a damaged HEIC image" if _can_read_heic() else "is a HEIC image, which needs pi-heif"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "is a damaged AVIF image" if "AVIF" in FORMATS else "is an AVIF image, which needs Pillow 11.3"
    if not set(data[:512]) - set(range(32, 256)) - set(b"\t\n\r\f"):
        try:
            data[:512].decode("utf-8", errors="strict")
        except UnicodeDecodeError as error:
            if error.start < 508:  # not just a character cut at the end of the sample
                return "is not an image in a supported format"
        return "is a text file, not an image"
    return "is not an image in a supported format, or its first bytes are damaged"


def _way_out(data: bytes) -> str:
    if _is_heic(data) and not _can_read_heic():
        return "Install it with: pip install pi-heif"
    return f"Supported: {', '.join(FORMATS)}, HEIC with pi-heif."


def _oriented_rgb(opened: PIL.Image.Image) -> PIL.Image.Image:
    opened.load()
    PIL.ImageOps.exif_transpose(opened, in_place=True)
    if opened.mode.startswith("I") or opened.mode == "F":
        return _gray8(opened).convert("RGB")
    if opened.has_transparency_data:
        # Straight alpha over white. "RGBa" and "La" (premultiplied) convert through RGBA as well.
        layers = opened.convert("RGBA")
        canvas = PIL.Image.new("RGBA", layers.size, (*WHITE, 255))
        return PIL.Image.alpha_composite(canvas, layers).convert("RGB")
    return opened.convert("RGB")


def _tensor_or_picture(opened: PIL.Image.Image, data: bytes) -> PIL.Image.Image | Tensor:
    """A plain upright JPEG as uint8 ``[3, h, w]`` where simplejpeg is here: Pillow's library, so Pillow's values."""
    simplejpeg = _simplejpeg()
    plain = opened.format == "JPEG" and opened.mode in ("RGB", "L")
    if simplejpeg is not None and plain and opened.getexif().get(ORIENTATION, 1) == 1:
        import torch

        with contextlib.suppress(ValueError):  # damaged: Pillow judges, and says it in better words
            return torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB")).permute(2, 0, 1)
    return _oriented_rgb(opened)


@cache
def _simplejpeg() -> Any:
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _gray8(image: PIL.Image.Image) -> PIL.Image.Image:
    """16-bit gray to 8 bits. Pillow's own conversion clips at 255, which turns scans white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise DataError(f"an image of mode {image.mode} has no known value range", hint="Save it with 8 bits.")
    return PIL.Image.fromarray((values.astype(np.uint32) * 255 + 32767) // 65535).convert("L")


def to_pixels(
    image: PIL.Image.Image | Tensor,
    size: int | Sequence[int],
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    interpolation: Interpolation = "bicubic",
    fit: Fit = "squash",
    edge: int | None = None,
    resize: Resize = "exact",
) -> Tensor:
    """Resize an RGB picture to ``size`` (height, width) and normalise it: float32 ``[3, H, W]``.

    ``fit`` is ``"squash"`` (both sides scaled on their own), ``"pad"`` (aspect kept, centred on white) or ``"crop"``
    (aspect kept, the shorter side scaled to ``edge``, the longer of ``size`` when not given, and the middle cut out).
    Scaling down is antialiased. Pixels are ``(value / 255 - mean) / std``. ``resize="fast"`` (bilinear and bicubic) is
    torch's in place of Pillow's, and takes uint8 ``[3, h, w]``, too. Raises ConfigError for unknown modes.
    """
    import torch  # here, so that data sets and listings decode pictures without it

    if resize == "fast":
        values = _fast_frame(image, size, interpolation, fit, edge)
    elif resize == "exact" and not isinstance(image, torch.Tensor):
        values = _bytes_of(frame(image, size, interpolation, fit, edge))
    else:
        raise ConfigError(f"resize = {resize!r}: one of exact (for Pillow's pictures), fast")
    pixels = values.to(torch.float32, memory_format=torch.contiguous_format)
    middle, spread = (torch.from_numpy(np.asarray(each, dtype=np.float32))[:, None, None] for each in (mean, std))
    return pixels.div_(255).sub_(middle).div_(spread)


def frame(
    image: PIL.Image.Image,
    size: int | Sequence[int],
    interpolation: Interpolation = "bicubic",
    fit: Fit = "squash",
    edge: int | None = None,
) -> PIL.Image.Image:
    """The geometric half of :func:`to_pixels`: an RGB picture of exactly ``size`` (height, width)."""
    if interpolation not in _FILTERS:
        raise ConfigError(f"interpolation = {interpolation!r}: unknown; one of {', '.join(_FILTERS)}")
    plan = _plan(image.size, size, fit, edge)
    scaled = (image.crop(plan.cut) if plan.cut else image).resize(plan.scaled, _FILTERS[interpolation])
    if plan.scaled == plan.size:
        return scaled
    canvas = PIL.Image.new("RGB", plan.size, WHITE)
    canvas.paste(scaled, plan.at)
    return canvas


def _fast_frame(
    image: PIL.Image.Image | Tensor, size: int | Sequence[int], interpolation: str, fit: Fit, edge: int | None
) -> Tensor:
    """:func:`frame` by torch, uint8 ``[3, H, W]``: weights of 16 bits where Pillow's have 22, else the same filter."""
    import torch

    if interpolation not in FAST:
        raise ConfigError(f'interpolation = {interpolation!r}: with resize = "fast" one of {", ".join(FAST)}')
    values = image if isinstance(image, torch.Tensor) else _bytes_of(image)
    plan = _plan((values.shape[2], values.shape[1]), size, fit, edge)
    if plan.cut:
        left, top, right, bottom = plan.cut
        values = values[:, top:bottom, left:right]
    scaled = torch.nn.functional.interpolate(values[None], plan.scaled[::-1], mode=interpolation, antialias=True)[0]
    if plan.scaled == plan.size:
        return scaled
    (width, height), (left, top) = plan.size, plan.at
    scaled = scaled[:, max(0, -top) :, max(0, -left) :][:, :height, :width]
    left, top = max(0, left), max(0, top)
    canvas = scaled.new_full((3, height, width), WHITE[0])
    canvas[:, top : top + scaled.shape[1], left : left + scaled.shape[2]] = scaled
    return canvas


def _bytes_of(image: PIL.Image.Image) -> Tensor:
    """An RGB picture as uint8 ``[3, h, w]``, channels last in memory."""
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class _Plan(NamedTuple):
    """How a picture comes into its frame; pairs are (width, height) and (left, top)."""

    cut: tuple[int, int, int, int] | None  # the part of the picture that is used, where it is not all of it
    scaled: tuple[int, int]
    at: tuple[int, int]  # where that lies on a canvas of `size`; negative where it reaches over the border
    size: tuple[int, int]


def _plan(source: tuple[int, int], size: int | Sequence[int], fit: Fit, edge: int | None) -> _Plan:
    (width, height), (high, wide) = source, (size, size) if isinstance(size, int) else size
    if fit == "squash":
        return _Plan(None, (wide, high), (0, 0), (wide, high))
    if fit == "pad":
        scale = min(wide / width, high / height)
        inner = (max(1, min(wide, round(width * scale))), max(1, min(high, round(height * scale))))
        return _Plan(None, inner, ((wide - inner[0]) // 2, (high - inner[1]) // 2), (wide, high))
    if fit != "crop":
        raise ConfigError(f"fit = {fit!r}: unknown; one of squash, pad, crop")
    edge = edge or max(high, wide)
    if edge < max(high, wide):
        raise ConfigError(f"edge = {edge}: smaller than the {high} x {wide} pixels that are cut out")
    short = min(source)
    kept = (min(width, MAX_ASPECT * short), min(height, MAX_ASPECT * short))
    left, top = (width - kept[0]) // 2, (height - kept[1]) // 2
    cut = None if kept == source else (left, top, left + kept[0], top + kept[1])
    scaled = (edge * kept[0] // short, edge * kept[1] // short)  # rounded as torchvision does
    return _Plan(cut, scaled, (-((scaled[0] - wide) // 2), -((scaled[1] - high) // 2)), (wide, high))


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
