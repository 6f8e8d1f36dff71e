"""Does a component keep the contract of its kind? The same checks for built-ins and third parties.

Checks run on tiny inputs on the CPU and on the meta device, with the component's default options. Where those do not
make a component, or a large one, its config gives an example: ``ConfigDict(json_schema_extra={"examples": [{…}]})``.
Nothing is downloaded: packages and hubs are told to stay offline, a component with a ``weights`` option
is checked with ``"random"``, and what cannot be checked without the network is named in ``skipped``.

``ghostvis plugins check`` and :func:`ghostvis_plugins.testing.assert_component_ok` both end here. Torch is imported
inside the checks that need it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

from .api import ComponentSpec, Kind
from .errors import ConfigError, GhostVisError, UnavailableError
from .isolation import PluginError, check_spec, one_line
from .settings import ROOT

if TYPE_CHECKING:
    from pydantic import BaseModel

FORBIDDEN_IN_CONFIG = ("torch", "torchvision", "timm", "transformers", "tensorflow", "jax")
OFFLINE = {"PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken promise. ``check`` is a stable name, ``message`` says what to change."""

    check: str
    message: str


@dataclass(slots=True)
class Report:
    """What the checks of one component found."""

    problems: list[Problem] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def expect(self, condition: object, check: str, message: str) -> bool:
        """Note a problem unless ``condition`` holds; returns whether it does."""
        if not condition:
            self.problems.append(Problem(check, message))
        return bool(condition)

    @contextlib.contextmanager
    def step(self, check: str) -> Iterator[None]:
        """Anything raised inside is a problem named ``check``; what is out of reach offline is skipped."""
        try:
            yield
        except UnavailableError as error:
            self.skipped.append(f"{check}: {error.message}")
        except Exception as error:
            self.problems.append(Problem(check, error.message if isinstance(error, GhostVisError) else one_line(error)))


def check_component(
    spec: ComponentSpec[Any, Any], *, options: Mapping[str, Any] | None = None, skipped: list[str] | None = None
) -> list[Problem]:
    """Every broken promise of a component; an empty list means that it conforms.

    ``options`` take the place of the config's first example. Reasons why something was not checked are appended to
    ``skipped``.
    """
    report = Report()
    with offline():
        _check(spec, dict(options or {}), report)
    if skipped is not None:
        skipped += report.skipped
    return report.problems


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Keep pip and the model hubs off the network, in this process and in those it starts."""
    before = {key: os.environ.get(key) for key in OFFLINE}
    os.environ.update(OFFLINE)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _check(spec: ComponentSpec[Any, Any], options: dict[str, Any], report: Report) -> None:
    try:
        check_spec(spec)
        model = spec.load_config()
    except (PluginError, GhostVisError) as error:
        report.problems.append(Problem("targets", str(error)))
        return
    except Exception as error:
        report.problems.append(Problem("targets", f"config {spec.config!r}: {one_line(error)}"))
        return
    config = _check_config(spec, model, options, report)
    build: Callable[..., Any] | None = None
    try:
        build = spec.load_build()
    except GhostVisError as error:
        report.problems.append(Problem("targets", str(error)))
    except Exception as error:
        report.problems.append(Problem("targets", f"build {spec.build!r}: {one_line(error)}"))
    if build is None or not report.expect(callable(build), "targets", f"build {spec.build!r} cannot be called"):
        return
    if config is not None:
        _behaviour(spec.kind)(build, config, report)


def _check_config(
    spec: ComponentSpec[Any, Any], model: Any, options: dict[str, Any], report: Report
) -> BaseModel | None:
    """The config model's promises; returns a config to build with, or None when there is none."""
    from pydantic import BaseModel, ValidationError

    from .explain import describe

    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        report.problems.append(Problem("config", f"{model!r} is not a pydantic model"))
        return None
    for loose in _loose_models(model):
        message = f'{loose.__name__} accepts unknown keys; set model_config = ConfigDict(extra="forbid")'
        report.problems.append(Problem("config-extra", message))
    for name in ("name", *(["weight"] if spec.kind == Kind.dataset else [])):
        report.expect(name not in model.model_fields, "config-reserved", f"the option '{name}' is reserved")
    _check_imports(spec, report)

    options = options or _example(model)
    required = [name for name, info in model.model_fields.items() if info.is_required() and name not in options]
    if required:
        missing = ", ".join(required)
        report.skipped.append(f"behaviour: {missing} has no default, and the config has no example")
        return None
    values = {**_offline_options(model, options), **options}
    try:
        config: BaseModel = model.model_validate(values)
    except ValidationError as error:
        report.problems += [Problem("config-defaults", line) for line in describe(error, values, model)]
        return None
    except Exception as error:
        report.problems.append(Problem("config-defaults", one_line(error)))
        return None
    with report.step("config-json"):
        again = model.model_validate(json.loads(json.dumps(config.model_dump(mode="json"))))
        report.expect(again == config, "config-json", "the config is another one after a round trip through JSON")
    return config


