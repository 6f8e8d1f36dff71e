"""Views of a drawing: turned, scaled and shifted a little, on a pale background. Pure functions of a random state."""

from __future__ import annotations

import io
import random

import PIL.Image


def augment(drawing: PIL.Image.Image, rng: random.Random, *, mirror: bool) -> bytes:
    """One view of an RGBA picture as an opaque PNG of the same size; half of them mirrored where ``mirror``."""
    if mirror and rng.random() < 0.5:
        drawing = drawing.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    turned = drawing.rotate(rng.uniform(-12, 12), PIL.Image.Resampling.BICUBIC)
    scale = rng.uniform(0.65, 1.0)
    width, height = (max(1, round(side * scale)) for side in drawing.size)
    placed = turned.resize((width, height), PIL.Image.Resampling.BICUBIC)
    canvas = PIL.Image.new("RGB", drawing.size, pastel(rng))
    canvas.paste(placed, (rng.randint(0, drawing.width - width), rng.randint(0, drawing.height - height)), placed)
    return png(canvas)


def pastel(rng: random.Random) -> tuple[int, int, int]:
    """A pale background colour; white one time in four."""
    if rng.random() < 0.25:
        return (255, 255, 255)
    return (rng.randint(205, 255), rng.randint(205, 255), rng.randint(205, 255))


def png(image: PIL.Image.Image) -> bytes:
    """Encoded fast rather than small: these bytes live for one step."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
