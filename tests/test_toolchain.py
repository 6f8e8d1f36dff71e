"""A machine without a compiler trains without compiled kernels, and says so."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from miniature import registry, values, write_tokenizer

from components import cross_entropy
from components.compiled import decide
from components.toolchain import lacking
from ghostvis_cli import doctor
from ghostvis_plugins.errors import UnavailableError
from stages.runner import run

VARIABLES = ("CC", "CXX", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only folder on PATH. Triton counts as installed, and nobody has decided for a kernel yet."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr("components.toolchain.find_spec", lambda name: name)
    include = tmp_path / "include"
    include.mkdir()
    (include / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(include)})
    cross_entropy._on.cache_clear()
    yield folder
    cross_entropy._on.cache_clear()


def add(folder: Path, name: str) -> Path:
    (folder / name).touch(mode=0o755)
    return folder / name


def test_what_is_missing_is_named(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no C compiler is found (CC is not set" in lacking("cuda").what
    assert "no C++ compiler" in lacking("cpu").what
    assert lacking("mps") is None
    add(programs, "gcc")
    assert lacking("cuda") is None
    assert lacking("cpu") is not None
    monkeypatch.setenv("CXX", "g++-99")
    assert "CXX = g++-99 is no program" in lacking("cpu").what
    monkeypatch.setenv("CXX", str(add(programs, "mine")))
    assert lacking("cpu") is None
    monkeypatch.setenv("CXX", "mine -m64")
    assert lacking("cpu") is None
    for headers in programs.parent.glob("include/*"):
        headers.unlink()
    assert "Python.h" in lacking("cuda").what
    add(programs, "Python.h")
    monkeypatch.setenv("CPATH", f"/nowhere:{programs}")
    assert lacking("cuda") is None
    monkeypatch.setattr("components.toolchain.find_spec", lambda name: None)
    assert lacking("cuda").hint == "pip install triton"


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_auto_compiles_where_a_gpu_and_a_compiler_are(programs: Path, name: str) -> None:
    said: list[str] = []
    assert decide("auto", "cuda", said.append) is False
    assert len(said) == 1
    assert all(word in said[0] for word in ("fused kernels", "no C compiler", "apt install gcc", "CC"))
    add(programs, name)
    assert decide("auto", "cuda", said.append) is True
    assert decide("auto", "cpu", said.append) is False
    assert decide(False, "cuda", said.append) is False
    assert len(said) == 1


def test_the_heads_loss_falls_back_with_it(programs: Path) -> None:
    pytest.importorskip("triton")
    assert cross_entropy._on("cuda") is cross_entropy._piece
    cross_entropy._on.cache_clear()
    add(programs, "gcc")
    assert cross_entropy._on("cuda") is not cross_entropy._piece


def test_compiling_that_is_asked_for_is_refused_before_the_run_begins(programs: Path) -> None:
    with pytest.raises(UnavailableError, match="no C compiler") as caught:
        decide(True, "cuda", print)
    assert "auto compiles where it can" in (caught.value.hint or "")
    start = write_tokenizer(programs.parent / "tokenizer")
    given = values(start, "pretrain", dataset={"texts": {}}, stage__compile=True)
    with pytest.raises(UnavailableError, match=r"stage.compile = true, but .* no C\+\+ compiler"):
        run(given, registry(), programs.parent / "run")
    assert not (programs.parent / "run/checkpoints").exists()


def test_the_doctor_names_it(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor.devices()
    assert "no C++ compiler" in found["compiling for cpu"]
    assert "compiling for cuda" not in found or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (said,) = doctor.kernels(doctor.devices())
    assert "no C compiler" in said
    add(programs, "clang")
    assert doctor.kernels(doctor.devices()) == []
