"""Data sets that others publish: what a set is, said in a few lines, and where its files are found.

A :class:`Published` names the publisher's repository or page, the licence, and each :class:`Layout` it comes in: the
files of every split, their columns, and a function that turns a row into a sample. The files are in the folder or
file that the option ``path`` names, else in the hub's cache, else they are fetched from the hub. Nothing is made up:
a set that is not there ends with UnavailableError, saying where it can be had; a missing shard, a column of another
type or an empty table with DataError; and a single row that cannot be used raises DataError with its id when it is
read, which makes it an entry of the bad-sample ledger.

Splits are the publisher's. Where there is no validation split, a share of the training rows is set aside by a hash
of ``Layout.group`` (the picture, where rows share one), or of the row's number. Where there is no test split, or its
answers are kept secret, asking for it is an error that says so.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from components.datasets.config import PublishedOptions
from components.datasets.splits import split_of
from components.datasets.tables import NOT_READ, Columns, Row, Schema, Table
from ghostvis_plugins.errors import ConfigError, DataError, MissingError, UnavailableError
from ghostvis_plugins.types import Image, Length, Sample, Split, length_of

VALIDATION = 0.01
"""The share of the training rows that is set aside where there is no validation split."""

ITEM = "_item"
"""The number of a sample among those of its row, in the row that a conversion is given."""
_SHARD = re.compile(r"^(.*?)-?(\d{5})-of-(\d{5})(?:-[0-9a-f]{16})?(\.\w+)$")

Convert: TypeAlias = Callable[[Row, "Source"], Sample]
"""A row of the table → a sample without an id. Raises DataError for a row that cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One form in which a set is published."""

    files: Mapping[Split, Sequence[str]]
    """Shell patterns of the files, below the repository or folder. ``{option}`` is the value of an option."""
    schema: Schema
    """What the files must have. A column (here and in ``group``) may be called ``{option}`` too."""
    convert: Convert
    beside: Mapping[Split, Sequence[str]] = field(default_factory=dict)
    """Further files to fetch from the hub, which ``prepare`` reads."""
    read: Callable[[Sequence[Path]], Iterable[Row]] | None = None
    """Reads all rows at once, of a set that is small and scattered over many files."""
    at: str = ""
    """Of a JSON file: the member that holds the rows; its top level by default."""
    group: str = ""
    """The column by which rows are kept together when a validation split is set aside."""
    block: int = 1
    """Without a group: how many neighbouring rows are set aside together, so that millions need few hashes."""
    prepare: Callable[[Source, Table], Any] | None = None
    """Reads what rows refer to (annotations beside questions) into ``Source.extra`` when the set is opened."""
    keys: Sequence[str] = ()
    """Columns that ``prepare`` or ``choose`` asks for as a whole."""
    choose: Callable[[Source, Table], Iterable[bool | None]] | None = None
    """For every row: True if it belongs to ``Source.split``, None if not, False if it does and cannot be used."""
    repeat: str = ""
    """A column of lists each of whose items makes a sample; a row then says which one in its member :data:`ITEM`."""
    hub: bool = True
    """Whether the set's repository on the hub has this layout."""
    pictures: str = ""
    """Where to get the pictures, of a layout that has none in it; they are in the folder of the option ``images``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A data set that others publish. ``repo`` is a data-set repository of the Hugging Face hub, if it is on it.

    It is its own builder: ``published(config, split="train")``.
    """

    name: str
    license: str
    size: str
    """Roughly what has to be downloaded, for people ("13 GB")."""
    layouts: Sequence[Layout]
    """In the order in which a local folder is tried; the first that is on the hub is the one fetched from there."""
    repo: str = ""
    revision: str = ""
    """A commit of ``repo``, if its newest state is not what is meant."""
    url: str = ""
    """Where it can be had without the hub."""
    hidden: str = ""
    """Why there is no test split ("the answers are kept by the evaluation server")."""
    validation: float = VALIDATION

    @property
    def home(self) -> str:
        """Where to get it."""
        hub = f"https://huggingface.co/datasets/{self.repo}" if self.repo else ""
        return " or ".join(filter(None, (hub, self.url)))

    def __call__(self, config: PublishedOptions, *, split: Split) -> PublishedDataset:
        """One split of the set; see :func:`build`."""
        return build(self, config, split=split)


