"""``ghostvis components``: what can be named in a run, and the options each one takes."""

from __future__ import annotations

import json as json_module
from typing import Annotated, Any, get_args

import typer

from .completion import complete_kind
from .options import Json
from .output import emit_json, examples, table
from .session import registry

app = typer.Typer(help="Components by kind, and their options.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="components", rich_help_panel="Plugins")


@app.command("list", epilog=examples("ghostvis components list", "ghostvis components list --kind dataset --json"))
def list_(
    kind: Annotated[str | None, typer.Option("--kind", help="Only this kind.", autocompletion=complete_kind)] = None,
    json: Json = False,
) -> None:
    """Every component with the distribution it comes from. Imports none of them."""
    rows = [
        {"kind": str(spec.kind), "name": spec.name, "dist": info.dist, "summary": spec.summary, "license": spec.license}
        for spec, info in registry().providers(kind)
    ]
    if json:
        emit_json(components=rows)
    else:
        keys = ("kind", "name", "dist", "summary")
        table(("kind", "name", "distribution", "summary"), [[row[key] for key in keys] for row in rows])


@app.command(
    epilog=examples("ghostvis components show resampler perceiver", "ghostvis components show stage align --json")
)
def show(
    kind: Annotated[str, typer.Argument(help="Kind.", autocompletion=complete_kind)],
    name: Annotated[str, typer.Argument(help="Name, or distribution/name.")],
    json: Json = False,
) -> None:
    """The options of one component: key, type, default, meaning."""
    found = registry()
    spec, info = found.get(kind, name), found.provider(kind, name)
    model = spec.load_config()
    options = option_rows(model)
    if json:
        emit_json(
            kind=str(spec.kind),
            name=spec.name,
            dist=info.dist,
            version=info.version,
            summary=spec.summary,
            license=spec.license,
            options=options,
            json_schema=model.model_json_schema(),
        )
        return
    print(f"{spec.kind} '{spec.name}' from {info.dist} {info.version}{f', {spec.license}' if spec.license else ''}")
    print(f"{spec.summary}\n" if spec.summary else "")
    if options:
        rows = [(row["key"], row["type"], _text(row), row["description"]) for row in options]
        table(("option", "type", "default", "meaning"), rows)
    else:
        print("It has no options.")


def option_rows(model: Any, prefix: str = "") -> list[dict[str, Any]]:
    """One row per option of a pydantic model; those of nested models follow with dotted keys."""
    rows: list[dict[str, Any]] = []
    for name, field in model.model_fields.items():
        nested = next(
            (item for item in (field.annotation, *get_args(field.annotation)) if hasattr(item, "model_fields")), None
        )
        default: Any = None if field.is_required() else field.get_default(call_default_factory=True)
        if hasattr(default, "model_dump"):
            default = default.model_dump(mode="json")
        rows.append(
            {
                "key": f"{prefix}{name}",
                "type": type_name(field.annotation),
                "required": field.is_required(),
                "default": json_module.loads(json_module.dumps(default, default=str)),
                "description": field.description or "",
            }
        )
        if nested is not None:
            rows += option_rows(nested, f"{prefix}{name}.")
    return rows


def type_name(annotation: Any) -> str:
    """``int``, ``str | None``, ``'a' | 'b'``: a type as a person writes it."""
    from types import NoneType, UnionType
    from typing import Literal, Union, get_origin

    origin = get_origin(annotation)
    if annotation is None or annotation is NoneType:
        return "null"
    if origin is Literal:
        return " | ".join(json_module.dumps(value) for value in get_args(annotation))
    if origin in (Union, UnionType):
        return " | ".join(type_name(part) for part in get_args(annotation))
    if origin is Annotated:
        return type_name(get_args(annotation)[0])
    if origin is not None:
        inside = ", ".join("..." if part is Ellipsis else type_name(part) for part in get_args(annotation))
        return f"{getattr(origin, '__name__', origin)}[{inside}]"
    return "table" if hasattr(annotation, "model_fields") else getattr(annotation, "__name__", str(annotation))


def _text(row: dict[str, Any]) -> str:
    return "(required)" if row["required"] else json_module.dumps(row["default"], ensure_ascii=False)