def _example(model: type[BaseModel]) -> dict[str, Any]:
    """The first example in the model's JSON schema."""
    extra = model.model_config.get("json_schema_extra")
    examples = extra.get("examples") if isinstance(extra, dict) else None
    first = examples[0] if isinstance(examples, list) and examples else None
    return dict(first) if isinstance(first, dict) else {}


def _offline_options(model: type[BaseModel], options: Mapping[str, Any]) -> dict[str, Any]:
    """``weights = "random"`` where the component has that option: the documented way to need no download."""
    if "weights" not in model.model_fields or "weights" in options:
        return {}
    try:
        model.model_validate({**options, "weights": "random"})
    except ValueError:
        return {}
    return {"weights": "random"}


def _loose_models(model: Any, seen: set[Any] | None = None) -> list[Any]:
    """The model and the models inside it that do not forbid unknown keys."""
    seen = set() if seen is None else seen
    if model in seen or not hasattr(model, "model_fields"):
        return []
    seen.add(model)
    loose = [] if model.model_config.get("extra") == "forbid" else [model]
    for info in model.model_fields.values():
        for part in _parts(info.annotation):
            loose += _loose_models(part, seen)
    return loose


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


def _check_imports(spec: ComponentSpec[Any, Any], report: Report) -> None:
    """The config's module must be importable without torch: it is imported before a run is launched.

    A config that is given as a class is imported with its plugin; the plugin's own listing shows what that costs.
    """
    if not isinstance(spec.config, str):
        return
    module = spec.config.partition(":")[0]
    path = [str(ROOT), *sys.path]
    if "." not in module:  # a one-off file lies in no folder of the search path
        path.append(os.path.dirname(getattr(sys.modules.get(module), "__file__", None) or ""))
    heavy = _heavy_imports(module, tuple(path))
    if isinstance(heavy, str):
        report.problems.append(Problem("config-imports", f"'{module}' cannot be imported on its own: {heavy}"))
    elif heavy:
        message = f"'{module}' imports {', '.join(heavy)}; keep the config in a module of its own"
        report.problems.append(Problem("config-imports", message))


@cache
def _heavy_imports(module: str, path: tuple[str, ...]) -> tuple[str, ...] | str:
    """What importing ``module`` in a fresh interpreter pulls in, or the error it ends with."""
    code = (
        f"import sys, importlib; sys.path[:] = {list(path)!r}; importlib.import_module({module!r}); "
        f"print(*[name for name in {FORBIDDEN_IN_CONFIG!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    lines = done.stdout.splitlines()
    return tuple(lines[-1].split()) if lines else ()


def _behaviour(kind: Kind) -> Callable[[Callable[..., Any], Any, Report], None]:
    from . import conformance_data as data
    from . import conformance_modules as modules

    return {
        Kind.encoder: modules.check_encoder,
        Kind.resampler: modules.check_resampler,
        Kind.projector: modules.check_projector,
        Kind.backbone: modules.check_backbone,
        Kind.optimizer: modules.check_optimizer,
        Kind.rl: modules.check_rl,
        Kind.dataset: data.check_dataset,
        Kind.task: data.check_task,
        Kind.tracker: data.check_tracker,
        Kind.reward: data.check_reward,
        Kind.stage: data.check_callable,
        Kind.chat_command: data.check_callable,
        Kind.engine: data.check_engine,
    }[kind]


def missing_members(thing: Any, protocol: type) -> list[str]:
    """Members of a Protocol that ``thing`` lacks."""
    operators = {"__len__", "__getitem__", "__call__"} & vars(protocol).keys()
    names = {name for name in vars(protocol) if not name.startswith("_")} | operators | set(protocol.__annotations__)
    return sorted(name for name in names if not hasattr(thing, name))


def fits(report: Report, thing: Any, protocol: type) -> bool:
    """Note the members that are missing; whether there are none."""
    missing = missing_members(thing, protocol)
    return report.expect(not missing, "protocol", f"a {protocol.__name__} has {', '.join(missing)}; this one has not")


def first_that_fits(attempts: list[Callable[[], Any]]) -> Any:
    """The result of the first attempt that is not refused with ConfigError; shapes are a component's own choice."""
    for number, attempt in enumerate(attempts, start=1):
        try:
            return attempt()
        except ConfigError:
            if number == len(attempts):
                raise
    return None
