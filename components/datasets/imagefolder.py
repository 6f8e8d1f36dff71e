"""A folder of pictures of the user, in the convention of Hugging Face's ``imagefolder``.

- With ``metadata.csv`` or ``metadata.jsonl`` in it: each row has a ``file_name``, relative to the metadata file, and
  columns with what is said about the picture. ``answer`` names the column that is learnt, ``question`` the one that
  is asked; a picture may have several rows.
- Without: the picture's subfolder is its class (``cats/12.jpg``; "What is this?" "cats"). ``_`` in a name is a space.

Both may lie in folders called ``train``, ``validation`` and ``test``. Where no split is published, pictures are set
aside by a hash of their name, with everything that is said about them.

Bad rows (no such picture, empty answer, text that is not UTF-8) are DataErrors of their sample, with file and line.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from components.datasets.config_local import ImageFolder
from components.datasets.local import chosen, existing, locate, named_split, of_split
from components.datasets.messages import text_of
from components.datasets.splits import pick
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Conversation, Length, Split, assistant, user

METADATA = ("metadata.csv", "metadata.jsonl")
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp"})
CLASS_REQUEST = "What is this?"
REQUESTS = (
    "Describe this picture.",
    "What does this picture show?",
    "Write a caption for this picture.",
    "What can you see here?",
)


@dataclass(frozen=True, slots=True)
class Row:
    """What is said about one picture. ``where`` names the row in messages."""

    folder: Path
    file_name: object
    question: object  # None: it is the request of the data set
    answer: object
    where: str
    id: str
    broken: str = ""  # why nothing of it could be read


class PictureFolder:
    """Conversations about one picture each. ``metadata``: ``image``, its name."""

    def __init__(self, rows: list[Row], request: str | None, fallback: tuple[str, ...]) -> None:
        self._rows, self._request, self._fallback = rows, request, fallback

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Conversation:
        row = self._rows[index]
        try:
            question, answer = self._texts(row)
            name = text_of(row.file_name, "file_name")
            picture = locate(row.folder)(name)
        except DataError as error:
            raise DataError(f"{row.where}: {error.message}") from error
        return Conversation((user(picture, question), assistant(answer)), id=row.id, metadata={"image": name})

    def length(self, index: int) -> Length:
        """Of a row that cannot be read: one picture and no text; its sample then says what is wrong."""
        try:
            return Length(sum(len(text.encode()) for text in self._texts(self._rows[index])), images=1)
        except DataError:
            return Length(0, images=1)

    def _texts(self, row: Row) -> tuple[str, str]:
        if row.broken:
            raise DataError(row.broken)
        if row.question is None:
            question = self._request or self._fallback[pick(row.id, len(self._fallback))]
        else:
            question = text_of(row.question, "the question")
        answer = text_of(row.answer, "the answer")
        if not answer.strip():
            raise DataError("the answer is empty")
        return question, answer


def build(config: ImageFolder, *, split: Split) -> PictureFolder:
    """The rows of one split. Raises UnavailableError without the folder, DataError where it has neither metadata nor
    classes."""
    root = existing(config.path, "dataset.imagefolder.path")
    if not root.is_dir():
        raise DataError(f"{root}: is not a folder")
    folders = _split_folders(root)
    described = [path for path in (folders or [root]) if any((path / name).is_file() for name in METADATA)]
    wanted, shares = of_split(folders or {root: None}, split, validation=config.validation, test=config.test)
    rows: list[Row] = []
    for folder in wanted:
        rows += _described(folder, root, config) if described else _classes(folder, root)
    if not rows:
        raise DataError(
            f"{root}: no pictures with metadata.csv or metadata.jsonl, and none in subfolders that are classes"
        )
    if shares is not None:
        rows = [rows[place] for place in chosen((f"imagefolder/{row.file_name}" for row in rows), split, shares)]
    return PictureFolder(rows, config.request, REQUESTS if described else (CLASS_REQUEST,))


def _split_folders(root: Path) -> dict[Path, Split | None]:
    """The subfolders by split, if all of them are called after one: a class may be called "train"."""
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    named: dict[Path, Split | None] = {path: named_split(path.name) for path in folders if path.name.isalpha()}
    return named if len(named) == len(folders) and all(named.values()) else {}


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read: {error.strerror or error}") from error


def _classes(folder: Path, root: Path) -> Iterator[Row]:
    for place, _, names in sorted(os.walk(folder, onerror=_unreadable, followlinks=True)):
        if Path(place) == folder:
            continue
        label = Path(place).name.replace("_", " ")
        for name in sorted(names):
            if Path(name).suffix.lower() in PICTURES:
                path = Path(place, name)
                id = path.relative_to(root).as_posix()
                yield Row(folder, path.relative_to(folder).as_posix(), None, label, str(path), f"imagefolder/{id}")


def _described(folder: Path, root: Path, config: ImageFolder) -> Iterator[Row]:
    path = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder}: no {' or '.join(METADATA)}, which the folder beside it has")
    label = path.relative_to(root).as_posix()
    entries = list((_csv if path.suffix == ".csv" else _jsonl)(path))
    if not entries:
        raise DataError(f"{path}: is empty")
    columns = dict.fromkeys(key for _, entry in entries if not isinstance(entry, str) for key in entry)
    for option, column in (("", "file_name"), ("answer", config.answer), ("question", config.question)):
        if column and column not in columns:
            hint = f"Name another with dataset.imagefolder.{option}." if option else ""
            raise DataError(
                f"{path}: no column {column!r}; there are {', '.join(map(str, columns)) or 'none'}", hint=hint
            )
    for number, entry in entries:
        where, id = f"{path}:{number}", f"imagefolder/{label}:{number}"
        if isinstance(entry, str):
            yield Row(folder, None, None, None, where, id, broken=entry)
            continue
        missing = [name for name in ("file_name", config.answer, config.question) if name and entry.get(name) is None]
        question = entry.get(config.question) if config.question else None
        broken = f"has no {missing[0]}" if missing else ""
        yield Row(folder, entry.get("file_name"), question, entry.get(config.answer), where, id, broken)


def _csv(path: Path) -> Iterator[tuple[int, Mapping[str, object] | str]]:
    """Rows by line. Bytes that are not UTF-8 stay in their text as surrogates, which its reader refuses."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                yield reader.line_num, row
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except csv.Error as error:
        raise DataError(f"{path}: is not CSV: {error}") from error


def _jsonl(path: Path) -> Iterator[tuple[int, Mapping[str, object] | str]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            yield number, f"is not JSON in UTF-8: {error}"
            continue
        yield number, entry if isinstance(entry, dict) else "is not a JSON object"
