"""``ghostvis plugins``: what is installed, what is wrong with it, how to write one. Works when plugins are broken."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ghostvis_plugins import ExitCode, Kind, MissingError
from ghostvis_plugins.errors import did_you_mean
from ghostvis_plugins.manager import PluginInfo

from .completion import complete_kind, complete_plugin
from .options import Json
from .output import emit_json, examples, note, table
from .session import registry

app = typer.Typer(help="Installed plugins: list, check, write, switch off.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="plugins", rich_help_panel="Plugins")


@app.command("list", epilog=examples("ghostvis plugins list", "ghostvis plugins list --kind encoder --json"))
def list_(
    json: Json = False,
    requirements: Annotated[bool, typer.Option("--requirements", help="As pip requirements, one a line.")] = False,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind", help="Only plugins with a component of this kind.", metavar="KIND", autocompletion=complete_kind
        ),
    ] = None,
) -> None:
    """Every plugin with version, status, import time, components."""
    from ghostvis_plugins.manager import to_kind

    found = registry()
    infos = found.plugins
    if kind is not None:
        prefix = f"{to_kind(kind)}:"
        infos = [info for info in infos if any(name.startswith(prefix) for name in info.components)]
    if requirements:
        for pin in sorted({f"{info.dist}=={info.version}" for info in infos if not _is_file(info)}):
            print(pin)
    elif json:
        emit_json(plugins=[_document(info) for info in infos], warnings=found.warnings, conflicts=found.conflicts())
    else:
        table(("name", "distribution", "version", "status", "ms", "provides"), [_row(info) for info in infos])
        for conflict in found.conflicts():
            note(f"\n{conflict}")


@app.command(epilog=examples("ghostvis plugins show ghostvis", "ghostvis plugins show ghostvis --json"))
def show(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Distribution, entry point or file name.", autocompletion=complete_plugin),
    ],
    json: Json = False,
) -> None:
    """One plugin: its source, what it provides, what went wrong."""
    infos = _named(name)
    if json:
        emit_json(plugins=[_document(info) for info in infos])
        return
    for info in infos:
        for key, value in _document(info).items():
            text = ", ".join(value) if isinstance(value, list) else value
            print(f"{key + ':':14}{text if text != '' else '-'}")
        print()


@app.command(epilog=examples("ghostvis plugins check resampler:identity", "ghostvis plugins check components --json"))
def check(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Plugin, or one component as kind:name. Default: every plugin.",
            autocompletion=complete_plugin,
        ),
    ] = "",
    json: Json = False,
) -> None:
    """Test components against the contract of their kind. Ends with 1 when something fails.

    Built-ins and third parties pass the same checks. Nothing is downloaded.
    """
    from ghostvis_plugins.conformance import check_component

    results: list[dict[str, Any]] = []
    specs, infos = _to_check(name)
    broken = [info for info in infos if info.status == "broken"]
    for spec in specs:
        note(f"{spec.kind}:{spec.name} ...")
        skipped: list[str] = []
        problems = check_component(spec, skipped=skipped)
        results.append({"component": f"{spec.kind}:{spec.name}", "problems": problems, "skipped": skipped})
    failed = bool(broken) or any(result["problems"] for result in results)
    if json:
        emit_json(
            ok=not failed,
            components=[{**result, "problems": [asdict(p) for p in result["problems"]]} for result in results],
            broken=[_document(info) for info in broken],
        )
    else:
        _print_check(results, broken)
    raise typer.Exit(ExitCode.FAILED if failed else ExitCode.OK)


@app.command(
    epilog=examples(
        "ghostvis plugins new ghostvis-mine --kind encoder", "ghostvis plugins new ghostvis-data --kind dataset"
    )
)
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the package and of its folder.")],
    kind: Annotated[
        str, typer.Option("--kind", help="Kind of its component.", metavar="KIND", autocompletion=complete_kind)
    ] = "encoder",
) -> None:
    """Write a working plugin package with a test, to start from."""
    from .scaffold import write_package

    folder = write_package(name, kind, Path.cwd())
    note(f"wrote {folder.name}/. Next: pip install -e {folder.name}; ghostvis plugins check {folder.name}")


@app.command(epilog=examples("ghostvis plugins disable ghostvis-foo", "ghostvis plugins enable ghostvis-foo"))
def disable(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Distribution or entry point.", autocompletion=complete_plugin)
    ],
) -> None:
    """Switch a plugin off: ./plugins.toml names it in 'disabled'."""
    from .scaffold import edit_disabled

    infos = _named(name)
    if all(info.builtin for info in infos):
        raise MissingError(f"'{name}' is built in and cannot be switched off")
    edit_disabled(Path("plugins.toml"), name, add=True)
    note(f"'{name}' is disabled in plugins.toml")


@app.command(epilog=examples("ghostvis plugins enable ghostvis-foo", "ghostvis plugins list"))
def enable(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name in 'disabled' of ./plugins.toml.")],
) -> None:
    """Switch it on again."""
    from .scaffold import edit_disabled

    edit_disabled(Path("plugins.toml"), name, add=False)
    note(f"'{name}' is enabled again")


def _is_file(info: PluginInfo) -> bool:
    return info.target.endswith(".py")


def _document(info: PluginInfo) -> dict[str, Any]:
    document = asdict(info)
    if _is_file(info):
        from .output import short_path

        document["target"] = short_path(info.target)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in document.items()}


def _row(info: PluginInfo) -> tuple[object, ...]:
    counts = {kind: sum(name.startswith(f"{kind}:") for name in info.components) for kind in Kind}
    provides = ", ".join(
        f"{count} {kind}s" if count > 1 else next(name for name in info.components if name.startswith(f"{kind}:"))
        for kind, count in counts.items()
        if count
    )
    heavy = f" (imports {', '.join(info.heavy)})" if info.heavy else ""
    detail = info.error or provides or ("commands" if info.commands else "nothing")
    return info.name, info.dist, info.version or "-", info.status, f"{info.import_ms:.0f}", detail + heavy


def _named(name: str) -> list[PluginInfo]:
    infos = [info for info in registry().plugins if info.answers_to(name)]
    if not infos:
        known = sorted({word for info in registry().plugins for word in (info.dist, info.name)})
        raise MissingError(f"no plugin named '{name}'.{did_you_mean(name, known)} Installed: {', '.join(known)}.")
    return infos


def _to_check(name: str) -> tuple[list[Any], list[PluginInfo]]:
    """The components to check and the plugins they belong to."""
    kind, colon, component = name.partition(":")
    if colon:
        return [registry().get(kind, component)], []
    infos = _named(name) if name else registry().plugins
    return [spec for spec, info in registry().providers() if info in infos], infos


def _print_check(results: list[dict[str, Any]], broken: list[PluginInfo]) -> None:
    for result in results:
        skipped = f"  (not checked: {'; '.join(result['skipped'])})" if result["skipped"] else ""
        print(f"{'FAIL' if result['problems'] else 'ok  '}  {result['component']}{skipped}")
        for problem in result["problems"]:
            print(f"      {problem.check}: {problem.message}")
    for info in broken:
        print(f"FAIL  plugin {info.name} ({info.dist})\n      load: {info.error}")
