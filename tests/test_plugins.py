"""Discovery: filters before import, one broken plugin hurts nobody else, conflicts are the user's decision."""

# ruff: noqa: F811 (fixtures are imported by name)
from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest
from fake_plugins import GOOD, Install, install, site  # noqa: F401
from pydantic import BaseModel, ConfigDict

from ghostvis_plugins import ComponentSpec, ConfigError, Kind, MissingError, UnavailableError, encoder, hookimpl
from ghostvis_plugins.manager import Registry
from ghostvis_plugins.settings import PluginSettings, load_settings

HOOK = """
from ghostvis_plugins import encoder, hookimpl

@hookimpl
def ghostvis_components():
    {body}
"""
HOSTILE = {
    "missing_import": ("import a_package_that_is_gone", "No module named 'a_package_that_is_gone'"),
    "exits": ("import sys; sys.exit('bye')", "exit('bye')"),
    "raises": ("raise ValueError('oops')", "ValueError: oops"),
    "old_api": ("GHOSTVIS_API = 99\n" + GOOD, "plugin API 99, this ghostvis has 1"),
    "misspelt": (GOOD.replace("ghostvis_components", "ghostvis_component"), "Did you mean 'ghostvis_components'?"),
    "undecorated": ("def ghostvis_components(): return []", "lacks @hookimpl"),
    "empty": ("x = 1", "implements none of"),
    "wrong_type": (HOOK.format(body="yield 'siglip'"), "must yield ComponentSpec, not str"),
    "not_a_list": (HOOK.format(body="return encoder('x', config='a:b', build='a:b')"), "must yield ComponentSpec"),
    "half_way": (HOOK.format(body="yield encoder('half', config='a:b', build='a:b'); 1 / 0"), "ZeroDivisionError"),
    "exits_later": (HOOK.format(body="raise SystemExit(3)"), "exit(3)"),
    "twice": (HOOK.format(body="yield from [encoder('t', config='a:b', build='a:b')] * 2"), "encoder 't' twice"),
    "bad_target": (HOOK.format(body="yield encoder('t', config='a.b', build='a:b')"), "not 'package.module:attribute'"),
    "bad_name": (HOOK.format(body="yield encoder('a/b', config='a:b', build='a:b')"), "a name is letters"),
    "bad_kind": (HOOK.format(body="import dataclasses; yield dataclasses.replace(encoder('t', config='a:b', "
                                  "build='a:b'), kind='encodr')"), "unknown kind 'encodr'"),
    "bad_argument": (GOOD.replace("ghostvis_components()", "ghostvis_components(registry)"), "registry"),
}  # fmt: skip


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    image_size: int = 224


def spec(name: str = "e") -> ComponentSpec:
    return encoder(name, config=Config, build=lambda config: None)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_plugin_is_named_and_left_out(name: str, install: Install) -> None:
    source, reason = HOSTILE[name]
    install(f"ghostvis-{name}", source)
    install("ghostvis-dino", GOOD)
    registry = Registry.load(PluginSettings())
    infos = {info.dist: info for info in registry.plugins}
    assert infos[f"ghostvis-{name}"].status == "broken"
    assert reason in infos[f"ghostvis-{name}"].error
    assert infos[f"ghostvis-{name}"].components == ()
    assert infos["ghostvis-dino"].status == "active"
    assert "dinov3" in registry.names("encoder")
    assert not {"half", "t", "x"} & set(registry.names("encoder"))
    with pytest.raises(MissingError, match=f"failed to load: {name}"):
        registry.get("encoder", "nothing-like-it")


@pytest.mark.parametrize("name", HOSTILE)
def test_strict_mode_raises_it(name: str, install: Install) -> None:
    install(f"ghostvis-{name}", HOSTILE[name][0])
    with pytest.raises((Exception, SystemExit)):
        Registry.load(PluginSettings(strict=True))


