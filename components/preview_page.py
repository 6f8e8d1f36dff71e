"""A page of samples with their token masks: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping

import PIL.Image

from components.images import decode
from components.preview import Piece, View
from ghostvis_plugins.types import Image

SIDE = 320  # pixels of the longer side of a picture on the page

_STYLE = """
:root { color-scheme: light dark; --text: #1c1c1c; --page: #fff; --line: #ddd; --soft: #666;
        --learnt: #bfe8c4; --control: #e6e6ee; --image: #cfe2ff; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --page: #16181c; --line: #383c44; --soft: #9a9fa8;
          --learnt: #1f5c33; --control: #343844; --image: #1f4480; } }
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; background: var(--page); color: var(--text);
       font: 15px/1.6 system-ui, sans-serif; }
h1 { font-size: 1.3rem; } h2 { font-size: .95rem; font-family: ui-monospace, monospace; margin: 0; }
article { border-top: 1px solid var(--line); padding: 1rem 0; }
.soft, figcaption, summary { color: var(--soft); font-size: .85rem; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: .5rem 0; }
img { max-width: 100%; border: 1px solid var(--line); background: #fff; }
.tokens { font-family: ui-monospace, monospace; font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.tokens span, .key span { border-radius: 3px; box-shadow: inset 0 0 0 1px color-mix(in srgb, var(--text) 12%, #0000); }
.control { background: var(--control); } .image { background: var(--image); padding: 0 .3em; }
.learnt { background: var(--learnt); font-weight: 600; }
.key span { padding: 0 .4em; }
"""


def page(views: Iterable[View], *, title: str, note: str, metadata: Mapping[str, Mapping[str, object]]) -> str:
    """The whole document; ``metadata`` by sample id. Raises DataError for a picture that cannot be decoded."""
    articles = "\n".join(_article(view, metadata.get(view.id, {})) for view in views)
    key = (
        '<span class="learnt">learnt</span> <span>read, not learnt</span> <span class="control">control token</span> '
        '<span class="control learnt">control token, learnt</span> <span class="image">picture</span>'
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>\n'
        f'<h1>{html.escape(title)}</h1><p class="soft">{html.escape(note)}</p><p class="key">{key}</p>\n'
        f"{articles}\n</body></html>\n"
    )


def _article(view: View, metadata: Mapping[str, object]) -> str:
    pictures = "".join(_figure(number, image) for number, image in enumerate(view.images, 1))
    details = "".join(f"<div>{html.escape(f'{key}: {value}')}</div>" for key, value in metadata.items())
    return (
        f"<article><h2>{html.escape(view.id)}</h2>"
        f'<p class="soft">{view.tokens:,} tokens, {view.learnt:,} learnt, {len(view.images)} pictures</p>'
        f'<div class="pictures">{pictures}</div><div class="tokens">{"".join(map(_span, view.pieces))}</div>'
        + (f"<details><summary>metadata</summary>{details}</details>" if details else "")
        + "</article>"
    )


def _figure(number: int, image: Image) -> str:
    picture = decode(image)
    caption = f"picture {number}: {picture.width} × {picture.height}"
    picture.thumbnail((SIDE, SIDE), PIL.Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


def _span(piece: Piece) -> str:
    kinds = [kind for kind in (piece.kind, "learnt" if piece.learnt else "") if kind not in ("text", "")]
    text = html.escape(piece.text).replace("\n", "⏎\n")
    return f'<span class="{" ".join(kinds)}">{text}</span>' if kinds else f"<span>{text}</span>"
