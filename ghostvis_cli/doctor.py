"""``ghostvis doctor``: what a bug report needs, fit to be pasted: paths relative or under ``~``, no addresses."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import typer

from components.toolchain import lacking
from ghostvis_plugins.isolation import normalise

from ._own import NAMES, ROOT
from .options import Json
from .output import emit_json, examples, short_path, table
from .session import registry

# fmt: off
PACKAGES = (
    "torch", "torchvision", "timm", "safetensors", "tokenizers", "huggingface-hub", "gguf", "onnx", "numpy", "pillow",
    "pydantic", "pydantic-settings", "pluggy", "typer", "textual", "resvg-py",
)
# fmt: on
POSSIBLE = "possible"


def register(parent: typer.Typer) -> None:
    parent.command("doctor", epilog=examples("ghostvis doctor", "ghostvis doctor --json"), rich_help_panel="Plugins")(
        doctor
    )


def doctor(json: Json = False) -> None:
    """Versions, devices, caches, plugins, and problems with them."""
    report = collect()
    if json:
        emit_json(**report)
        return
    for section in ("versions", "packages", "machine", "folders", "weights"):
        print(f"{section.capitalize()}")
        table_rows = [(f"  {key}", "-" if value is None else value) for key, value in report[section].items()]
        for key, value in table_rows:
            print(f"{key:25}{value}")
        print()
    rows = [(p["name"], p["dist"], p["version"] or "-", p["status"], p["error"]) for p in report["plugins"]]
    table(("plugin", "distribution", "version", "status", "error"), rows)
    print("\nProblems" if report["problems"] else "\nNo problems found.")
    for problem in report["problems"]:
        print(f"  - {problem}")


def collect() -> dict[str, Any]:
    """The report as plain values."""
    from ghostvis_plugins.versions import git_commit, package_version, versions

    found, machine = registry(), devices()
    plugins = [
        {"name": info.name, "dist": info.dist, "version": info.version, "status": info.status, "error": info.error}
        for info in found.plugins
    ]
    broken = [f"plugin '{p['name']}' ({p['dist']}) is broken: {p['error']}" for p in plugins if p["status"] == "broken"]
    heavy = [
        f"plugin '{info.name}' imports {', '.join(info.heavy)} before it is used ({info.import_ms:.0f} ms each start)"
        for info in found.plugins
        if info.heavy
    ]
    return {
        "versions": {**versions(), "commit": git_commit()},
        "packages": {name: package_version(name) for name in PACKAGES},
        "machine": {"system": f"{platform.system()} {platform.machine()}", "cpus": os.cpu_count(), **machine},
        "folders": folders(),
        "weights": weights(),
        "plugins": plugins,
        "problems": [
            *found.warnings,
            *broken,
            *heavy,
            *(conflict.splitlines()[0] for conflict in found.conflicts()),
            *kernels(machine),
            *duplicate_distributions(),
            *shadowed_names(),
        ],
    }


def devices() -> dict[str, str]:
    """What torch can compute on, and whether it can compile for it. Imports torch."""
    try:
        import torch
    except ImportError as error:
        return {"devices": f"torch cannot be imported: {error}"}
    found = [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    lacks = {kind: lacking(kind) for kind in ("cpu", *(["cuda"] if torch.cuda.is_available() else []))}
    return {
        "devices": ", ".join([f"cpu ({torch.get_num_threads()} threads)", *found]),
        **{f"compiling for {kind}": lack.what if lack else POSSIBLE for kind, lack in lacks.items()},
    }


def kernels(machine: Mapping[str, str]) -> list[str]:
    """Why training on this machine's GPU would go without its fused kernels."""
    lack = lacking("cuda") if machine.get("compiling for cuda", POSSIBLE) != POSSIBLE else None
    return [f"training on the GPU goes without fused kernels: {lack.what}; {lack.hint}"] if lack else []


def folders() -> dict[str, str]:
    """Where things are kept."""
    from components.packages import cache_dir
    from ghostvis_plugins.settings import packaged_file, user_config_dir

    cache = cache_dir()
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) if cache.is_dir() else 0
    user_file = user_config_dir() / "plugins.toml"
    return {
        "cache": f"{_place(cache)} ({size / 1e6:.0f} MB)",
        "user plugins.toml": f"{_place(user_file)}{'' if user_file.is_file() else ' (does not exist)'}",
        "packaged plugins.toml": _place(packaged_file()),
        "runs": f"runs{'' if Path('runs').is_dir() else ' (does not exist)'}",
    }


def weights() -> dict[str, str]:
    """Which pretrained weights are in reach: through the hub, in its cache, in packages."""
    from huggingface_hub import constants

    from .weights import rows_of_checkpoints

    rows = rows_of_checkpoints()
    here = {place: sorted({row["checkpoint"] for row in rows if row["here"] == place}) for place in ("hub", "package")}
    return {
        "hub": hub_state(),
        "hub cache": _place(Path(constants.HF_HUB_CACHE)),
        "in the hub's cache": ", ".join(here["hub"]) or "none",
        "in packages": ", ".join(here["package"]) or "none",
    }


def hub_state() -> str:
    """Whether the Hugging Face hub answers, within three seconds. Its address may be a private mirror's: not shown."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        get_session().head(constants.ENDPOINT, timeout=3)
    except OfflineModeIsEnabled:
        return "switched off (HF_HUB_OFFLINE)"
    except Exception as error:  # connection, proxy, TLS: each from another library
        return f"cannot be reached ({type(error).__name__})"
    return "answers"


def _place(path: Path) -> str:
    """A path without this machine's folders: relative, under ``~``, or by what it belongs to."""
    short = short_path(path)
    for base, name in ((ROOT, "<ghostvis>"), (Path(sys.prefix), "<environment>")):
        if Path(short).is_absolute() and path.is_relative_to(base):
            return f"{name}/{path.relative_to(base).as_posix()}".removesuffix("/.")
    return short if not Path(short).is_absolute() else f"<elsewhere>/{path.name}"


def duplicate_distributions() -> list[str]:
    """A distribution found twice on the path: the first hides the entry points of the second."""
    places: dict[str, list[str]] = {}
    for dist in metadata.distributions():
        name = dist.metadata["Name"]
        if name:
            places.setdefault(normalise(name), []).append(
                f"{dist.version} in {_place(Path(str(dist.locate_file(''))))}"
            )
    relevant = {normalise(info.dist) for info in registry().plugins} | set(PACKAGES)
    return [
        f"distribution '{name}' is installed {len(found)} times: {'; '.join(found)}; the first one counts"
        for name, found in sorted(places.items())
        if len(set(found)) > 1 and name in relevant
    ]


def shadowed_names() -> list[str]:
    """Other things that go by the names of our packages. Harmless to ``ghostvis``, confusing elsewhere."""
    found = []
    for name in NAMES:
        for entry in dict.fromkeys([".", *sys.path]):
            folder = Path(entry or ".")
            if folder.resolve() == ROOT:
                continue
            if (folder / name / "__init__.py").is_file() or (folder / f"{name}.py").is_file():
                found.append(f"{_place(folder.resolve())} has its own '{name}'; ghostvis uses its own all the same")
    owners = metadata.packages_distributions()
    for name in NAMES:
        others = sorted({dist for dist in owners.get(name, []) if normalise(dist) != "ghostvis"})
        if others:
            found.append(f"'{name}' is also installed by {', '.join(others)}; uninstalling it would damage ghostvis")
    return found
