"""Our ``components`` and ``stages`` are ours, whatever else goes by these names.

Both are generic words. A user's folder with its own ``components/`` or ``stages.py`` comes first on ``sys.path``
under ``python -m``, and any distribution may install a package of that name over ours. So the two packages are bound
by their location beside this one before anything imports them by name, and an overwritten one is an error that
says so. ``ghostvis_cli/__init__`` calls this, which covers the console script and ``torchrun -m ghostvis_cli.worker``.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

NAMES = ("components", "stages")
ROOT = Path(__file__).resolve().parents[1]


def own(names: tuple[str, ...] = NAMES, root: Path = ROOT) -> None:
    """Import the packages from ``root``. Raises ImportError when another one is in the way."""
    for name in names:
        init = root / name / "__init__.py"
        known = sys.modules.get(name)
        if known is None:
            _bind(name, init)
        elif Path(getattr(known, "__file__", None) or "").resolve() != init:
            where = getattr(known, "__file__", None) or "a folder without __init__.py"
            raise ImportError(f"'{name}' was imported from {where} before ghostvis; ghostvis needs its own, {init}")
        if getattr(sys.modules[name], "__ghostvis__", None) is not True:
            del sys.modules[name]
            raise ImportError(f"{init} is not part of ghostvis: another package overwrote it; reinstall ghostvis")


def _bind(name: str, init: Path) -> None:
    if not init.is_file():
        raise ImportError(f"{init} is missing; reinstall ghostvis")
    spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(init.parent)])
    assert spec is not None
    assert spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