def test_a_heavy_import_is_attributed_to_its_plugin(site: Path, install: Install) -> None:
    (site / "cv2.py").write_text("import time; time.sleep(0.05)")
    install("ghostvis-heavy", "import cv2\n" + GOOD)
    info = next(info for info in Registry.load(PluginSettings()).plugins if info.name == "heavy")
    assert info.status == "active"
    assert info.heavy == ("cv2",)
    assert info.import_ms >= 50


def test_what_a_plugin_prints_while_loading_goes_to_stderr(
    install: Install,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install("ghostvis-loud", "print('hello')\n" + GOOD)
    Registry.load(PluginSettings())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "hello" in captured.err


@pytest.mark.parametrize("word", ["ghostvis-broken", "Ghostvis_Broken", "broken"])
def test_disabled_is_filtered_before_import(word: str, install: Install) -> None:
    install("ghostvis-broken", "raise SystemExit")
    registry = Registry.load(PluginSettings(disabled=(word,), strict=True))
    info = next(info for info in registry.plugins if info.name == "broken")
    assert info.status == "disabled"
    assert "ghostvis_broken" not in sys.modules
    assert registry.warnings == []


@pytest.mark.parametrize(("enabled", "expected"), [((), set()), (("ghostvis-dino",), {"dino"}), (None, {"dino", "b"})])
def test_enabled_is_an_allow_list_and_empty_means_built_ins_only(
    enabled: tuple[str, ...] | None,
    expected: set[str],
    install: Install,
) -> None:
    install("ghostvis-dino", GOOD)
    install("ghostvis-b", GOOD.replace("dinov3", "b"))
    registry = Registry.load(PluginSettings(enabled=enabled))
    assert {info.name for info in registry.plugins if info.status == "active" and not info.builtin} == expected
    assert any(info.builtin and info.status == "active" for info in registry.plugins)


def test_unknown_names_in_lists_are_warned_of(install: Install) -> None:
    install("ghostvis-dino", GOOD)
    settings = PluginSettings(
        enabled=("ghostvis-dno",),
        disabled=("ghostvis",),
        prefer={"encoder:nope": "x", "encoder:efficientnet_lite": "y"},
    )
    warnings = "\n".join(Registry.load(settings).warnings)
    assert "enabled names 'ghostvis-dno', but no such plugin is installed. Did you mean 'ghostvis-dino'?" in warnings
    assert "built-ins cannot be switched off" in warnings
    assert "there is no encoder 'nope'" in warnings
    assert "to 'y', but no such plugin" in warnings


def test_a_conflict_names_both_parties_and_every_cure_works(install: Install) -> None:
    install("ghostvis-dino", GOOD)
    install("ghostvis-clash", GOOD)
    registry = Registry.load(PluginSettings())
    assert registry.names("encoder").count("dinov3") == 1
    assert len(registry.conflicts()) == 1
    with pytest.raises(ConfigError) as caught:
        registry.get("encoder", "dinov3")
    for text in ("ghostvis-dino", "ghostvis-clash", "disabled", "prefer", "ghostvis-clash/dinov3"):
        assert text in str(caught.value)
    assert registry.provider("encoder", "ghostvis-clash/dinov3").dist == "ghostvis-clash"
    preferred = Registry.load(PluginSettings(prefer={"encoder:dinov3": "ghostvis-clash"}))
    assert preferred.provider("encoder", "dinov3").dist == "ghostvis-clash"
    assert preferred.conflicts() == []
    without = Registry.load(PluginSettings(disabled=("ghostvis-clash",)))
    assert without.provider("encoder", "dinov3").dist == "ghostvis-dino"


def test_a_third_party_cannot_silently_replace_a_built_in(install: Install) -> None:
    install("ghostvis-clash", GOOD.replace("dinov3", "efficientnet_lite"))
    with pytest.raises(ConfigError, match=r"ghostvis and ghostvis-clash"):
        Registry.load(PluginSettings()).get("encoder", "efficientnet_lite")


def test_a_foreign_entry_point_called_like_ours_is_not_a_built_in(install: Install) -> None:
    install("ghostvis-dino", GOOD, entry="components")
    registry = Registry.load(PluginSettings())
    assert [info.builtin for info in registry.plugins if info.name == "components"] == [True, False]
    assert registry.names("resampler")


def test_built_ins_load_without_an_installed_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda group: [])
    registry = Registry.load(PluginSettings())
    assert {info.name for info in registry.plugins} == {"components", "stages"}
    assert "efficientnet_lite" in registry.names("encoder")


