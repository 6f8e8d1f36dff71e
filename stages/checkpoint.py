"""A checkpoint is either complete and verified, or invisible.

    checkpoints/step_120/
        model.safetensors      every parameter and buffer
        optimizer.safetensors  the optimizer's tensors, named by parameter; of several ranks, each writes its own into
                               optimizer-00001-of-00002.safetensors (torch.distributed.checkpoint), and any number of
                               ranks reads them
        state.json             step, position in the data stream, hash chain, best validation so far
        manifest.json          format_version, and size and sha256 of each of the above

What goes into it is taken at one step (:func:`take`) and written then or later (:func:`write`): in a folder of another
name; every file and the folder are flushed to the disk, and one rename publishes it. A reader believes nothing that the
manifest does not confirm. There are no random states to store: every step seeds its generators from (seed, step, rank).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from components.weights import system_error
from ghostvis_plugins.errors import DataError

from .distributed import Distributed

FORMAT_VERSION = 1
MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
OPTIMIZERS = re.compile(r"optimizer(-\d+-of-\d+)?\.safetensors")
ALONE = Distributed()


@runtime_checkable
class _Parts(Protocol):
    """A DTensor, whose module takes seconds to import: it is there wherever one is."""

    def full_tensor(self) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    folder: Path
    step: int

    def state(self) -> dict[str, Any]:
        """The JSON state of the run."""
        return json.loads((self.folder / STATE).read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    def load_model(self, model: nn.Module) -> None:
        """Copy the weights into ``model``. Raises DataError when they are not the same tensors."""
        saved, own = load_file(self.folder / MODEL), unique_tensors(model)
        differing = {name for name in saved.keys() | own.keys() if not _same_shape(saved.get(name), own.get(name))}
        if differing:
            raise DataError(
                f"{self.folder} belongs to another model: {', '.join(sorted(differing)[:5])} differ",
                hint="resume with the run's own settings",
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(saved[name])

    def load_optimizer(self, optimizer: Any, names: list[str]) -> None:
        """Restore the optimizer; ``names`` are its parameters' names in the order of its groups."""
        one = self.folder / OPTIMIZER
        parameters = dict(zip(names, (p for g in optimizer.param_groups for p in g["params"]), strict=True))
        plain = one.exists() and not any(isinstance(parameter, _Parts) for parameter in parameters.values())
        tensors = load_file(one) if plain else _read_shards(self.folder, parameters)
        scalars = self.state()["optimizer"]
        state: dict[int, dict[str, Any]] = {}
        for index, name in enumerate(names):
            own = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
            own |= scalars.get(name, {})
            if own:
                state[index] = own
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name; tensors that two names share appear once."""
    seen: set[int] = set()
    unique = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor.detach()
    return unique


def _same_shape(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and a.dtype == b.dtype


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a rank puts into the checkpoint of ``step``.

    ``weights`` are whole, and on the main rank only; ``tensors`` and ``scalars`` are those of its own optimizer, named
    ``parameter/key``, and by parameter.
    """

    step: int
    weights: dict[str, Tensor]
    tensors: dict[str, Tensor]
    scalars: dict[str, dict[str, Any]]
    state: Mapping[str, Any]


@torch.no_grad()
def take(
    step: int,
    model: nn.Module,
    optimizer: Any,
    names: list[str],
    state: Mapping[str, Any],
    ranks: Distributed = ALONE,
    *,
    copies: bool = False,
) -> Snapshot:
    """What :func:`write` needs; ``state`` is the run's own, for JSON. With ``copies``, which are in the host's memory,
    training may go on before it is written; else a snapshot is only what the model and the optimizer hold.

    All ranks call it, each with the ``optimizer`` of its own parameters and their ``names``.
    """
    weights = {}
    for name, tensor in unique_tensors(model).items():
        whole = tensor.full_tensor() if isinstance(tensor, _Parts) else tensor  # all ranks take part in it
        if ranks.is_main and copies:
            weights[name] = _copy_to_host(whole)
        elif ranks.is_main:  # whole for a moment only: the device has no room for all of a model that is shared out
            weights[name] = tensor if whole is tensor else whole.cpu()
    tensors, scalars = _optimizer_state(optimizer, names)
    if copies:
        tensors = {name: _copy_to_host(tensor) for name, tensor in tensors.items()}
        if ranks.device.type == "cuda":
            torch.cuda.current_stream(ranks.device).synchronize()  # copies were only begun
        state, scalars = copy.deepcopy((state, scalars))
    return Snapshot(step, weights, tensors, scalars, state)


