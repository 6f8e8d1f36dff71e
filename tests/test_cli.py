"""The command line as a process: exit codes, streams, what it imports, and whose ``components`` it uses."""

# ruff: noqa: F811 (fixtures are imported by name)
from __future__ import annotations

import functools
import json
import os
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from fake_plugins import GOOD, Install, install, site, write_plugin  # noqa: F401

from ghostvis_cli import app as app_module
from ghostvis_cli import session
from ghostvis_cli._own import own
from ghostvis_plugins import ExitCode, Kind
from ghostvis_plugins.settings import ROOT

FORBIDDEN = ("torch", "timm", "textual", "webdataset", "pydantic_settings", "numpy")
Cli = Callable[..., tuple[int, str, str]]
parameters_of = functools.cache(typer.main.get_params_from_function)


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run a command line in this process, in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GHOSTVIS_CONFIG_DIR", str(tmp_path / "user"))
    # Each command line asks for the type hints of every command, three times: nine tenths of what most take.
    monkeypatch.setattr(typer.main, "get_params_from_function", parameters_of)
    before = dict(os.environ)

    def cli(*arguments: str) -> tuple[int, str, str]:
        session.registry.cache_clear()
        capsys.readouterr()
        code = app_module.run(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield cli
    session.registry.cache_clear()
    for key in set(os.environ) - set(before):
        del os.environ[key]
    os.environ.update(before)


def process(*arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """The command line in a fresh interpreter that finds this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    command = [sys.executable, "-m", "ghostvis_cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_help_documents_every_exit_code(cli: Cli) -> None:
    code, out, _ = cli("--help")
    assert code == 0
    assert list(app_module.EXIT_CODES) == list(ExitCode)
    for number, meaning in app_module.EXIT_CODES.items():
        assert re.search(rf"^\s+{number.value}  {meaning}$", out, re.MULTILINE)


GROUPS = ("", "launch", "runs", "data", "weights", "ckpt", "components", "plugins", "recipes", "config")


@pytest.mark.parametrize("group", GROUPS)
def test_what_a_command_does_is_not_cut_off(cli: Cli, monkeypatch: pytest.MonkeyPatch, group: str) -> None:
    """In the list of commands of a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = cli(*group.split(), "--help")
    assert code == 0
    assert "Commands:" in out
    assert "..." not in out.replace("COMMAND [ARGS]...", "")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("components show encoder efficientnet_lit", 4, "Did you mean 'efficientnet_lite'?"),
        ("components show encodr x", 4, "Did you mean 'encoder'?"),
        ("components list --kind encodr", 4, "Did you mean 'encoder'?"),
        ("plugins show ghostvs", 4, "Did you mean 'ghostvis'?"),
        ("plugins check encoder:nope", 4, "No encoder named 'nope'"),
        ("plugins disable ghostvis", 4, "built in"),
        ("plugins new x --kind encodr", 4, "Did you mean 'encoder'?"),
        ("plugins new No_Name --kind encoder", 3, "not a package name"),
        ("recipes cat cpu/3-algn", 4, "Did you mean 'cpu/3-align'?"),
        ("recipes cp cpu/3-align gone/x.toml", 3, "cannot be written"),
        ("config check nope.toml", 4, "recipe 'nope.toml' does not exist"),
        ("config show --set sed=3", 3, "did you mean seed?   [from --set sed]"),
        ("config show --encoder nope", 4, "[from --encoder]"),
        ("config explain sed", 4, "Did you mean 'seed'?"),
        ("plugins lst", 2, "Did you mean 'list'?"),
        ("plugins list --jsn", 2, "--json"),
        ("--plugin", 3, "--plugin needs a Python file"),
        ("train --stage algn", 4, "Did you mean 'align'?"),
        ("train --stage align --encoder nope", 4, "No encoder named 'nope'"),
    ],
)
def test_a_mistake_is_a_message_and_a_code(cli: Cli, arguments: str, code: int, message: str) -> None:
    found, out, err = cli(*arguments.split())
    assert found == code
    assert message in err
    assert out == ""
    assert "Traceback" not in err