@dataclass(slots=True)
class Source:
    """What a conversion knows besides the row."""

    name: str
    options: Any
    folder: Path
    """Where the files are: a local folder, or a snapshot in the hub's cache."""
    split: Split
    """The published split that the rows are of: "train" also where some of them are set aside for validation."""
    files: tuple[Path, ...] = ()
    reads: bool = True
    """False while only lengths are wanted: pictures are then neither looked for nor read."""
    extra: Any = field(default=None)
    """What ``Layout.prepare`` returned."""

    def picture(self, path: str | None, *below: str) -> Image:
        """The picture file ``path`` of the folder of pictures, tried in the subfolders ``below`` as well.

        Raises DataError where there is none, and for a path that leads out of the folder.
        """
        if not isinstance(path, str) or not path:
            raise DataError("the row names no picture")
        if not self.reads:
            return NOT_READ
        relative = PurePosixPath(path)
        if relative.is_absolute() or ".." in relative.parts or "\0" in path:
            raise DataError(f"'{path}' is not a path inside the folder of pictures")
        root = self.images
        for place in ("", *below):
            found = root / place / relative
            if found.is_file():
                return Image(path=str(found))
        tried = f" (nor in {', '.join(below)})" if below else ""
        raise DataError(f"the picture {path} is not in {root}{tried}")

    @property
    def images(self) -> Path:
        given = getattr(self.options, "images", None)
        return Path(given).expanduser() if given else self.folder


def embedded(picture: Image | None) -> Image:
    """A picture that a row must have."""
    if picture is None:
        raise DataError("the row has no picture in it")
    return picture


def words(value: str | None, what: str) -> str:
    """A text that a row must have, without the space around it. Raises DataError where nothing is left."""
    text = (value or "").strip()
    if not text:
        raise DataError(f"empty {what}")
    return text


class PublishedDataset:
    """One split of a published set.

    ``id`` is NAME/SPLIT/ROW, and so unique whatever the publisher calls a row; SPLIT is the published one. ``dropped``
    counts the rows that are left out because the files themselves say that they cannot be used.
    """

    def __init__(self, table: Table, layout: Layout, source: Source, rows: Sequence[int], *, dropped: int = 0) -> None:
        self._table, self._layout, self._rows, self.dropped = table, layout, rows, dropped
        self._source, self._blind = source, replace(source, reads=False)
        self._ends = _ends(list(table.counts(layout.repeat)), rows) if layout.repeat else None

    def __len__(self) -> int:
        return len(self._rows) if self._ends is None else self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        return self._sample(index, self._source)

    def length(self, index: int) -> Length:
        return length_of(self._sample(index, self._blind))

    def _sample(self, index: int, source: Source) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{source.name} has {len(self)} samples here; there is no number {index}")
        place, item = self._locate(index)
        row = self._rows[place]
        id = f"{source.name}/{source.split}/{row}" + ("" if self._ends is None else f"/{item}")
        try:
            values = self._table.row(row, pictures=source.reads)
            values[ITEM] = item
            sample = self._layout.convert(values, source)
        except DataError as error:
            raise DataError(f"{id}: {error.message}", hint=error.hint) from error
        return replace(sample, id=id)

    def _locate(self, index: int) -> tuple[int, int]:
        """The row of a sample, and which of that row's samples it is."""
        if self._ends is None:
            return index, 0
        place = bisect_right(self._ends, index)
        return place, index - (self._ends[place - 1] if place else 0)


def _ends(counts: Sequence[int], rows: Sequence[int]) -> array[int]:
    ends = array("q")
    total = 0
    for row in rows:
        total += counts[row]
        ends.append(total)
    return ends


def build(published: Published, config: PublishedOptions, *, split: Split) -> PublishedDataset:
    """One split of a published set.

    Raises UnavailableError where it is not on this machine and cannot be fetched, MissingError for a split that is
    not published, DataError for files that are not what they should be.
    """
    name = published.name
    layouts = [layout for layout in published.layouts if _published_split(published, layout, split)]
    if not layouts:
        reason = published.hidden or "none is published"
        raise MissingError(f"data set '{name}' has no {split} split: {reason}", hint=_instead(split))
    folder, layout, files = _locate(published, layouts, config, split)
    layout = _named(layout, config)
    origin = _published_split(published, layout, split)
    source = Source(name=name, options=config, folder=folder, split=origin, files=tuple(files))
    if layout.pictures:
        _check_pictures(source, layout)
    keys = tuple(dict.fromkeys([*filter(None, (layout.group,)), *layout.keys]))
    if layout.read is None:
        table = Table(files, layout.schema, at=layout.at, keys=keys, counted=layout.repeat)
    else:
        table = Table.of_rows(folder, list(layout.read(files)), layout.schema)
    if layout.prepare is not None:
        source.extra = layout.prepare(source, table)
    rows: Sequence[int] = range(len(table))
    dropped = 0
    if layout.choose is not None:
        chosen = list(layout.choose(source, table))
        rows = array("q", (row for row, belongs in enumerate(chosen) if belongs))
        dropped = chosen.count(False)
    if not rows:
        raise DataError(f"data set '{name}': none of the {len(table)} rows in {files[0].parent} is of '{origin}'")
    if "validation" not in layout.files and origin == "train":
        rows = _set_aside(published, layout, table, rows, split)
    return PublishedDataset(table, layout, source, rows, dropped=dropped)