def _copy_to_host(tensor: Tensor) -> Tensor:
    """A copy in the host's memory, a DTensor's of its own part. From a CUDA device it arrives in the stream's order."""

    def room(pinned: bool) -> Tensor:
        return torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format, pin_memory=pinned)

    try:
        host = room(tensor.is_cuda)
    except RuntimeError:  # no more memory can be page-locked; a copy that is waited for needs none
        return room(False).copy_(tensor)
    return host.copy_(tensor, non_blocking=tensor.is_cuda)


def write(root: Path, snapshot: Snapshot, ranks: Distributed = ALONE) -> Checkpoint:
    """Write ``root/step_N``; when this returns, it is on the disk. Raises OSError, leaving nothing behind.

    All ranks call it; all raise when one does.
    """
    step, tensors = snapshot.step, snapshot.tensors
    final, private = root / f"step_{step}", root / f".partial-step_{step}"

    def begin() -> None:
        root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(root)
        private.mkdir()

    def publish() -> None:
        _write_tensors(snapshot.weights, private / MODEL)
        if ranks.world == 1:
            _write_tensors(tensors, private / OPTIMIZER)
            shards[OPTIMIZER] = _describe(private / OPTIMIZER)
        _write_json(private / STATE, {**snapshot.state, "step": step, "optimizer": all_scalars})
        files = {**shards, **{name: _describe(private / name) for name in (MODEL, STATE)}}
        _write_json(private / MANIFEST, {"format_version": FORMAT_VERSION, "step": step, "files": files})
        for name in (*files, MANIFEST):
            _flush(private / name)
        _flush(private)
        if final.exists():  # of the same step: an earlier one that was not valid, or the one being resumed from
            shutil.rmtree(final)
        private.rename(final)
        _flush(root)

    ranks.on_main(begin)
    try:
        shards = _write_shards(tensors, private, ranks) if ranks.world > 1 else {}
        all_scalars = {name: values for own in ranks.gather(snapshot.scalars) for name, values in own.items()}
        ranks.on_main(publish)
    except OSError:
        if ranks.is_main:
            shutil.rmtree(private, ignore_errors=True)
        raise
    return Checkpoint(final, step)


def _write_shards(tensors: dict[str, Tensor], folder: Path, ranks: Distributed) -> dict[str, Any]:
    """Each rank's tensors in a file of its own; what the manifest says of all files. Raises OSError on all ranks."""
    import torch.distributed.checkpoint as dcp  # seconds, which one process need not wait for
    from torch.distributed.checkpoint import CheckpointException

    from .shard_file import ShardFile

    file = folder / f"optimizer-{ranks.rank + 1:05d}-of-{ranks.world:05d}.safetensors"
    try:
        dcp.save(tensors, storage_writer=ShardFile(file, _write_tensors), process_group=ranks.group)
    except CheckpointException as error:
        for cause, _ in error.failures.values():
            if isinstance(cause, OSError):
                raise cause from error
        raise
    described: Any = {}
    try:
        if file.exists():  # not where a rank has nothing to write
            described = {file.name: _describe(file)}
    except OSError as error:
        described = error
    written: dict[str, Any] = {}
    for own in ranks.gather(described):
        if isinstance(own, OSError):
            raise own
        written |= own
    return written


