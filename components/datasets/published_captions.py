"""Captions of pictures that others publish: COCO, LAION and PixMo-Cap.

``metadata``: ``kind`` "caption", ``image`` (file, key or address of the picture) and, where several people described
the same picture, all their ``captions``.

Pictures that are known by their address only lie in the folder ``images`` under the sha256 of the address: 64
hexadecimal digits and one of the endings .jpg, .jpeg, .png, .webp, .gif, or none. One that is not there is a bad
sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from components.datasets.published import ITEM, Layout, Published, Source, embedded, words
from components.datasets.splits import pick
from components.datasets.tables import INT, NOT_READ, PICTURE, STRING, Row, Schema, Table, list_of, struct_of
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Conversation, Image, Split, assistant, user

SHORT = (
    "Provide a one-sentence caption for the provided image.",
    "Describe this picture briefly.",
    "Write a short caption for this picture.",
    "What does this picture show, in one sentence?",
)
LONG = (
    "Describe this picture in detail.",
    "Give a thorough description of this picture.",
    "Write a detailed caption for this picture.",
    "What can be seen here? Be exact.",
)
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", "")


def _caption(
    source: Source, picture: Image, caption: str, image: str, requests: tuple[str, ...] = SHORT, **more: object
) -> Conversation:
    request = source.options.request or requests[pick(f"request/{image}/{caption}", len(requests))]
    return Conversation(
        (user(picture, request), assistant(caption)), metadata={"kind": "caption", "image": image, **more}
    )


def by_address(source: Source, address: str) -> Image:
    """The picture that was fetched from an address. Raises DataError where it is not in the folder."""
    return _with_some_ending(source, hashlib.sha256(address.encode()).hexdigest(), f"the picture from {address}")


def _with_some_ending(source: Source, stem: str, what: str) -> Image:
    if not source.reads:
        return NOT_READ
    for ending in ENDINGS:
        path = source.images / f"{stem}{ending}"
        if path.is_file():
            return Image(path=str(path))
    raise DataError(f"{what} is not in {source.images}: no file {stem}.jpg, .png or other")


# COCO


def _karpathy(row: Row, source: Source) -> Conversation:
    given = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in row["sentences"]]
    captions = [caption or "" for caption in given]
    folder = words(row["filepath"], "folder of the picture")
    file = f"{folder}/{row['filename']}"
    picture = source.picture(row["filename"], folder, f"images/{folder}")
    return _caption(source, picture, words(captions[row[ITEM]], "caption"), file, captions=captions)


def _of_split(source: Source, table: Table) -> Iterable[bool | None]:
    wanted = {"train": ("train", "restval"), "validation": ("val",), "test": ("test",)}[source.split]
    return (found in wanted or None for found in table.column("split"))


def _coco(row: Row, source: Source) -> Conversation:
    file = source.extra.get(row["image_id"])
    if file is None:
        raise DataError(f"no picture with the number {row['image_id']} is listed")
    subset = {"train": "train", "validation": "val"}[source.split] + str(source.options.year)
    return _caption(source, source.picture(file, subset, f"images/{subset}"), words(row["caption"], "caption"), file)


def _coco_files(source: Source, table: Table) -> dict[int, str]:
    pictures = Table(
        source.files, Schema(required={"id": INT, "file_name": STRING}), at="images", keys=("id", "file_name")
    )
    return dict(zip(pictures.column("id"), pictures.column("file_name"), strict=True))


_KARPATHY_SPLITS: dict[Split, tuple[str, ...]] = dict.fromkeys(("train", "validation", "test"), ("dataset_coco.json",))
_COCO_PICTURES = "https://cocodataset.org/#download (folders train2014, val2014 or train2017, val2017; 19 GB each year)"

COCO_CAPTIONS = Published(
    name="coco_captions",
    repo="yerevann/coco-karpathy",
    url="https://cocodataset.org/#download",
    license="CC-BY-4.0; pictures: terms of Flickr",
    size="25 MB, and 19 GB of pictures",
    hidden="COCO keeps the test captions to itself; Karpathy's split has a test split",
    layouts=(
        Layout(
            files={
                "train": ("data/train*.parquet", "data/restval*.parquet"),
                "validation": ("data/validation*.parquet",),
                "test": ("data/test*.parquet",),
            },
            schema=Schema(required={"filepath": STRING, "filename": STRING, "sentences": list_of(STRING)}),
            convert=_karpathy,
            repeat="sentences",
            pictures=_COCO_PICTURES,
        ),
        Layout(
            files=_KARPATHY_SPLITS,
            at="images",
            schema=Schema(
                required={
                    "filepath": STRING,
                    "filename": STRING,
                    "split": STRING,
                    "sentences": list_of(struct_of(raw=STRING)),
                }
            ),
            convert=_karpathy,
            keys=("split",),
            choose=_of_split,
            repeat="sentences",
            pictures=_COCO_PICTURES,
            hub=False,
        ),
        Layout(
            files={
                "train": ("annotations/captions_train{year}.json",),
                "validation": ("annotations/captions_val{year}.json",),
            },
            at="annotations",
            schema=Schema(required={"image_id": INT, "caption": STRING}),
            convert=_coco,
            prepare=_coco_files,
            pictures=_COCO_PICTURES,
            hub=False,
        ),
    ),
)


# LAION, as img2dataset leaves it or as a table of addresses


def _fetched(row: Row, source: Source) -> Conversation:
    """A row of img2dataset's output format "files": picture 000120034 is 00012/000120034.jpg."""
    key = words(row["key"], "key")
    if not key.isdecimal():
        raise DataError(f"the key '{key}' is not a number")
    picture = _with_some_ending(source, f"{key[:5]}/{key}", f"the picture {key}")
    return _caption(source, picture, words(row["caption"], "caption"), row["url"] or key)