def _named(layout: Layout, config: PublishedOptions) -> Layout:
    """The layout with the names of columns that options give."""
    options = config.model_dump()

    def named(columns: Columns) -> Columns:
        return {name.format(**options): kind for name, kind in columns.items()}

    schema = Schema(required=named(layout.schema.required), optional=named(layout.schema.optional))
    return replace(layout, schema=schema, group=layout.group.format(**options))


def _check_pictures(source: Source, layout: Layout) -> None:
    """The folder of pictures is there. Raises UnavailableError."""
    if not source.images.is_dir():
        raise UnavailableError(
            f"dataset.{source.name}.images = {source.options.images}: there is no such folder",
            hint=f"The pictures come from {layout.pictures}.",
        )


def _published_split(published: Published, layout: Layout, split: Split) -> Any:
    """The published split whose rows ``split`` is made of, or None."""
    if split in layout.files:
        return split
    return "train" if split == "validation" and published.validation > 0 and "train" in layout.files else None


def _instead(split: Split) -> str:
    return "Evaluate on validation, as the field does." if split == "test" else "Use another split."


def _set_aside(published: Published, layout: Layout, table: Table, rows: Sequence[int], split: Split) -> Sequence[int]:
    """Those of the training rows that are of ``split``: a group of rows is in one of the two."""
    groups: Iterable[Any] = (row // layout.block for row in range(len(table)))
    if layout.group:
        groups = table.column(layout.group)
    wanted = iter(rows)
    following = next(wanted, None)
    chosen = array("q")
    last: tuple[Any, bool] = (None, False)  # rows of one group are often neighbours
    for row, group in enumerate(groups):
        if row != following:
            continue
        following = next(wanted, None)
        key = row if group is None else group
        if key != last[0]:
            place = split_of(f"{published.name}/{key}", validation=published.validation, test=0.0)
            last = key, place == split
        if last[1]:
            chosen.append(row)
    if not chosen:
        raise DataError(
            f"data set '{published.name}': none of its {len(rows)} rows falls into '{split}'",
            hint=f"{published.validation:.1%} of the training rows are set aside for validation; this is too small a "
            "piece of the set for that.",
        )
    return chosen


def _locate(
    published: Published, layouts: Sequence[Layout], config: PublishedOptions, split: Split
) -> tuple[Path, Layout, list[Path]]:
    """The folder, the layout that it has, and its files of the split, all there."""
    layout: Layout | None
    if config.path is None:
        layout = next((layout for layout in layouts if layout.hub and published.repo), None)
        if layout is None:
            raise UnavailableError(
                f"data set '{published.name}': its split '{split}' cannot be fetched by itself", hint=where(published)
            )
        if layout.pictures and getattr(config, "images", None) is None:
            raise UnavailableError(
                f"data set '{published.name}': the hub has it without its pictures",
                hint=f"{where(published)}\nGet its pictures from {layout.pictures}, and say where those are: "
                f"--set dataset.{published.name}.images=DIR.",
            )
        patterns = _patterns(published, layout, split, config)
        beside = layout.beside.get(_published_split(published, layout, split), ())
        folder = _from_hub(published, [*patterns, *beside], config)
        return folder, layout, _complete(_matching(folder, patterns))
    path = Path(config.path).expanduser()
    if not path.exists():
        raise UnavailableError(
            f"dataset.{published.name}.path = {config.path}: there is no such file or folder", hint=where(published)
        )
    if path.is_file():
        layout = _of_file(published, layouts, path, split, config)
        return path.parent, layout, [path]
    for layout in layouts:
        origin = _published_split(published, layout, split)
        files = _matching(path, _patterns(published, layout, split, config)) or _saved(path, origin)
        if files and (files[0].suffix in (".arrow", *_kinds(published, layout, split, config))):
            return path, layout, _complete(files)
    wanted = "; or ".join(", ".join(_patterns(published, layout, split, config)) for layout in layouts)
    raise UnavailableError(
        f"data set '{published.name}': {path} holds none of the files of '{split}': {wanted}", hint=where(published)
    )


def _kinds(published: Published, layout: Layout, split: Split, config: PublishedOptions) -> set[str]:
    """The endings of a layout's files."""
    return {PurePosixPath(pattern).suffix for pattern in _patterns(published, layout, split, config)}


def _patterns(published: Published, layout: Layout, split: Split, config: PublishedOptions) -> list[str]:
    """The patterns of the files, one for each value of an option that has several."""
    options = config.model_dump()
    found: list[str] = []
    for pattern in layout.files[_published_split(published, layout, split)]:
        several = [key for key, value in options.items() if f"{{{key}}}" in pattern and isinstance(value, tuple)]
        values = options[several[0]] if several else (None,)
        found += [pattern.format(**{**options, **dict.fromkeys(several, value)}) for value in values]
    return found


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files that match, in the order of patterns and names; in the folder itself too, for those who moved them.

    Raises DataError where there are files for some of the patterns only.
    """
    names = [PurePosixPath(pattern).name for pattern in patterns]
    for wanted in (patterns, names if len(set(names)) == len(names) else ()):
        found = {pattern: sorted(path for path in folder.glob(pattern) if path.is_file()) for pattern in wanted}
        missing = [pattern for pattern, files in found.items() if not files]
        if found and not missing:
            return list(dict.fromkeys(path for files in found.values() for path in files))
        if len(missing) < len(found):
            raise DataError(
                f"{folder}: there is no {', '.join(missing)}, only the rest",
                hint="Fetch it; a part of a data set is not taken for the whole.",
            )
    return []


def _saved(folder: Path, split: Split) -> list[Path]:
    """The files of ``datasets.save_to_disk``: of a DatasetDict a folder per split, of a Dataset the folder itself.

    Raises DataError for a folder whose own list of its files is damaged, or names one that is not there.
    """
    for place in (folder / split, folder):
        path = place / "state.json"
        if not path.is_file():
            continue
        try:
            state = json.loads(path.read_bytes())
            names = [str(entry["filename"]) for entry in state["_data_files"]]
            saved = state.get("_split") or "train"
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not what datasets.save_to_disk writes: {error}") from error
        if missing := [name for name in names if not (place / name).is_file()]:
            raise DataError(f"{place}: there is no {missing[0]}, which its state.json lists")
        if place != folder or saved == split:
            return [place / name for name in names]
    return []


def _of_file(
    published: Published, layouts: Sequence[Layout], path: Path, split: Split, config: PublishedOptions
) -> Layout:
    """The layout of a single file. Where splits are files, its name must be that of the split."""
    for layout in layouts:
        names = [PurePosixPath(pattern).name for pattern in _patterns(published, layout, split, config)]
        if any(fnmatch.fnmatch(path.name, name) for name in names):
            return layout
    for layout in layouts:
        kinds = _kinds(published, layout, split, config)
        if len(layout.files) == 1 and path.suffix in (*kinds, ".arrow", ".gz", ".zst"):
            return layout
    raise UnavailableError(
        f"dataset.{published.name}.path = {config.path}: is a file, and not one of '{split}'",
        hint=f"Give the folder that holds it. {where(published)}",
    )


def _complete(files: list[Path]) -> list[Path]:
    """The files, unless their names say that there are more of them. Raises DataError."""
    groups: dict[tuple[Path, str, str], tuple[int, set[int]]] = {}
    for path in files:
        if (match := _SHARD.match(path.name)) is not None:
            key = (path.parent, match[1], match[4])
            groups.setdefault(key, (int(match[3]), set()))[1].add(int(match[2]))
    for (parent, stem, suffix), (count, found) in groups.items():
        if missing := sorted(set(range(count)) - found):
            first = f"{stem}-{missing[0]:05d}-of-{count:05d}{suffix}"
            raise DataError(
                f"{parent}: {len(missing)} of {count} files are missing, the first is {first}",
                hint="Fetch them; a part of a data set is not taken for the whole.",
            )
    return files


def _from_hub(published: Published, patterns: Sequence[str], config: PublishedOptions) -> Path:
    """The snapshot with the files, from the hub's cache or the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    revision = config.revision or published.revision or None
    try:
        folder = Path(
            snapshot_download(
                published.repo,
                repo_type="dataset",
                revision=revision,
                allow_patterns=list(patterns),
                # the library reads this variable when it is imported, and checks of plugins set it later
                local_files_only=os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"),
            )
        )
    except GatedRepoError:
        reason = "wants its licence to be accepted on the hub first (then `hf auth login`)"
    except RevisionNotFoundError as error:
        raise ConfigError(f"dataset.{published.name}.revision = {revision}: {published.repo} has none") from error
    except RepositoryNotFoundError:
        reason = "is unknown to the hub, or private"
    except LocalEntryNotFoundError:
        reason = "is not in the hub's cache, and the hub cannot be reached"
    except Exception as error:  # connection, proxy, TLS, time-outs, HTTP, disk: each from another library
        reason = f"cannot be fetched ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    else:
        if _matching(folder, patterns):
            return folder
        reason = f"has no {', '.join(patterns)} here"
    raise UnavailableError(f"data set '{published.name}': {published.repo} {reason}", hint=where(published))


def where(published: Published) -> str:
    """What to do to have a set that is not there."""
    return (
        f"Get it from {published.home}: about {published.size}; licence: {published.license}.\n"
        f"Then say where it is: --set dataset.{published.name}.path=DIR."
    )
