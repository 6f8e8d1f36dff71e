"""Tar shards as a data set: prepared ones with their index, or anybody's WebDataset of captioned pictures.

A folder holds its splits as subfolders (``train``, ``validation``, ``test``), as ``ghostvis data prepare`` writes them,
or shards of no named split, which are all of ``train``. A split without a folder is a share of the training samples, by
a hash of their ids, so that nothing moves when data are added.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np

from components.datasets.config_shards import WebDataset
from components.shards.files import UNFINISHED, UNFINISHED_HINT, shards_in
from components.shards.foreign import RemoteShards, expand, expand_braces, is_remote, open_index, sample_of
from components.shards.index import NAME, Index, load
from components.shards.reader import Decode, ShardDataset
from ghostvis_plugins.errors import ConfigError, DataError, MissingError, UnavailableError
from ghostvis_plugins.types import Length, Sample, Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def build(config: WebDataset, *, split: Split) -> Joined | RemoteShards:
    """The samples of one split. Raises UnavailableError for a path without shards, MissingError without any of train,
    DataError for damage.

    URLs give a :class:`RemoteShards`, which can be prepared from and not be trained on.
    """
    remote = [path for path in config.path if is_remote(path)]
    if remote:
        if len(remote) < len(config.path):
            raise ConfigError(f"dataset.webdataset.path: {remote[0]} is remote and others are not", hint="Split them.")
        if split != "train":
            raise ConfigError("a remote WebDataset has no other split than train")
        return RemoteShards([url for path in remote for url in expand_braces(path)], config.caption)
    datasets = [found for path in config.path if (found := _open(path, config, split)) is not None]
    if split == "train" and not sum(map(len, datasets)):
        others = [str(name) for name in SPLITS if any(_has_shards(Path(path) / name) for path in config.path)]
        raise MissingError(
            f"dataset.webdataset.path = {', '.join(config.path)}: no training samples there",
            hint=f"There is only {' and '.join(others)}." if others else "",
        )
    return Joined(datasets)


def _open(path: str, config: WebDataset, split: Split) -> ShardDataset | None:
    """The samples of ``split`` under one path; None when there are none."""
    path = str(Path(path).expanduser())
    named = [name for name in SPLITS if _has_shards(Path(path) / name)]
    if named:
        source = str(Path(path) / split) if split in named else str(Path(path) / "train")
        if split not in named and "train" not in named:
            return None
    else:
        source = path
    index = load(Path(source) / NAME) if (Path(source) / NAME).is_file() else None
    if index is not None and not named and (written := index.header.get("split")) in SPLITS:
        named = [written]  # the path is the folder of one split
        if split != written and written != "train":
            return None
    make: Decode | None = None
    if index is None and (Path(source) / UNFINISHED).is_dir():
        raise DataError(f"{source}: is not finished", hint=UNFINISHED_HINT)
    if index is None:
        tars = expand(source)
        if not any(tar.is_file() for tar in tars):
            raise UnavailableError(
                f"dataset.webdataset.path = {path}: no shards there",
                hint="Point it at a folder that `ghostvis data prepare NAME --out FOLDER` wrote, or at .tar files.",
            )
        index = open_index(tars, config.caption)
        make = partial(sample_of, caption=config.caption)
    chosen = _share(index, config, split, named)
    if chosen is not None and not len(chosen):
        return None
    return ShardDataset(index, chosen=chosen, make=make, name=path)


def _has_shards(folder: Path) -> bool:
    return (folder / NAME).is_file() or (folder / UNFINISHED).is_dir() or bool(shards_in(folder))


def _share(index: Index, config: WebDataset, split: Split, named: Sequence[str]) -> np.ndarray | None:
    """Numbers of the rows of a split; None for all of them. The rule is that of ``split_of`` on the samples' ids."""
    test = 0.0 if "test" in named else config.test
    validation = 0.0 if "validation" in named else config.validation
    if split in named and split != "train":
        return None
    if test == validation == 0.0:
        return None if split == "train" else np.zeros(0, np.int64)
    place = (index.rows["id"] >> np.uint64(8)) / float(1 << 56)
    here = {
        "test": place < test,
        "validation": (place >= test) & (place < test + validation),
        "train": place >= test + validation,
    }
    return np.flatnonzero(here[split])


class Joined:
    """Several data sets one after the other."""

    def __init__(self, datasets: Sequence[ShardDataset]) -> None:
        self.datasets = tuple(datasets)
        self._ends = list(accumulate(map(len, datasets)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Sample:
        dataset, place = self.locate(index)
        return dataset[place]

    def length(self, index: int) -> Length:
        dataset, place = self.locate(index)
        return dataset.length(place)

    def shard_of(self, index: int) -> str:
        """The tar that a sample lies in: what a ledger of bad samples names."""
        dataset, place = self.locate(index)
        return dataset.shard_of(place)

    def locate(self, index: int) -> tuple[ShardDataset, int]:
        """The data set of a sample, and its number there. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"webdataset has {len(self)} samples here; there is no number {index}")
        number = bisect_right(self._ends, index)
        return self.datasets[number], index - (self._ends[number - 1] if number else 0)