FILE_PLUGIN = """
from ghostvis_plugins import encoder, hookimpl

def build(config):
    return "built"

@hookimpl
def ghostvis_components():
    yield encoder("mine", config="pydantic:BaseModel", build="my_encoder:build")
"""


def test_one_off_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_encoder.py").write_text(FILE_PLUGIN)
    settings = load_settings({"GHOSTVIS_PLUGIN_FILES": "my_encoder.py", "GHOSTVIS_PLUGINS": ""}, cwd=tmp_path)
    registry = Registry.load(settings)
    assert registry.get("encoder", "mine").load_build()(None) == "built"
    assert registry.provider("encoder", "my_encoder.py/mine").version.startswith("sha256:")
    assert Registry.load(settings).names("encoder") == registry.names("encoder")  # loading again is harmless
    monkeypatch.delitem(sys.modules, "my_encoder")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("json.py", FILE_PLUGIN, "name of an installed module"),
        ("not-a-name.py", FILE_PLUGIN, "named like a Python module"),
        ("broken_file.py", "def (", "SyntaxError"),
        ("gone.py", None, "there is no file"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, text: str | None, reason: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    info = Registry.load(PluginSettings(files=(str(tmp_path / name),))).plugins[-1]
    assert info.status == "broken"
    assert reason in info.error
    assert Path(name).stem in ("json",) or Path(name).stem not in sys.modules


def test_required(install: Install) -> None:
    install("ghostvis-dino", GOOD)
    install("ghostvis-broken", "import a_package_that_is_gone")
    Registry.load(PluginSettings(required=("ghostvis-dino>=0.3",))).check_required()
    for text, reason in {
        "ghostvis-dino>=0.4": "installed is 0.3.0",
        "ghostvis-other": "not installed",
        "ghostvis-broken": "broken",
    }.items():
        with pytest.raises(MissingError, match=reason):
            Registry.load(PluginSettings(required=(text,))).check_required()
    with pytest.raises(ConfigError, match="not a requirement"):
        Registry.load(PluginSettings(required=("a b c",))).check_required()


def test_missing_names_are_explained() -> None:
    registry = Registry.from_specs([spec("siglip"), spec("clip")])
    with pytest.raises(
        MissingError, match=r"No encoder named 'sigklip'. Did you mean 'siglip'\? Available: clip, siglip"
    ):
        registry.get("encoder", "sigklip")
    with pytest.raises(MissingError, match=r"Did you mean 'encoder'\?"):
        registry.get("encodr", "x")
    with pytest.raises(MissingError, match="No plugin provides any task"):
        registry.get(Kind.task, "vqa")


def test_make_config_reports_every_problem_with_its_origin() -> None:
    registry = Registry.from_specs([spec("siglip")])
    origins = {"encoder.image_sise": "align.toml", "encoder": "--set encoder"}
    with pytest.raises(ConfigError) as caught:
        registry.make_config("encoder", "siglip", {"name": "siglip", "image_sise": 3, "image_size": "big"}, origins)
    text = str(caught.value)
    assert "encoder.image_sise = 3: unknown key; did you mean encoder.image_size?   [from align.toml]" in text
    assert "encoder.image_size = 'big'" in text
    assert "pydantic" not in text
    assert registry.make_config("encoder", "siglip", {"name": "siglip", "image_size": 32}) == Config(image_size=32)


@pytest.mark.parametrize(
    ("target", "error", "reason"),
    [
        ("no_such_package.x:y", MissingError, "there is no module 'no_such_package'"),
        ("json:no_such_attribute", MissingError, "no_such_attribute"),
        ("needs_gone:Config", UnavailableError, "needs the Python package 'a_package_that_is_gone'"),
        ("no colon", MissingError, "package.module:attribute"),
    ],
)
def test_a_target_that_cannot_be_imported_is_a_user_error(
    site: Path,
    target: str,
    error: type[Exception],
    reason: str,
) -> None:
    (site / "needs_gone.py").write_text("import a_package_that_is_gone")
    with pytest.raises(error, match=reason):
        ComponentSpec(kind=Kind.encoder, name="x", config=target, build="a:b").load_config()


def test_register_a_plugin_object() -> None:
    class Plugin:
        @hookimpl
        def ghostvis_components(self):
            yield spec("mine")

    registry = Registry.from_specs([])
    registry.register(Plugin(), name="mine")
    assert registry.names("encoder") == ["mine"]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_plugins_toml_layers(tmp_path: Path) -> None:
    write(
        tmp_path / "cwd" / "plugins.toml", '[plugins]\ndisabled = ["a"]\nfiles = ["x.py"]\nprefer = {"encoder:e" = "p"}'
    )
    write(
        tmp_path / "user" / "plugins.toml", '[plugins]\ndisabled = ["b"]\nenabled = ["u"]\nprefer = {"encoder:f" = "q"}'
    )
    settings = load_settings({}, cwd=tmp_path / "cwd", user_dir=tmp_path / "user")
    assert set(settings.disabled) == {"a", "b"}
    assert settings.enabled == ("u",)
    assert settings.prefer == {"encoder:e": "p", "encoder:f": "q"}
    assert settings.files == (str((tmp_path / "cwd" / "x.py").resolve()),)
    assert [layer.origin for layer in settings.layers] == ["plugins.toml", "user plugins.toml", "packaged plugins.toml"]
    env = {"GHOSTVIS_PLUGINS": "e, f", "GHOSTVIS_DISABLE_PLUGINS": "c", "GHOSTVIS_STRICT_PLUGINS": "1"}
    settings = load_settings(env, cwd=tmp_path / "cwd", user_dir=tmp_path / "user")
    assert settings.enabled == ("e", "f")
    assert set(settings.disabled) == {"a", "b", "c"}
    assert settings.strict
    safe = load_settings({"GHOSTVIS_PLUGINS": ""}, cwd=tmp_path / "cwd", user_dir=tmp_path / "user")
    assert safe.enabled == ()
    assert safe.files == ()


def test_the_packaged_defaults_name_components_that_exist() -> None:
    settings = load_settings({}, cwd=Path("/"), user_dir=Path("/nowhere"))
    registry = Registry.load(settings)
    for kind, name in settings.layers[-1].defaults.items():
        assert registry.get(kind, name).name == name


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[plugins\n", "plugins.toml: not valid TOML: .*line 1"),
        ("[plugin]\n", "plugins.toml: plugin: unknown key. Did you mean 'plugins'"),
        ('[plugins]\ndisable = ["x"]', "plugins.disable: unknown key. Did you mean 'disabled'"),
        ('[plugins]\ndisabled = "x"', "plugins.disabled must be a list"),
        ("[plugins]\ndisabled = [1]", "must be a list of names"),
        ('[defaults]\nencodr = "x"', "Did you mean 'encoder'"),
        ("[options.encoder]\nx = 1", "options.encoder.x must be a table"),
        ("schema = 2", "reads schema 1"),
        ("a = '\xff'".encode("latin-1"), "not UTF-8"),
    ],
)
def test_a_wrong_plugins_toml_is_named(tmp_path: Path, text: str | bytes, reason: str) -> None:
    (tmp_path / "plugins.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=reason):
        load_settings({}, cwd=tmp_path, user_dir=tmp_path / "none")
