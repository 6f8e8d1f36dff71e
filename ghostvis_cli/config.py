"""``ghostvis config``: what a run would be, and where each of its values comes from."""

from __future__ import annotations

import json as json_module
import sys
from typing import Annotated, Any

import typer

from ghostvis_plugins import MissingError
from ghostvis_plugins.errors import did_you_mean

from . import options as o
from .completion import complete_recipe
from .output import emit_json, examples, note, note_left_out, table
from .session import registry

app = typer.Typer(help="Show, explain and check the configuration of a run.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="config", rich_help_panel="Configuration")


@app.command(
    epilog=examples("ghostvis config show --recipe cpu/3-align", "ghostvis config show --set encoder=none --json")
)
def show(
    stage: o.Stage = None,
    depth: o.Depth = None,
    recipe: o.Recipe = None,
    set: o.Set = None,
    encoder: o.Encoder = None,
    resampler: o.Resampler = None,
    projector: o.Projector = None,
    backbone: o.Backbone = None,
    dataset: o.Datasets = None,
    from_: o.From = None,
    json: o.Json = False,
) -> None:
    """Every value of the run that flags, environment and files make."""
    flags = {
        "stage": stage,
        "depth": depth,
        "encoder": encoder,
        "resampler": resampler,
        "projector": projector,
        "backbone": backbone,
        "dataset": dataset,
        "from": from_,
    }
    resolved = _resolve(flags, set, recipe)
    if json:
        emit_json(**json_module.loads(resolved.to_json()))
        return
    from ghostvis_plugins.layers import flatten

    rows = [(key, json_module.dumps(value), resolved.origins.get(key, "")) for key, value in flatten(resolved.values)]
    table(("key", "value", "from"), rows)


@app.command(
    epilog=examples(
        "ghostvis config explain stage --stage pretrain --depth 12", "ghostvis config explain seed --set seed=3 --json"
    )
)
def explain(
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="Dotted key or table; default: every value that is set somewhere.")
    ] = "",
    stage: o.Stage = None,
    depth: o.Depth = None,
    recipe: o.Recipe = None,
    set: o.Set = None,
    from_: o.From = None,
    json: o.Json = False,
) -> None:
    """Value, origin, type and meaning of keys.

    Also shows the values that were overridden.
    """
    resolved = _resolve({"stage": stage, "depth": depth, "from": from_}, set, recipe)
    from ghostvis_plugins.layers import flatten

    values = dict(flatten(resolved.values))
    wanted = [known for known in values if known == key or known.startswith(f"{key}.")] if key else list(values)
    if not key:
        wanted = [known for known in values if resolved.origins.get(known) != "default"]
    if not wanted:
        raise MissingError(f"the run has no key '{key}'.{did_you_mean(key, values)}")
    rows = [_explained(known, values[known], resolved) for known in wanted]
    if json:
        emit_json(keys=rows)
        return
    for row in rows:
        print(f"{row['key']} = {json_module.dumps(row['value'])}   [from {row['origin']}]")
        details = [text for text in (row["type"], row["description"]) if text]
        if details and key:
            print(f"    {': '.join(details)}")
        for lower in row["overridden"]:
            print(f"    overrides {json_module.dumps(lower['value'])}   [from {lower['origin']}]")


@app.command(epilog=examples("ghostvis config check cpu/3-align", "ghostvis config check tiny/4-sft --json"))
def check(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Recipe file or packaged recipe.", autocompletion=complete_recipe)
    ],
    json: o.Json = False,
) -> None:
    """Resolve a recipe without running it. Ends with the exit code of what is wrong."""
    resolved = _resolve({}, None, [file])
    stage = (resolved.values.get("stage") or {}).get("name")
    if json:
        emit_json(ok=True, file=file, stage=stage, components=resolved.components)
    else:
        note(f"{file}: ok, {f'stage {stage}' if stage else 'no stage'}, {len(resolved.components)} components")


def _resolve(flags: dict[str, Any], sets: list[str] | None, recipes: list[str] | None) -> Any:
    from ghostvis_plugins.config import resolve

    resolved = resolve(registry=registry(), flags=flags, sets=sets or (), recipes=recipes or (), argv=sys.argv)
    note_left_out(resolved)
    return resolved


def _explained(key: str, value: Any, resolved: Any) -> dict[str, Any]:
    field = _field(key, resolved)
    layers = [(origin, said) for origin, said in resolved.history.get(key, []) if origin != resolved.origins[key]]
    return {
        "key": key,
        "value": value,
        "origin": resolved.origins[key],
        "type": field.get("type", ""),
        "description": field.get("description", ""),
        "overridden": [{"origin": origin, "value": said} for origin, said in layers],
    }


def _field(key: str, resolved: Any) -> dict[str, Any]:
    """Type and meaning of a key, from the model it belongs to."""
    from ghostvis_plugins.config import Run

    from .components import option_rows, type_name

    kind, _, rest = key.partition(".")
    if kind in ("name", "from", "seed", "device", "dtype", "threads"):
        field = Run.model_fields["from_" if kind == "from" else kind]
        return {"type": type_name(field.annotation), "description": field.description or ""}
    if rest in ("", "name"):
        return {"type": "str", "description": f"The {kind}; see ghostvis components list --kind {kind}."}
    if kind == "dataset":
        name, _, rest = rest.partition(".")
        if rest == "weight":
            return {"type": "float", "description": "Share of answer tokens in the mixture."}
    else:
        name = resolved.values[kind]["name"]
    rows = option_rows(registry().get(kind, name).load_config())
    above = [row for row in rows if rest == row["key"] or rest.startswith(f"{row['key']}.")]
    return max(above, key=lambda row: len(row["key"]), default={})