def _succeeded(source: Source, table: Table) -> Iterable[bool]:
    return (status == "success" for status in table.column("status"))


def _addressed(row: Row, source: Source) -> Conversation:
    address = words(row[source.options.address_column], "address")
    caption = words(row[source.options.caption_column], "caption")
    return _caption(source, by_address(source, address), caption, address)


def _web_sample(row: Row, source: Source) -> Conversation:
    caption = row["txt"]
    if caption is None and row["json"] is not None:
        caption = row["json"].get("caption") if isinstance(row["json"], dict) else None
    return _caption(source, embedded(row["image"]), words(caption, "caption"), row["__key__"])


LAION = Published(
    name="laion",
    repo="laion/relaion2B-en-research-safe",
    url="https://laion.ai (any set that img2dataset has fetched)",
    license="CC-BY-4.0; pictures: their owners'",
    size="as much as one fetches",
    layouts=(
        Layout(
            files={"train": ("*.tar",)},
            schema=Schema(required={}, optional={"__key__": STRING, "image": PICTURE, "txt": STRING, "json": STRING}),
            convert=_web_sample,
            hub=False,
        ),
        Layout(
            files={"train": ("[0-9][0-9][0-9][0-9][0-9].parquet",)},
            schema=Schema(required={"key": STRING, "url": STRING, "caption": STRING, "status": STRING}),
            convert=_fetched,
            choose=_succeeded,
            group="url",
            pictures="the addresses in the table, with img2dataset",
            hub=False,
        ),
        Layout(
            files={"train": ("*.parquet",)},
            schema=Schema(required={"{address_column}": STRING, "{caption_column}": STRING}),
            convert=_addressed,
            group="{address_column}",
            pictures="the addresses in the table, each named by the sha256 of its address",
            hub=False,  # nobody wants all of it
        ),
    ),
)


# PixMo-Cap


def _pixmo(row: Row, source: Source) -> Conversation:
    address = row["image_url"] or ""
    picture = row["image"] or by_address(source, words(address, "address"))
    return _caption(source, picture, words(row["caption"], "caption"), address, LONG)


PIXMO = Published(
    name="pixmo",
    repo="allenai/pixmo-cap",
    url="https://huggingface.co/datasets/anthracite-org/pixmo-cap-images (with the pictures, 372 GB)",
    license="ODC-BY-1.0; pictures: their owners'",
    size="1.1 GB, and the pictures",
    layouts=(
        Layout(
            files={"train": ("data/train-*.parquet",)},
            schema=Schema(
                required={"image_url": STRING, "caption": STRING},
                optional={"image": PICTURE, "transcripts": list_of(STRING)},
            ),
            convert=_pixmo,
            group="image_url",
            pictures="the addresses in the table, each named by the sha256 of its address",
        ),
    ),
)
