"""Layers, origins, switching components, errors, and resolved.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from ghostvis_plugins import ConfigError, DataError, GhostVisError, MissingError, dataset, encoder, resampler, stage
from ghostvis_plugins.config import resolve, resolve_components
from ghostvis_plugins.layers import literal
from ghostvis_plugins.manager import Registry
from ghostvis_plugins.resolved import Resolved, load_resolved, registry_for
from ghostvis_plugins.settings import Defaults, PluginSettings

PACKAGED = Defaults(origin="packaged plugins.toml", defaults={"encoder": "siglip"})


class Nested(BaseModel):
    model_config = ConfigDict(extra="forbid")
    left: int = 1
    right: int = 2


class Siglip(BaseModel):
    model_config = ConfigDict(extra="forbid")
    image_size: int = 224
    patch: int | None = 16
    freeze: bool = True
    label: str = "x"
    nested: Nested = Nested()


class Clip(BaseModel):
    model_config = ConfigDict(extra="forbid")
    image_size: int = 224
    width: int = 8


class Data(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = 10


class Align(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kinds: ClassVar = ("encoder", "dataset")
    steps: int = Field(100, ge=1)


class Text(Align):
    kinds: ClassVar = ("dataset",)


def make_registry(*layers: Defaults) -> Registry:
    def build(config: Any, **_: Any) -> None: ...

    registry = Registry.from_specs(
        [
            encoder("siglip", config=Siglip, build=build),
            encoder("clip", config=Clip, build=build),
            resampler("pool", config=Data, build=build),
            *(dataset(name, config=Data, build=build) for name in ("vqa", "scenes", "easy-vqa")),
            stage("align", config=Align, build=build),
            stage("text", config=Text, build=build),
        ]
    )
    registry.settings = PluginSettings(layers=layers or (PACKAGED,))
    return registry


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Resolved]:
    """``resolve`` in an empty folder and an empty environment, for the stage align."""

    def run(*sets: str, registry: Registry | None = None, env: dict[str, str] | None = None, **more: Any) -> Resolved:
        more["flags"] = {"stage": "align", **more.get("flags", {})}
        return resolve(registry=registry or make_registry(), sets=sets, env=env or {}, cwd=tmp_path, **more)

    return run


def test_precedence_from_lowest_to_highest(run: Callable[..., Resolved], tmp_path: Path) -> None:
    """Each layer in turn is added above the others and must win, and the origin must say so."""
    (tmp_path / "base.toml").write_text("[encoder]\nimage_size = 5")
    (tmp_path / "a.toml").write_text('extends = "base.toml"\n[encoder]\nimage_size = 6')
    (tmp_path / "b.toml").write_text("[encoder]\nimage_size = 7")
    bare = (tmp_path / "bare.toml").write_text('extends = "base.toml"')
    assert bare

    def options(origin: str, size: int, **defaults: str) -> Defaults:
        return Defaults(origin=origin, defaults=defaults, options={"encoder": {"siglip": {"image_size": size}}})

    packaged = options("packaged", 2, encoder="siglip")
    user, project = options("user", 3), options("project", 4)
    cases: list[tuple[int, str, dict[str, Any]]] = [
        (224, "default", {"registry": make_registry()}),
        (2, "packaged", {"registry": make_registry(packaged)}),
        (3, "user", {"registry": make_registry(user, packaged)}),
        (4, "project", {"registry": make_registry(project, user, packaged)}),
    ]
    full = {"registry": make_registry(project, user, packaged)}
    cases += [
        (5, "base.toml", {**full, "recipes": ["bare.toml"]}),
        (6, "a.toml", {**full, "recipes": ["a.toml"]}),
        (7, "b.toml", {**full, "recipes": ["a.toml", "b.toml"]}),
    ]
    full["recipes"] = ["a.toml", "b.toml"]
    cases += [(8, "environment GHOSTVIS_ENCODER__IMAGE_SIZE", {**full, "env": {"GHOSTVIS_ENCODER__IMAGE_SIZE": "8"}})]
    for value, origin, arguments in cases:
        resolved = run(**arguments)
        assert resolved.values["encoder"]["image_size"] == value
        assert resolved.origins["encoder.image_size"] == origin
    resolved = run("encoder.image_size=9", **full, env={"GHOSTVIS_ENCODER__IMAGE_SIZE": "8"})
    assert resolved.values["encoder"]["image_size"] == 9
    assert resolved.origins["encoder.image_size"] == "--set encoder.image_size"
    assert [value for _, value in resolved.history["encoder.image_size"]] == [9, 8, 7, 6, 5, 4, 3, 2]


def test_partial_tables_merge(run: Callable[..., Resolved], tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[encoder]\npatch = 8\nnested = {left = 5}")
    resolved = run("encoder.image_size=9", "encoder.nested.right=6", recipes=["a.toml"])
    assert resolved.values["encoder"] == {
        "name": "siglip", "image_size": 9, "patch": 8, "freeze": True, "label": "x", "nested": {"left": 5, "right": 6},
    }  # fmt: skip
    assert resolved.origins["encoder.nested.left"] == "a.toml"
    assert resolved.origins["encoder.freeze"] == "default"


@pytest.mark.parametrize("spelling", ['encoder = "siglip"', '[encoder]\nname = "siglip"'])
def test_another_component_drops_the_options_of_the_former(
    run: Callable[..., Resolved], tmp_path: Path, spelling: str
) -> None:
    (tmp_path / "a.toml").write_text(f"{spelling}\n")
    (tmp_path / "b.toml").write_text('extends = "a.toml"\n[encoder]\npatch = 8')  # about siglip, without saying so
    resolved = run("encoder.width=3", recipes=["b.toml"], flags={"encoder": "clip"})
    assert resolved.values["encoder"] == {"name": "clip", "image_size": 224, "width": 3}
    env = {"GHOSTVIS_ENCODER": "clip", "GHOSTVIS_ENCODER__WIDTH": "4"}
    assert run(recipes=["b.toml"], env=env).values["encoder"]["width"] == 4
    same = run(recipes=["b.toml"], flags={"encoder": "siglip"})
    assert same.values["encoder"]["patch"] == 8


def test_options_by_name_apply_to_the_chosen_component_only(run: Callable[..., Resolved]) -> None:
    options = {"encoder": {"siglip": {"patch": 4}, "clip": {"width": 5}}, "dataset": {"vqa": {"size": 6}}}
    registry = make_registry(Defaults(origin="plugins.toml", options=options), PACKAGED)
    assert run(registry=registry).values["encoder"]["patch"] == 4
    chosen = run(registry=registry, flags={"encoder": "clip", "dataset": ["vqa", "scenes"]})
    assert chosen.values["encoder"]["width"] == 5
    assert chosen.values["dataset"] == {"vqa": {"weight": 1.0, "size": 6}, "scenes": {"weight": 1.0, "size": 10}}


def test_null_and_none(run: Callable[..., Resolved], tmp_path: Path) -> None:
    resolved = run("encoder.patch=null")
    assert resolved.values["encoder"]["patch"] is None
    assert resolved.origins["encoder.patch"] == "--set encoder.patch"
    (tmp_path / "a.toml").write_text('[encoder]\nname = "siglip"\npatch = 4')
    for nothing in ({"flags": {"encoder": "none"}}, {"env": {"GHOSTVIS_ENCODER": "none"}}):
        resolved = run(recipes=["a.toml"], **nothing)
        assert resolved.values["encoder"] is None
        assert "encoder.patch" not in resolved.origins
        assert resolved.origins["encoder"] != "default"
    with pytest.raises(ConfigError, match="there is no encoder to set this for"):
        run("encoder.patch=4", flags={"encoder": "none"})


def test_data_set_spellings(run: Callable[..., Resolved], tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text('dataset = "vqa"')
    (tmp_path / "two.toml").write_text('dataset = ["vqa", "scenes"]')
    (tmp_path / "mix.toml").write_text("[dataset.vqa]\nweight = 3\nsize = 7\n[dataset.scenes]")
    assert list(run(recipes=["one.toml"]).values["dataset"]) == ["vqa"]
    assert set(run(recipes=["two.toml"]).values["dataset"]) == {"vqa", "scenes"}
    mix = run(recipes=["mix.toml"])
    assert mix.values["dataset"]["vqa"] == {"weight": 3.0, "size": 7}
    assert mix.origins["dataset.scenes.weight"] == "default"
    # A choice above drops the others, and keeps what is said about the chosen one.
    assert run(recipes=["mix.toml"], flags={"dataset": ["vqa"]}).values["dataset"] == {
        "vqa": {"weight": 3.0, "size": 7}
    }
    # A table above adds; weight 0 takes out.
    assert set(run("dataset.vqa.size=1", recipes=["one.toml", "mix.toml"]).values["dataset"]) == {"vqa", "scenes"}
    assert list(run("dataset.vqa.weight=0", recipes=["mix.toml"]).values["dataset"]) == ["scenes"]
    # A choice and options of the chosen ones, on one command line.
    both = run("dataset.vqa.weight=2", flags={"dataset": ["vqa", "scenes"]})
    assert {name: table["weight"] for name, table in both.values["dataset"].items()} == {"vqa": 2.0, "scenes": 1.0}
    assert run(env={"GHOSTVIS_DATASET": '["vqa"]'}).origins["dataset.vqa"] == "environment GHOSTVIS_DATASET"
    dashed = run(recipes=["mix.toml"], env={"GHOSTVIS_DATASET__EASY_VQA__SIZE": "4"})
    assert dashed.values["dataset"]["easy-vqa"]["size"] == 4
    assert run(recipes=["mix.toml"], flags={"dataset": "none"}).values["dataset"] == {}


def test_data_sets_of_weight_zero_are_named(run: Callable[..., Resolved], tmp_path: Path) -> None:
    (tmp_path / "mix.toml").write_text("[dataset.vqa]\nweight = 0\n[dataset.scenes]")
    resolved = run("dataset.scenes.weight=0", recipes=["mix.toml"])
    assert resolved.values["dataset"] == {}
    assert resolved.left_out == {"vqa": "mix.toml", "scenes": "--set dataset.scenes.weight"}
    (tmp_path / "typo.toml").write_text("[dataset.scenes]\n[dataset.vqaa]\nweight = 0")
    with pytest.raises(MissingError, match=r"Did you mean 'vqa'.*\[from typo\.toml\]"):
        run(recipes=["typo.toml"])


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            ["encoder.image_sise=3"],
            "encoder.image_sise = 3: unknown key; did you mean encoder.image_size?   [from --set",
        ),
        (["encoder.freeze=maybe"], "encoder.freeze = 'maybe': Input should be a valid boolean"),
        (["stage.steps=0"], "stage.steps = 0: Input should be greater than or equal to 1   [from --set stage.steps]"),
        (["sed=3"], "sed = 3: unknown key; did you mean seed?   [from --set sed]"),
        (["seed=-1"], "seed = -1"),
        (["device=gpu"], "device = 'gpu': must be auto, cpu, mps, cuda or cuda:N"),
        (["dtype=float31"], "dtype = 'float31'"),
        (["name=../x"], "it names a folder"),
        (["dataset.vqa.weight=-1"], "dataset.vqa.weight = -1"),
        (["dataset.vqa.weight=heavy"], "dataset.vqa.weight = 'heavy'"),
        (["dataset.vqa.sise=3"], "did you mean dataset.vqa.size?"),
        (["dataset.vqa=3"], "dataset.vqa = 3: must be a table"),
        (["dataset=3"], "must be a name, a list of names or tables"),
        (['dataset=["vqa", "vqa"]'], "names 'vqa' twice"),
        (["encoder=3"], "encoder.name = 3"),
        (["encoder.image_size=nan"], "must be a finite number"),
        (["encoder.nested.lef=3"], "did you mean encoder.nested.left?"),
        (["noequals"], "write it as --set key=value"),
        (["a..b=1"], "write it as --set key=value"),
        (["encoder.nested=3", "encoder.nested.left=4"], "encoder.nested = 3 is not a table"),
    ],
)
def test_wrong_values_are_explained(run: Callable[..., Resolved], sets: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(*sets)
    assert message in str(caught.value)
    assert "pydantic.dev" not in str(caught.value)


def test_a_misspelt_key_is_found_in_every_layer(run: Callable[..., Resolved], tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[encoder]\nimage_sise = 3")
    bad_options = Defaults(origin="plugins.toml", options={"encoder": {"siglip": {"image_sise": 3}}})
    for origin, arguments in {
        "a.toml": {"recipes": ["a.toml"]},
        "environment GHOSTVIS_ENCODER__IMAGE_SISE": {"env": {"GHOSTVIS_ENCODER__IMAGE_SISE": "3"}},
        "plugins.toml": {"registry": make_registry(bad_options, PACKAGED)},
    }.items():
        with pytest.raises(ConfigError) as caught:
            run(**arguments)
        assert f"did you mean encoder.image_size?   [from {origin}]" in str(caught.value)


def test_an_unknown_name_says_where_it_came_from(run: Callable[..., Resolved], tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('encoder = "sigklip"')
    with pytest.raises(MissingError, match=r"No encoder named 'sigklip'. Did you mean 'siglip'\?.*\[from a.toml\]"):
        run(recipes=["a.toml"])
    with pytest.raises(MissingError, match=r"No stage named 'algn'. Did you mean 'align'\?.*\[from --stage\]"):
        run(flags={"stage": "algn"})
    with pytest.raises(MissingError, match=r"No dataset named 'vq'.*\[from --dataset\]"):
        run(flags={"dataset": ["vq"]})
    with pytest.raises(ConfigError, match="no stage is chosen"):
        resolve_components(resolve(registry=make_registry(), env={}, kinds=()), make_registry(), ["stage"])


@pytest.mark.parametrize(
    ("variable", "meant"), [("GHOSTVIS_SEDE", "GHOSTVIS_SEED"), ("GHOSTVIS_ENCODR__IMAGE_SIZE", ""), ("GHOSTVIS_", "")]
)
def test_a_misspelt_environment_variable_is_an_error(run: Callable[..., Resolved], variable: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"environment variable {variable}: unknown name") as caught:
        run(env={variable: "3"})
    assert meant in str(caught.value)


def test_other_environment_variables_are_not_configuration(run: Callable[..., Resolved]) -> None:
    run(env={"GHOSTVIS_CACHE": "/x", "GHOSTVIS_DEBUG": "1", "NAME": "y", "SEED": "3"})


def test_a_flag_and_a_set_must_agree(run: Callable[..., Resolved]) -> None:
    with pytest.raises(ConfigError, match="--seed says 3 and --set seed says 4"):
        run("seed=4", flags={"seed": 3})
    with pytest.raises(ConfigError, match=r"--encoder says 'clip' and --set encoder.name says 'siglip'"):
        run("encoder=siglip", flags={"encoder": "clip"})
    assert run("seed=3", flags={"seed": 3}).values["seed"] == 3
    assert run("seed=3", "seed=4").values["seed"] == 4  # among --set the last one wins


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({"a.toml": "x = [", }, ConfigError, "a.toml: not valid TOML"),
        ({"a.toml": 'extends = "b.toml"', "b.toml": 'extends = "a.toml"'}, ConfigError, "extends itself"),
        ({"a.toml": 'extends = "gone.toml"'}, MissingError, "'gone.toml' does not exist"),
        ({"a.toml": "extends = 3"}, ConfigError, "extends must be"),
        ({"a.toml": "name = 2024-01-01"}, ConfigError, "put quotes around it"),
        ({}, MissingError, "recipe 'a.toml' does not exist"),
    ],
)  # fmt: skip
def test_wrong_recipes_are_named(
    run: Callable[..., Resolved], tmp_path: Path, files: dict[str, str], error: type[GhostVisError], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=message):
        run(recipes=["a.toml"])


def test_packaged_recipes_by_name(
    run: Callable[..., Resolved], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "packaged"
    (folder / "cpu").mkdir(parents=True)
    (folder / "cpu" / "align.toml").write_text('extends = "base.toml"\nseed = 4')
    (folder / "cpu" / "base.toml").write_text("threads = 2")
    monkeypatch.setattr("ghostvis_plugins.layers.recipe_folders", lambda: [folder])
    resolved = run(recipes=["cpu/align"])
    assert (resolved.values["seed"], resolved.values["threads"]) == (4, 2)
    with pytest.raises(MissingError, match=r"Did you mean 'cpu/align'\?"):
        run(recipes=["cpu/algn"])


def test_only_the_kinds_of_the_stage_stay(run: Callable[..., Resolved]) -> None:
    resolved = run(flags={"stage": "text", "dataset": "vqa"})
    assert "encoder" not in resolved.values
    assert not any(key.startswith("encoder") for key in resolved.origins)
    with pytest.raises(ConfigError, match="stage 'text' uses no encoder, but --encoder sets one"):
        run(flags={"stage": "text", "encoder": "clip"})
    assert run(flags={"stage": "text", "encoder": "none"}).values["stage"]["name"] == "text"


def test_components_of_the_starting_model_are_kept(run: Callable[..., Resolved], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    components = {"encoder": {"name": "clip", "image_size": 64, "width": 3}, "backbone": None}
    (tmp_path / "model" / "config.json").write_text(json.dumps({"components": components}))
    resolved = run(flags={"from": "model"})
    assert resolved.values["encoder"] == {"name": "clip", "image_size": 64, "width": 3}
    assert resolved.origins["encoder.width"] == "model/config.json"
    assert run(flags={"from": "model", "encoder": "siglip"}).values["encoder"]["image_size"] == 224


def test_round_trip_is_byte_for_byte(run: Callable[..., Resolved]) -> None:
    text = run(
        "encoder.label=naïve 漢字", "encoder.patch=null", flags={"dataset": "vqa"}, argv=["ghostvis", "train"]
    ).to_json()
    assert Resolved.from_json(text).to_json() == text
    document = json.loads(text)
    assert document["components"]["encoder:siglip"]["build"].endswith("build")
    assert set(document["versions"]) == {"ghostvis", "python", "torch"}
    assert document["plugins"] == {"(given)": ""}


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=5))
def test_any_json_value_survives_the_round_trip(value: Any) -> None:
    text = Resolved(values={"x": value}, origins={"x": "y"}).to_json()
    assert Resolved.from_json(text).values == {"x": value}
    assert Resolved.from_json(text).to_json() == text


def test_a_resolved_run_is_a_recipe_that_gives_the_same_run(run: Callable[..., Resolved], tmp_path: Path) -> None:
    first = run("encoder.patch=null", "stage.steps=7", flags={"encoder": "siglip", "dataset": ["vqa", "scenes"]})
    (tmp_path / "resolved.json").write_text(first.to_json())
    registry = make_registry(Defaults(origin="x", defaults={"encoder": "clip", "dataset": "easy-vqa"}))
    again = resolve(registry=registry, recipes=["resolved.json"], env={}, cwd=tmp_path)
    assert again.values == first.values
    none = run(flags={"encoder": "none"})
    (tmp_path / "resolved.json").write_text(none.to_json())
    assert resolve(registry=registry, recipes=["resolved.json"], env={}, cwd=tmp_path).values == none.values


def test_no_absolute_path_of_the_working_directory_is_kept(run: Callable[..., Resolved], tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(f'[encoder]\nlabel = "{tmp_path}/weights.bin"')
    argv = [f"{tmp_path}/bin/ghostvis", "train", f"--recipe={tmp_path}/a.toml", f"{Path.home()}/x"]
    resolved = run(recipes=[str(tmp_path / "a.toml")], flags={"from": str(tmp_path / "model")}, argv=argv)
    assert resolved.values["from"] == "model"
    assert resolved.values["encoder"]["label"] == "weights.bin"
    assert resolved.argv == ["ghostvis", "train", "--recipe=a.toml", "~/x"]
    assert str(tmp_path) not in resolved.to_json()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format_version": 9}', '{"format_version": 1, "values": []}', '{"format_version": 1}']
)
def test_a_corrupt_resolved_json_is_a_data_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "resolved.json").write_text(text)
    with pytest.raises(DataError, match=r"resolved\.json"):
        load_resolved(tmp_path / "resolved.json")


def test_a_worker_gets_the_plugins_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry.load(PluginSettings())
    resolved = resolve(registry=registry, flags={"encoder": "efficientnet_lite"}, env={}, kinds=["encoder"])
    assert registry_for(resolved).names("encoder") == registry.names("encoder")
    resolved.components["encoder:efficientnet_lite"]["version"] = "99"
    with pytest.raises(ConfigError, match="was resolved with ghostvis 99"):
        registry_for(resolved)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("384", 384), ("3e-4", 3e-4), ("true", True), ("[1, 2]", [1, 2]), ("{a = 1}", {"a": 1}), ("null", None),
        ("siglip", "siglip"), ('"384"', "384"), ("", ""), ("a b", "a b"), ("12#34", "12#34"), ("#fff", "#fff"),
        ("2024-01-01", "2024-01-01"), ("1\nw = 2", "1\nw = 2"), ("=", "="), ("C:\\x", "C:\\x"),
    ],
)  # fmt: skip
def test_literals(text: str, value: Any) -> None:
    assert literal(text) == value
    assert type(literal(text)) is type(value)


@given(st.integers(-(2**60), 2**60) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_read_as_json_writes_them(value: float) -> None:
    assert literal(json.dumps(value)) == value


@given(st.text())
def test_a_literal_never_fails(text: str) -> None:
    literal(text)


def test_a_worker_loads_the_plugin_files_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "from ghostvis_plugins import encoder, hookimpl\nfrom pydantic import BaseModel\n"
        "class Config(BaseModel, extra='forbid'): ...\n"
        "@hookimpl\ndef ghostvis_components():\n    yield encoder('own', config=Config, build=print)\n"
    )
    (tmp_path / "run_plugin_file.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    registry = Registry.load(PluginSettings(files=(str(tmp_path / "run_plugin_file.py"),)))
    resolved = resolve(registry=registry, flags={"encoder": "own"}, env={}, kinds=["encoder"])
    assert resolved.plugin_files == ["run_plugin_file.py"]
    again = registry_for(Resolved.from_json(resolved.to_json()))
    assert again.provider("encoder", "own").dist == "run_plugin_file.py"
    (tmp_path / "run_plugin_file.py").write_text(f"{text}# changed\n")
    with pytest.raises(ConfigError, match=r"was resolved with run_plugin_file.py sha256:"):
        registry_for(resolved)
    monkeypatch.delitem(sys.modules, "run_plugin_file")
