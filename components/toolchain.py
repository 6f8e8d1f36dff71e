"""What kernels that are made at run time need of the machine, and whether it is there.

Triton builds an extension in C before its first kernel, and torch.compile on a CPU builds C++; both want the headers of
Python. A machine with a GPU may have neither: images of containers leave them out. Whoever would start such a kernel
asks here first, since the libraries find out in the first step only.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Lack:
    """Something that is not there, and how to get it."""

    what: str
    hint: str


def lacking(device: str) -> Lack | None:
    """What kernels for ``device`` ("cuda", "cpu", …) lack on this machine; None when nothing is known to be missing.

    The search is that of the libraries: Triton takes ``CC``, gcc, clang; torch's inductor ``CXX``, else g++ (on a Mac
    clang++).
    """
    if device == "cuda" and find_spec("triton") is None:
        return Lack("Triton is not installed", "pip install triton")
    if device not in ("cuda", "cpu") or os.name == "nt":  # there Triton brings a compiler, and torch looks for its own
        return None
    names: tuple[str, ...]
    language, variable, names = "C", "CC", ("gcc", "clang")
    if device == "cpu":
        language, variable, names = "C++", "CXX", ("clang++",) if sys.platform == "darwin" else ("g++",)
    install = (
        f"install one, such as with apt install {'gcc' if device == 'cuda' else 'g++'}, or name yours in {variable}"
    )
    if given := os.environ.get(variable):
        program = given if variable == "CC" else (shlex.split(given) or [given])[0]  # only inductor takes several words
        if not shutil.which(program):
            return Lack(f"{variable} = {given} is no program that is found", f"correct {variable}, or unset it")
    elif not any(map(shutil.which, names)):
        return Lack(
            f"no {language} compiler is found ({variable} is not set, PATH has no {' or '.join(names)})", install
        )
    if not any((folder / "Python.h").is_file() for folder in _header_folders()):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return Lack("Python's headers are not found (Python.h)", f"such as with apt install python{version}-dev")
    return None


def _header_folders() -> list[Path]:
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # Debian's Python installs elsewhere
    more = [os.environ.get(name, "").split(os.pathsep) for name in ("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH")]
    return [Path(sysconfig.get_paths(scheme=scheme)["include"]), *(Path(p) for paths in more for p in paths if p)]
