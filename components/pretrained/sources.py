"""Where pretrained weights are: a folder, a file, or a repository on the Hugging Face hub.

The hub's own cache is used and honoured (``HF_HOME``, ``HF_HUB_OFFLINE``), so weights fetched by other tools are
found, and what is fetched here is theirs as well. Pickles are never asked for.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Sequence
from pathlib import Path

from ghostvis_plugins.errors import MissingError, UnavailableError

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors", "config.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "config.json",
)
HUB_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}(@\w[\w.-]{0,95})?", re.ASCII)
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def is_hub_id(source: str) -> bool:
    """Whether ``source`` is written like ``organisation/name`` or ``organisation/name@revision``, or says ``hub:``."""
    return source.startswith("hub:") or bool(HUB_ID.fullmatch(source) and not Path(source).expanduser().exists())


def locate(source: str, *, what: str, patterns: Sequence[str] = WEIGHT_FILES) -> Path:
    """The folder or file that ``source`` names, fetched from the hub where it is a repository's name there.

    ``what`` names it in messages ("backbone.weights"). Raises MissingError for a path that does not exist, and
    UnavailableError when the hub cannot be reached or does not give the repository.
    """
    if not is_hub_id(source):
        try:
            path = Path(source).expanduser()
            if path.exists():
                return path
            reason = ""
        except (OSError, RuntimeError) as error:  # a name that is too long, no permission, a user without a home
            reason = f" ({getattr(error, 'strerror', None) or error})"
        raise MissingError(
            f"{what}: there is no {source}{reason}",
            hint="give a folder, a file, or a hub repository as organisation/name",
        )
    repository, _, revision = source.removeprefix("hub:").partition("@")
    return _download(repository, revision or None, what, patterns)


def is_cached(source: str, patterns: Sequence[str] = WEIGHT_FILES) -> bool:
    """Whether the hub repository lies in the hub's cache, with all its shards, without touching the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, _, revision = source.removeprefix("hub:").partition("@")
    try:
        folder = Path(
            snapshot_download(
                repository, revision=revision or None, allow_patterns=list(patterns), local_files_only=True
            )
        )
        return not missing_weights(folder)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def missing_weights(folder: Path) -> list[str]:
    """Files of weights that a folder lacks: the shards of its index, or ``model.safetensors`` when there are none.

    Raises ValueError, LookupError, TypeError or AttributeError for an index that is none.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [] if any(folder.glob("*.safetensors")) else ["model.safetensors"]
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return sorted(shard for shard in shards if not (folder / shard).is_file()) if shards else ["model.safetensors"]


def _download(repository: str, revision: str | None, what: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise _unreachable(repository, what, "its licence has to be accepted on the hub first") from error
    except RepositoryNotFoundError as error:
        raise _unreachable(repository, what, "the hub knows no such repository, or it is private") from error
    except RevisionNotFoundError as error:
        raise _unreachable(repository, what, f"the hub knows no revision {revision} of it") from error
    except HFValidationError as error:
        raise MissingError(f"{what}: '{repository}' is not the name of a hub repository") from error
    except Exception as error:  # connection, proxy, TLS, time-outs, HTTP: each from another library
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise UnavailableError(
                f"{what}: {repository} cannot be put into the hub's cache: {error.strerror}",
                hint="free some space, or point HF_HOME at a folder that can be written",
            ) from error
        raise _unreachable(repository, what, f"the hub cannot be reached ({type(error).__name__})") from error


def _unreachable(repository: str, what: str, reason: str) -> UnavailableError:
    return UnavailableError(
        f"{what}: {repository} is not in the hub's cache, and {reason}",
        hint=f"set {what} to a folder that holds it, or fetch it on a machine with network "
        f"(`ghostvis weights download {repository}`) and copy the hub's cache (HF_HOME).",
    )