def _read_shards(folder: Path, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of these parameters, or this rank's parts of it, from whichever files it is in."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    reader = HuggingFaceStorageReader(str(folder))
    saved: dict[str, Any] = reader.read_metadata().state_dict_metadata
    tensors = {}
    for key, about in saved.items():
        parameter = parameters.get(key.rpartition("/")[0])
        if parameter is not None:
            dtype, alike = about.properties.dtype, about.size == parameter.shape
            tensors[key] = torch.empty_like(parameter, dtype=dtype) if alike else torch.empty(about.size, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it should be: ranks read on their own
        if tensors:
            dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def latest(root: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; ``warn`` hears of every newer one that is not."""
    for step, folder in sorted(_folders(root), reverse=True):
        problem = verify(folder)
        if problem is None:
            return Checkpoint(folder, step)
        warn(f"{folder} is not used: {problem}")
    return None


def verify(folder: Path) -> str | None:
    """Why a checkpoint cannot be used, or None when every file is what its manifest says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, files = manifest["format_version"], manifest["files"]
    except FileNotFoundError:
        return "it has no manifest"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({error})"
    if version != FORMAT_VERSION:
        return f"its format is {version}, and this version reads {FORMAT_VERSION}"
    shards = set(files) - {MODEL, STATE}
    if not {MODEL, STATE} <= set(files) or not all(OPTIMIZERS.fullmatch(name) for name in shards):
        return "its manifest lists other files than a checkpoint has"
    for name, said in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != said["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {said['size']}"
        if _sha256(path) != said["sha256"]:
            return f"{name} was altered (sha256 differs)"
    return None


def prune(
    root: Path, keep: int, protected: Iterable[int] = (), *, every: int = 0, ignored: Iterable[int] = ()
) -> list[int]:
    """Delete all but the newest ``keep`` checkpoints, those of the ``protected`` steps, and of multiples of ``every``.

    Those of the ``ignored`` steps are neither deleted nor counted. Returns the steps of what was deleted.
    """
    removed = to_prune(steps(root), keep, protected, every=every, ignored=ignored)
    for step in removed:
        shutil.rmtree(root / f"step_{step}")
    return removed


def to_prune(
    found: Iterable[int], keep: int, protected: Iterable[int] = (), *, every: int = 0, ignored: Iterable[int] = ()
) -> list[int]:
    """The steps that :func:`prune` deletes of those that are ``found``, oldest first."""
    spared = set(protected)
    counted = sorted(set(found) - set(ignored))
    return [step for step in counted[:-keep] if step not in spared and not (every and step % every == 0)]


def steps(root: Path) -> list[int]:
    """Steps of which there is a checkpoint folder, whole or not, in ascending order."""
    return sorted(step for step, _ in _folders(root))


def at_step(root: Path, step: int) -> Checkpoint:
    """The checkpoint of one step. Raises DataError when it is not whole."""
    folder = root / f"step_{step}"
    problem = verify(folder)
    if problem is not None:
        raise DataError(f"{folder} cannot be used: {problem}")
    return Checkpoint(folder, step)


@dataclass(frozen=True, slots=True)
class Change:
    """How a tensor differs: norms in both, and the norm of the difference over the first; None where it is not."""

    name: str
    norm: float | None
    other_norm: float | None
    relative: float | None  # NaN where either holds a value that is not finite; inf for what was all zeros


def compare(first: Checkpoint, second: Checkpoint) -> list[Change]:
    """The weights of two checkpoints: first those that are not in both, of one shape, then the most changed."""
    a, b = load_file(first.folder / MODEL), load_file(second.folder / MODEL)
    changes = []
    for name in a.keys() | b.keys():
        norms = [float(t[name].double().norm()) if name in t else None for t in (a, b)]
        relative = None
        if name in a and name in b and a[name].shape == b[name].shape:
            relative = 0.0
            if not torch.equal(a[name], b[name]):
                change = float((b[name].double() - a[name].double()).norm())
                relative = change / norms[0] if norms[0] else math.inf
        changes.append(Change(name, norms[0], norms[1], relative))

    def rank(change: Change) -> tuple[float, str]:
        unlike = change.relative is None or math.isnan(change.relative)
        return (-math.inf if unlike else -change.relative, change.name)  # type: ignore[operator]

    return sorted(changes, key=rank)


def remove_leftovers(root: Path) -> None:
    """Delete what an interrupted write left behind. Only the rank that writes may call this."""
    for folder in root.glob(".partial-step_*"):
        shutil.rmtree(folder)


def _folders(root: Path) -> list[tuple[int, Path]]:
    if not root.is_dir():
        return []
    matches = ((re.fullmatch(r"step_(\d+)", folder.name), folder) for folder in root.iterdir())
    return [(int(match[1]), folder) for match, folder in matches if match]


def _optimizer_state(optimizer: Any, names: list[str]) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """The optimizer's tensors as ``parameter/key``, and its other values by parameter."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{names[index]}/{key}"] = value
            else:
                scalars.setdefault(names[index], {})[key] = value
    return tensors, scalars


def _write_tensors(tensors: Mapping[str, Tensor], path: Path, about: dict[str, str] | None = None) -> None:
    """Raises OSError also where safetensors, which hides the system's errors in its own, cannot write."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, about)
    except SafetensorError as error:
        if (found := system_error(error, path)) is None:
            raise
        raise found from error


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _describe(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Hand a file's or folder's content to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder; its file system journals the rename
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