def test_debug_shows_the_traceback() -> None:
    done = process("config", "show", "--set", "sed=3", "--debug")
    assert "Traceback" in done.stderr
    assert done.returncode != 0
    done = process("config", "show", "--set", "sed=3", GHOSTVIS_DEBUG="1")
    assert "Traceback" in done.stderr


def test_an_interrupt_is_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app_module, "registry", interrupted)
    assert cli("plugins", "list")[0] == ExitCode.INTERRUPTED


@pytest.mark.parametrize(
    "arguments",
    [
        "plugins list --json",
        "plugins list --kind encoder --json",
        "plugins show ghostvis --json",
        "plugins check resampler:identity --json",
        "components list --json",
        "components show resampler perceiver --json",
        "components show stage align --json",
        "recipes list --json",
        "config show --json",
        "config explain seed --json",
        "config check tiny/3-align --json",
        "doctor --json",
    ],
)
def test_json_is_all_there_is_on_stdout(cli: Cli, arguments: str) -> None:
    code, out, _ = cli(*arguments.split())
    assert code == 0
    assert json.loads(out)["schema"] == 1


def commands(app: typer.Typer, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every command with its epilog."""
    group = typer.main.get_group(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            for inner, sub in command.commands.items():
                yield (*prefix, name, inner), sub.epilog or ""
        else:
            yield (*prefix, name), command.epilog or ""


ALL_COMMANDS = dict(commands(app_module.build_app()))


@pytest.mark.parametrize("command", ALL_COMMANDS, ids=" ".join)
def test_every_command_has_two_examples_that_parse(cli: Cli, command: tuple[str, ...]) -> None:
    lines = [line.strip() for line in ALL_COMMANDS[command].splitlines() if line.strip().startswith("ghostvis ")]
    piped = [line for line in ALL_COMMANDS[command].splitlines() if "| ghostvis " in line]
    assert len(lines) + len(piped) == 2
    code, out, _ = cli(*command, "--help")
    assert code == 0
    assert not re.findall(r"<(?:int|str|float|path)\b[^>]*>", out), "a metavar says more than a type of Python"


@pytest.mark.parametrize(
    "command",
    [c for c in ALL_COMMANDS if c[0] in ("plugins", "components", "recipes", "config", "doctor")],
    ids=" ".join,
)
def test_examples_run(cli: Cli, install: Install, command: tuple[str, ...]) -> None:
    install("ghostvis-foo", GOOD)
    if command == ("plugins", "enable"):
        cli("plugins", "disable", "ghostvis-foo")
    if command == ("plugins", "check"):
        pytest.skip("runs every check; test_testing_kit does")
    for line in ALL_COMMANDS[command].splitlines():
        if line.strip().startswith("ghostvis "):
            code, _, err = cli(*shlex.split(line)[1:])
            assert code == 0, err


def modules_after(*arguments: str, **env: str) -> set[str]:
    code = (
        "import sys\nfrom ghostvis_cli.app import run\n"
        f"try: run({list(arguments)!r})\nexcept SystemExit: pass\n"
        "print('MODULES', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}, cwd=ROOT, check=True
    )
    return set(done.stdout.rpartition("MODULES ")[2].split())


@pytest.mark.parametrize(
    "arguments",
    ["--help", "plugins list", "components list --kind encoder", "recipes list", "config --help"]
    + [f"{' '.join(command)} --help" for command in ALL_COMMANDS if len(command) == 1],
)
def test_help_and_listings_import_nothing_heavy(arguments: str) -> None:
    loaded = modules_after(*arguments.split())
    assert "ghostvis_cli.app" in loaded
    assert not loaded & set(FORBIDDEN)


def cpu_seconds(arguments: list[str]) -> float:
    """Processor time of one process: nearly the wall time on an idle machine, and still meaningful on a busy one."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_start_up_stays_within_its_budget() -> None:
    """Best of several interleaved runs, as a multiple of importing the library that every command line is made with."""
    cases = {
        "typer": ["-c", "import typer.main"],
        "help": ["-m", "ghostvis_cli", "--help"],
        "train": ["-m", "ghostvis_cli", "train", "--help"],
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(7):
        for name, arguments in cases.items():
            times[name].append(cpu_seconds(arguments))
    best = {name: min(values) for name, values in times.items()}
    assert best["help"] <= 4.5 * best["typer"]
    assert best["train"] <= 5 * best["typer"]


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with its own ``components`` package and ``stages`` module."""
    (tmp_path / "components").mkdir()
    (tmp_path / "components" / "__init__.py").write_text("raise SystemExit('the wrong components')")
    (tmp_path / "stages.py").write_text("raise SystemExit('the wrong stages')")
    return tmp_path


@pytest.mark.parametrize("path", ["{root}", "{root}:{here}", "{here}:{root}"])
def test_a_folder_with_its_own_components_and_stages_does_no_harm(hostile: Path, path: str) -> None:
    search = path.format(root=ROOT, here=hostile).replace(":", os.pathsep)
    done = process("components", "show", "resampler", "perceiver", cwd=hostile, PYTHONPATH=search)
    assert done.returncode == 0, done.stderr
    assert "latents" in done.stdout
    worker = [sys.executable, "-m", "ghostvis_cli.worker", "--resolved", "nope.json"]
    done = subprocess.run(
        worker, cwd=hostile, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True, check=False
    )
    assert done.returncode == ExitCode.DATA, done.stderr
    assert "wrong" not in done.stderr


def test_without_the_guard_the_folder_wins(hostile: Path) -> None:
    """The hazard is real: the test above would prove nothing otherwise."""
    done = subprocess.run(
        [sys.executable, "-c", "import components"],
        cwd=hostile,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the wrong components" in done.stderr


def test_the_guard_names_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "overwritten").mkdir()
    (tmp_path / "overwritten" / "__init__.py").write_text("")
    with pytest.raises(ImportError, match="another package overwrote it"):
        own(("overwritten",), tmp_path)
    assert "overwritten" not in sys.modules
    with pytest.raises(ImportError, match="is missing"):
        own(("gone",), tmp_path)
    with pytest.raises(ImportError, match="before ghostvis"):
        own(("json",), tmp_path)
    own()  # ours are bound already


COMMANDS = """
from ghostvis_plugins import hookimpl

@hookimpl
def ghostvis_commands(app):
    {body}
"""


def test_a_plugin_adds_a_command(cli: Cli, install: Install) -> None:
    install("ghostvis-hello", COMMANDS.format(body="app.command()(hello)") + "\ndef hello(): print('hi')\n")
    assert cli("hello")[:2] == (0, "hi\n")
    assert "hello" in cli("--help")[1]
    assert cli("hello", "--no-plugins")[0] == ExitCode.USAGE


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("app.command('train')(lambda: None)", "command 'train' exists already"),
        ("app.callback()(lambda: None)", "must not set a callback"),
        ("pass", "added no command"),
        ("app.command('odd')(odd)", "NameError"),
    ],
)
def test_a_bad_command_spoils_only_its_plugin(cli: Cli, install: Install, body: str, reason: str) -> None:
    install("ghostvis-bad", COMMANDS.format(body=body) + "\ndef odd(x: 'Gone'): ...\n")
    code, out, err = cli("plugins", "list")
    assert code == 0
    assert reason in err
    assert re.search(r"bad +ghostvis-bad +0.3.0 +broken", out)


def test_every_command_works_beside_a_broken_plugin(cli: Cli, install: Install) -> None:
    install("ghostvis-broken", "import a_package_that_is_gone")
    for arguments in ("--help", "plugins list", "components list", "doctor --json", "config show --json"):
        code, out, err = cli(*arguments.split())
        assert code == 0
        assert "plugin 'broken' (ghostvis-broken) is left out: ModuleNotFoundError" in err
        assert "a_package" not in out or "json" in arguments or "plugins" in arguments
    assert cli("plugins", "check", "ghostvis-broken")[0] == ExitCode.FAILED
    assert cli("plugins", "disable", "ghostvis-broken")[0] == 0
    code, out, err = cli("plugins", "list")
    assert "is left out" not in err
    assert re.search(r"broken +ghostvis-broken +0.3.0 +disabled", out)
    assert cli("plugins", "enable", "broken")[0] == ExitCode.CONFIG  # it was written as ghostvis-broken
    assert cli("plugins", "enable", "ghostvis-broken")[0] == 0


def test_no_plugins_is_the_safe_mode(cli: Cli, install: Install) -> None:
    install("ghostvis-broken", "import a_package_that_is_gone")
    code, out, err = cli("plugins", "list", "--no-plugins")
    assert (code, err) == (0, "")
    assert "third-party plugins are switched off" in out


def test_strict_mode_shows_the_traceback_of_a_plugin(install: Install, site: Path) -> None:
    install("ghostvis-broken", "import a_package_that_is_gone")
    path = os.pathsep.join([str(site), str(ROOT)])
    done = process("plugins", "list", GHOSTVIS_STRICT_PLUGINS="1", PYTHONPATH=path)
    assert done.returncode != 0
    assert "a_package_that_is_gone" in done.stderr


def test_plugin_files(cli: Cli, tmp_path: Path) -> None:
    text = GOOD.replace("dinov3", "from_a_file")
    (tmp_path / "cli_plugin_file.py").write_text(text)
    code, out, _ = cli("components", "list", "--kind", "encoder", "--plugin", "cli_plugin_file.py")
    assert code == 0
    assert "from_a_file" in out
    assert "cli_plugin_file.py" in os.environ["GHOSTVIS_PLUGIN_FILES"]  # for worker processes
    assert str(tmp_path) not in cli("plugins", "list", "--json", "--plugin=cli_plugin_file.py")[1]
    code, _, err = cli("plugins", "list", "--plugin", "gone.py")
    assert code == 0
    assert "there is no file 'gone.py'" in err


def test_requirements_are_pins(cli: Cli, install: Install) -> None:
    install("ghostvis-dino", GOOD)
    assert "ghostvis-dino==0.3.0\n" in cli("plugins", "list", "--requirements")[1]


def test_conflicts_are_shown(cli: Cli, install: Install) -> None:
    install("ghostvis-dino", GOOD)
    install("ghostvis-clash", GOOD)
    _, _, err = cli("plugins", "list")
    assert "2 plugins provide encoder 'dinov3'" in err
    assert len(json.loads(cli("plugins", "list", "--json")[1])["conflicts"]) == 1
    assert cli("config", "show", "--encoder", "dinov3")[0] == ExitCode.CONFIG


def test_component_options_are_listed(cli: Cli) -> None:
    rows = json.loads(cli("components", "show", "resampler", "perceiver", "--json")[1])["options"]
    latents = next(row for row in rows if row["key"] == "latents")
    assert (latents["type"], latents["default"]) == ("int", 64)
    assert latents["description"]


def test_config_explain_shows_what_was_overridden(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("seed = 3")
    _, out, _ = cli("config", "explain", "seed", "--recipe", "a.toml", "--set", "seed=4")
    assert "seed = 4   [from --set seed]" in out
    assert "overrides 3   [from a.toml]" in out
    assert "Seed of initialisation" in out


def test_recipes_are_copied_and_not_overwritten(cli: Cli, tmp_path: Path) -> None:
    assert cli("recipes", "cp", "cpu/3-align", "mine.toml")[0] == 0
    assert (tmp_path / "mine.toml").read_text() == cli("recipes", "cat", "cpu/3-align")[1]
    assert cli("recipes", "cp", "cpu/4-sft", "mine.toml")[0] == ExitCode.CONFIG
    assert cli("recipes", "cp", "cpu/4-sft", "mine.toml", "--force")[0] == 0
    assert "4 of 4" in (tmp_path / "mine.toml").read_text()


def test_packaged_recipes_are_listed_and_checked(cli: Cli) -> None:
    """One of each preset is; that all of them resolve, test_recipes says."""
    recipes = json.loads(cli("recipes", "list", "--json")[1])["recipes"]
    assert all(recipe["summary"] for recipe in recipes)
    for name in {recipe["name"].rpartition("/")[0]: recipe["name"] for recipe in recipes}.values():
        code, _, err = cli("config", "check", name)
        assert code == 0, err


def test_doctor_is_fit_to_be_pasted(cli: Cli, tmp_path: Path, hostile: Path) -> None:
    code, out, _ = cli("doctor", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["versions"]["torch"]
    assert "cpu" in report["machine"]["devices"]
    assert str(Path.home()) not in out
    assert str(tmp_path) not in out
    assert "://" not in out
    assert sum("has its own" in problem for problem in report["problems"]) == 2


def test_doctor_sees_a_distribution_installed_twice(cli: Cli, install: Install, tmp_path: Path) -> None:
    install("ghostvis-dino", GOOD)
    other = tmp_path / "other"
    other.mkdir()
    write_plugin(other, "ghostvis-dino", GOOD, version="0.2.0")
    sys.path.append(str(other))
    try:
        problems = json.loads(cli("doctor", "--json")[1])["problems"]
    finally:
        sys.path.remove(str(other))
    assert any("'ghostvis-dino' is installed 2 times" in problem for problem in problems)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ghostvis config show --encoder eff", "efficientnet_lite"),
        ("ghostvis config show --recipe cpu/3", "cpu/3-align"),
        ("ghostvis components show resa", "resampler"),
    ],
)
def test_completion_knows_the_registry(words: str, expected: str) -> None:
    env = {"_GHOSTVIS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = process(**env)
    assert expected in done.stdout.split()
    assert done.stderr == ""


def test_completion_imports_nothing_heavy() -> None:
    env = {"_GHOSTVIS_COMPLETE": "complete_bash", "COMP_WORDS": "ghostvis train --encoder e", "COMP_CWORD": "3"}
    assert not modules_after(**env) & set(FORBIDDEN)


@pytest.mark.parametrize("kind", ["encoder", "resampler", "projector", "dataset"])
def test_a_new_plugin_package_conforms(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    name = f"ghostvis-new-{kind}"
    assert cli("plugins", "new", name, "--kind", kind)[0] == 0
    assert cli("plugins", "new", name, "--kind", kind)[0] == ExitCode.CONFIG  # it exists
    monkeypatch.syspath_prepend(tmp_path / name)
    plugin = __import__(name.replace("-", "_"))
    from ghostvis_plugins.testing import assert_component_ok

    (spec,) = plugin.ghostvis_components()
    assert spec.kind == Kind(kind)
    assert_component_ok(spec)


def test_the_tests_of_a_new_plugin_package_pass(cli: Cli, tmp_path: Path) -> None:
    cli("plugins", "new", "ghostvis-new", "--kind", "projector")
    folder = tmp_path / "ghostvis-new"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.parametrize(
    "text",
    [
        None,
        "schema = 1\n[plugins]\n# keep me\nenabled = ['a']\n[defaults]\n",
        "[plugins]\ndisabled = [\n  'b', # why\n]\n",
        "[defaults]\nencoder = 'x' # keep me\n",
    ],
)
def test_editing_disabled_keeps_the_rest(tmp_path: Path, text: str | None) -> None:
    import tomllib

    from ghostvis_cli.scaffold import edit_disabled

    path = tmp_path / "plugins.toml"
    before = {}
    if text is not None:
        path.write_text(text)
        before = tomllib.loads(text)
    edit_disabled(path, "ghostvis-x", add=True)
    after = tomllib.loads(path.read_text())
    assert after["plugins"]["disabled"] == [*before.get("plugins", {}).get("disabled", []), "ghostvis-x"]
    assert ("keep me" in path.read_text()) == ("keep me" in (text or ""))
    edit_disabled(path, "ghostvis-x", add=False)
    assert "ghostvis-x" not in path.read_text()
