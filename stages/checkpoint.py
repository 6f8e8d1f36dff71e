"""A checkpoint is either complete and verified, or invisible.

    checkpoints/step_120/
        model.safetensors      every parameter and buffer
        optimizer.safetensors  the optimizer's tensors, named by parameter
        state.json             step, position in the data stream, hash chain, best validation so far
        manifest.json          format_version, and size and sha256 of each of the above

It is written in a folder of another name, every file and the folder are flushed to the disk, and one rename
publishes it. A reader believes nothing that the manifest does not confirm. There are no random states to store:
every step seeds its generators from (seed, step, rank).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from components.weights import system_error
from ghostvis_plugins.errors import DataError

FORMAT_VERSION = 1
MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"


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
        tensors = load_file(self.folder / OPTIMIZER)
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


def write(
    root: Path, step: int, model: nn.Module, optimizer: Any, names: list[str], state: Mapping[str, Any]
) -> Checkpoint:
    """Write ``root/step_N``; when this returns, it is on the disk. Raises OSError, leaving nothing behind."""
    root.mkdir(parents=True, exist_ok=True)
    remove_leftovers(root)
    final, private = root / f"step_{step}", root / f".partial-step_{step}"
    private.mkdir()
    try:
        tensors, scalars = _optimizer_state(optimizer, names)
        _write_tensors(unique_tensors(model), private / MODEL)
        _write_tensors(tensors, private / OPTIMIZER)
        _write_json(private / STATE, {**state, "step": step, "optimizer": scalars})
        files = {name: _describe(private / name) for name in (MODEL, OPTIMIZER, STATE)}
        _write_json(private / MANIFEST, {"format_version": FORMAT_VERSION, "step": step, "files": files})
        for name in (*files, MANIFEST):
            _flush(private / name)
        _flush(private)
        if final.exists():  # of the same step: an earlier one that was not valid, or the one being resumed from
            shutil.rmtree(final)
        private.rename(final)
        _flush(root)
    except OSError:
        shutil.rmtree(private, ignore_errors=True)
        raise
    return Checkpoint(final, step)


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
    if set(files) != {MODEL, OPTIMIZER, STATE}:
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


def _write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises OSError also where safetensors, which hides the system's errors in its own, cannot write."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
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
