"""``ghostvis components``: what can be named in a run, and the options each one takes."""

from __future__ import annotations

import json as json_module
from typing import Annotated, Any, get_args

import typer

from .completion import complete_kind
from .options import Json, given_options
from .output import emit_json, examples, table
from .session import registry

app = typer.Typer(help="Components by kind, and their options.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="components", rich_help_panel="Plugins")


@app.command("list", epilog=examples("ghostvis components list", "ghostvis components list --kind dataset --json"))
def list_(
    kind: Annotated[
        str | None, typer.Option("--kind", help="Only this kind.", metavar="KIND", autocompletion=complete_kind)
    ] = None,
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
    epilog=examples(
        "ghostvis components show resampler perceiver",
        "ghostvis components show backbone decoder --set checkpoint=qwen3-0.6b --json",
    )
)
def show(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Kind.", autocompletion=complete_kind)],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name, or distribution/name.")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="An option of the component; may be repeated.", metavar="KEY=VALUE"),
    ] = None,
    json: Json = False,
) -> None:
    """One component and its options.

    For parts of a model also shapes, parameters, FLOPs, licence and source.
    """
    found = registry()
    spec, info = found.get(kind, name), found.provider(kind, name)
    model = spec.load_config()
    given = given_options(sets or [], f"{spec.kind}.")
    origins = {f"{spec.kind}.{key}": "--set" for key in given}
    config = found.make_config(kind, spec.name, given, origins) if given else None
    facts = part_facts(str(spec.kind), spec.name, given) if str(spec.kind) in PARTS_OF_A_MODEL else None
    options = option_rows(model, chosen=config)
    if json:
        emit_json(
            kind=str(spec.kind),
            name=spec.name,
            dist=info.dist,
            version=info.version,
            summary=spec.summary,
            license=spec.license,
            facts=facts,
            options=options,
            json_schema=model.model_json_schema(),
        )
        return
    print(f"{spec.kind} '{spec.name}' from {info.dist} {info.version}{f', {spec.license}' if spec.license else ''}")
    print(f"{spec.summary}\n" if spec.summary else "")
    for key, value in _readable(facts or {}):
        print(f"{key:12}{value}")
    print() if facts else None
    if options:
        rows = [(row["key"], row["type"], _text(row), row["description"]) for row in options]
        table(("option", "type", "value" if given else "default", "meaning"), rows)
    else:
        print("It has no options.")


PARTS_OF_A_MODEL = ("encoder", "resampler", "projector", "backbone")


def part_facts(kind: str, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """What a part of a model is and costs, measured on the meta device; no weights are read.

    ``flops`` is of the forward pass and per ``unit``: an image, or a token of a document of 256.
    """
    from components.planning import measure_alone

    found = registry()
    module, (part, *head) = measure_alone(kind, {"name": name, **given}, found)
    config: Any = found.make_config(kind, name, {"name": name, **given})
    source = (getattr(config, "checkpoints", None) or {}).get(getattr(config, "checkpoint", None))
    facts: dict[str, Any] = {
        "shape": part.shape,
        "parameters": part.parameters,
        "flops": part.flops,
        "unit": part.unit,
        "head_flops": head[0].flops if head else None,
        "max_positions": getattr(module, "max_positions", None),
        "transform": dict(module.transform()) if kind == "encoder" else None,
    }
    if source is not None and getattr(config, "weights", None) in ("hub", "package"):
        facts |= {"checkpoint": config.checkpoint, "license": source.license}
        facts |= {"source": source.url if config.weights == "hub" else f"package {source.package}"}
    return {key: value for key, value in facts.items() if value is not None}


def _readable(facts: dict[str, Any]) -> list[tuple[str, str]]:
    plain = ("checkpoint", "license", "source", "shape")
    lines: list[tuple[str, str]] = [(key, str(facts[key])) for key in plain if key in facts]
    if "parameters" in facts:
        lines.append(("parameters", f"{facts['parameters']:,}"))
        lines.append(("FLOPs", f"{_engineering(facts['flops'])} per {facts['unit']}, forward"))
    if "head_flops" in facts:
        lines.append(("head FLOPs", f"{_engineering(facts['head_flops'])} per token that is predicted"))
    if "max_positions" in facts:
        lines.append(("context", f"{facts['max_positions']:,} tokens"))
    if "transform" in facts:
        lines.append(("pictures", ", ".join(f"{key} {value}" for key, value in facts["transform"].items())))
    return [("licence" if key == "license" else key, text) for key, text in lines]


def _engineering(number: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,.0f}"


def option_rows(model: Any, prefix: str = "", chosen: Any = None) -> list[dict[str, Any]]:
    """One row per option of a pydantic model; those of nested models follow with dotted keys.

    The values of ``chosen``, an instance of it, take the place of the defaults.
    """
    rows: list[dict[str, Any]] = []
    for name, field in model.model_fields.items():
        nested = next(
            (item for item in (field.annotation, *get_args(field.annotation)) if hasattr(item, "model_fields")), None
        )
        default: Any = None if field.is_required() else field.get_default(call_default_factory=True)
        if chosen is not None:
            default = getattr(chosen, name)
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
