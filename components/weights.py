"""The model directory: one self-contained folder that a model leaves as, and comes back from.

    config.json         components with all their options, vocabulary size, hashes, the tasks it is meant for
    model.safetensors   every weight, the encoder's included
    tokenizer.json …    the tokenizer and its chat template
    resolved.json       the run that made it: values, their origins, plugin versions

Loading trusts nothing: the header of the weights is compared with the shapes of the model, built on the meta
device, before memory is taken; weights in a pickle are refused; and pictures must be prepared exactly as they
were in training.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from components.compose import PARTS, build_model
from components.images import transform_hash
from components.pretrained.tensors import TensorFolder, check_fit, fill, refuse_pickles
from components.tokenizers import Tokenizer
from components.vlm import VLM
from ghostvis_plugins import DataError, MissingError

if TYPE_CHECKING:
    from ghostvis_plugins.manager import Registry

FORMAT_VERSION = 1
ARCHITECTURE = "ghostvis"
CONFIG, WEIGHTS, RESOLVED = "config.json", "model.safetensors", "resolved.json"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model directory in memory; ``config`` is its ``config.json``."""

    model: VLM
    tokenizer: Tokenizer
    config: dict[str, Any]
    path: Path


def save_model(
    folder: str | Path,
    model: VLM,
    tokenizer: Tokenizer,
    config: Mapping[str, Any],
    resolved: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model directory; ``config`` holds ``components`` (:func:`components.compose.components_of`) and the tasks
    it is for, ``eval``. Returns ``folder``.

    Everything is written and flushed beside the target and then renamed: an interrupted save leaves the former
    directory, or none, but never half of one. Raises OSError where the system does not let it write.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        partial.chmod(0o755)
        content = {
            "format_version": FORMAT_VERSION,
            "architecture": ARCHITECTURE,
            **config,
            "vocab_size": tokenizer.vocab_size,
            "transform_hash": _transform_hash(model),
            "encoder_hash": None if model.encoder is None else state_hash(model.encoder),
        }
        _write_json(partial / CONFIG, content)
        if resolved is not None:
            _write_json(partial / RESOLVED, resolved)
        save_file(_plain_state(model), partial / WEIGHTS, metadata={"format": "pt"})
        tokenizer.save(partial)
        for path in (*partial.iterdir(), partial):
            _flush(path)
        _put(partial, folder)
    except Exception as error:  # whichever library writes, and whatever it makes of what the system says
        if (found := system_error(error, folder)) is None:
            raise
        raise found from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def system_error(error: Exception, path: Path) -> OSError | None:
    """The system's error that safetensors and tokenizers hide in the text of their own; None where there is none."""
    found = None if isinstance(error, OSError) else re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1])), str(path)) if found else None


def load_model(
    folder: str | Path, registry: Registry, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> LoadedModel:
    """Read a model directory; the model is in evaluation mode.

    Raises MissingError when the directory, one of its files or one of its components does not exist, and
    DataError for anything in it that is not what it claims to be.
    """
    folder = Path(folder)
    config = read_config(folder)
    weights = _weights_file(folder)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size != config["vocab_size"]:
        raise DataError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, {CONFIG} says vocab_size {config['vocab_size']}"
        )
    components = config["components"]
    origins = {f"{kind}.name": str(folder / CONFIG) for kind in PARTS}
    try:
        expected = build_model(components, registry, tokenizer.vocab_size, meta=True, origins=origins)
    except MissingError as error:
        error.message = f"{folder / CONFIG}: {error.message}"
        raise
    if _transform_hash(expected) != config.get("transform_hash"):
        raise DataError(
            f"{folder}: the encoder would prepare pictures differently from training "
            f"(transform hash {_transform_hash(expected)}, the model's is {config.get('transform_hash')})",
            hint="use the version of the encoder's package that the model was trained with (resolved.json names it)",
        )
    source, what = TensorFolder.open(weights), f"the model of its {CONFIG}"
    check_fit(expected, source, what=what)
    model = build_model(components, registry, tokenizer.vocab_size, init=False)
    fill(model, source, what=what)
    return LoadedModel(model.to(device=device, dtype=dtype).eval(), tokenizer, config, folder)


def read_config(folder: str | Path) -> dict[str, Any]:
    """``config.json`` of a model directory, checked as far as it can be without the weights; imports no component."""
    folder = Path(folder)
    if folder.is_file():
        raise DataError(f"{folder} is a file; a model is a directory with {CONFIG} and {WEIGHTS}")
    if not folder.is_dir():
        raise MissingError(f"no model at {folder}: there is no such directory")
    path = folder / CONFIG
    if not path.is_file():
        raise MissingError(f"no model at {folder}: it holds no {CONFIG}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict) or config.get("architecture") != ARCHITECTURE:
        found = config.get("architecture") or config.get("architectures") if isinstance(config, dict) else None
        raise DataError(
            f"{path}: not a GhostVis model" + (f", but one of architecture {found}" if found else ""),
            hint=f'GhostVis writes "architecture": "{ARCHITECTURE}"',
        )
    if config.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path}: format_version {config.get('format_version')}; this GhostVis reads {FORMAT_VERSION}",
            hint="use the GhostVis version that wrote it",
        )
    components = config.get("components")
    if not isinstance(components, dict) or not components.get("backbone"):
        raise DataError(f"{path}: no backbone under 'components'")
    wrong = [kind for kind in PARTS if (value := components.get(kind)) and not _is_named(value)]
    if wrong or not isinstance(config.get("vocab_size"), int):
        raise DataError(f"{path}: {', '.join(f'components.{kind}' for kind in wrong) or 'vocab_size'} is malformed")
    return config


def weights_hash(folder: str | Path) -> str:
    """sha256 of the weights file, hexadecimal: what an evaluation row says it was measured on."""
    with _weights_file(Path(folder)).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_hash(module: nn.Module) -> str:
    """sha256 over names, shapes and bytes of a module's state: equal exactly when all its weights are."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str)


def _transform_hash(model: VLM) -> str | None:
    return None if model.encoder is None else transform_hash(model.encoder.transform())


def _plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state as contiguous CPU tensors, each with memory of its own, as safetensors asks for."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        plain = tensor.detach().cpu().contiguous()
        state[name] = plain.clone() if plain.untyped_storage().data_ptr() in seen else plain
        seen.add(plain.untyped_storage().data_ptr())
    return state


def _weights_file(folder: Path) -> Path:
    path = folder / WEIGHTS
    if not path.is_file():
        refuse_pickles(folder)
        raise MissingError(f"no model at {folder}: it holds no {WEIGHTS}")
    return path


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder; its file system journals the rename
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put(partial: Path, folder: Path) -> None:
    """Rename ``partial`` to ``folder``; a former directory steps aside first and is removed at last."""
    former = Path(tempfile.mkdtemp(prefix=f".{folder.name}.former-", dir=folder.parent)) if folder.exists() else None
    try:
        if former is not None:
            folder.rename(former / "model")
        try:
            partial.rename(folder)
        except OSError:
            if former is not None:
                (former / "model").rename(folder)
            raise
        _flush(folder.parent)
    finally:
        if former is not None:
            shutil.rmtree(former, ignore_errors=True)
