"""The conformance kit finds each broken promise, and the built-ins keep all of them."""

# ruff: noqa: F811 (fixtures are imported by name, to test them where ghostvis is not installed)
from __future__ import annotations

import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from ghostvis_plugins import (
    ComponentSpec,
    ConfigError,
    UnavailableError,
    backbone,
    dataset,
    encoder,
    hookimpl,
    optimizer,
    projector,
    resampler,
    task,
    tracker,
)
from ghostvis_plugins.conformance import check_component
from ghostvis_plugins.manager import PluginInfo, Registry
from ghostvis_plugins.settings import ROOT
from ghostvis_plugins.testing import assert_component_ok, ghostvis_register, ghostvis_registry  # noqa: F401
from ghostvis_plugins.types import Conversation, EvalDoc, Generation, Length, SampleList, assistant, user


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = 8


def checks(spec: ComponentSpec, **more: Any) -> set[str]:
    """Names of the checks that fail."""
    return {problem.check for problem in check_component(spec, **more)}


def builtin_specs() -> list[ComponentSpec]:
    from components.builtin import ghostvis_components
    from stages.builtin import ghostvis_components as stage_components

    return [*ghostvis_components(), *stage_components()]


@pytest.mark.parametrize("spec", builtin_specs(), ids=lambda spec: f"{spec.kind}:{spec.name}")
def test_built_ins_conform(spec: ComponentSpec) -> None:
    assert_component_ok(spec)


class GoodEncoder(nn.Module):
    """Conforms; the tests below break one promise each."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.image_size, self.tokens, self.out_dim = (16, 16), 4, config.size
        self.linear = nn.Linear(3, config.size)

    def transform(self) -> dict[str, Any]:
        return {"size": 16}

    def preprocess(self, image: Any) -> torch.Tensor:
        pixels = torch.frombuffer(bytearray(image.resize((16, 16)).tobytes()), dtype=torch.uint8)
        return pixels.view(16, 16, 3).permute(2, 0, 1).float() / 255

    def init_weights(self) -> None:
        nn.init.normal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.linear(nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(2).transpose(1, 2))


class WrongWidth(GoodEncoder):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.out_dim = 7


class WrongTokens(GoodEncoder):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.tokens = 5


class Blind(GoodEncoder):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.zeros_like(pixels))


class Crowded(GoodEncoder):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels - pixels.mean(0))


class Unused(GoodEncoder):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.unused = nn.Linear(2, 2)


class Forgetful(GoodEncoder):
    """A random buffer that the weights file does not hold."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_buffer("scale", torch.rand(config.size), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels) * self.scale


class Allocating(GoodEncoder):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.extra = nn.Parameter(torch.zeros(config.size, device="cpu"))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels) + self.extra.to(pixels.device)


class BytePixels(GoodEncoder):
    def preprocess(self, image: Any) -> torch.Tensor:
        return (super().preprocess(image) * 255).byte()


class RandomCrop(GoodEncoder):
    def preprocess(self, image: Any) -> torch.Tensor:
        return super().preprocess(image) + torch.rand(1)


class OpaqueTransform(GoodEncoder):
    def transform(self) -> dict[str, Any]:
        return {"mean": torch.zeros(3)}


class Hasty(GoodEncoder):
    def transform(self) -> dict[str, Any]:
        return {"size": 16, "resize": "fast"}


class NotANumber(GoodEncoder):
    def init_weights(self) -> None:
        nn.init.constant_(self.linear.weight, float("nan"))


class Double(GoodEncoder):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels).double()


class Incomplete(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("build", "failing"),
    [
        (GoodEncoder, set()),
        (WrongWidth, {"shape", "shape-meta"}),
        (WrongTokens, {"shape", "shape-meta"}),
        (Blind, {"sees-image"}),
        (Crowded, {"batch"}),
        (Unused, {"gradient"}),
        (Forgetful, {"safetensors"}),
        (Allocating, {"build-meta"}),
        (BytePixels, {"preprocess"}),
        (RandomCrop, {"preprocess"}),
        (OpaqueTransform, {"transform"}),
        (Hasty, {"preprocess"}),
        (NotANumber, {"init-weights"}),
        (Double, {"dtype"}),
        (Incomplete, {"protocol"}),
        (lambda config: "text", {"build"}),
        (lambda: None, {"build-meta"}),
    ],
)
def test_encoders(build: Callable[..., Any], failing: set[str]) -> None:
    found = checks(encoder("e", config=Config, build=build))
    if failing:
        assert failing <= found
    else:
        assert found == set()


def test_weights_out_of_reach_are_skipped_and_not_downloaded() -> None:
    class Pretrained(Config):
        weights: str = "hub"

    class Online(GoodEncoder):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.weights = getattr(config, "weights", "hub")

        def init_weights(self) -> None:
            if self.weights != "random":
                raise UnavailableError("no network")
            super().init_weights()

    assert checks(encoder("e", config=Pretrained, build=Online)) == set()
    skipped: list[str] = []
    assert check_component(encoder("e", config=Config, build=Online), skipped=skipped) == []
    assert skipped == ["init-weights: no network"]


def test_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Loose(BaseModel):
        size: int = 8

    class Outer(Config):
        inner: Loose = Loose()

    class Bad(Config):
        size: int = Field("x", validate_default=True)

    class Reserved(Config):
        name: str = "x"

    class Weighted(Config):
        weight: int = 1

    class Required(Config):
        path: str

    class Example(Required):
        model_config = ConfigDict(json_schema_extra={"examples": [{"path": "x"}]})

    assert "config-extra" in checks(encoder("e", config=Loose, build=GoodEncoder))
    assert "config-extra" in checks(encoder("e", config=Outer, build=GoodEncoder))
    assert "config-defaults" in checks(encoder("e", config=Bad, build=GoodEncoder))
    assert "config-reserved" in checks(encoder("e", config=Reserved, build=GoodEncoder))
    assert "config-reserved" in checks(dataset("e", config=Weighted, build=lambda config, split: None))
    assert "config" in checks(encoder("e", config=dict, build=GoodEncoder))  # type: ignore[type-var]
    skipped: list[str] = []
    assert check_component(encoder("e", config=Required, build=WrongWidth), skipped=skipped) == []
    assert "path has no default" in skipped[-1]
    assert checks(encoder("e", config=Required, build=WrongWidth), options={"path": "x"})
    assert checks(encoder("e", config=Example, build=WrongWidth))

    (tmp_path / "heavy_config.py").write_text(
        "import torch\nfrom pydantic import BaseModel\nclass Config(BaseModel, extra='forbid'):\n    size: int = 8\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    problems = check_component(encoder("e", config="heavy_config:Config", build=GoodEncoder))  # type: ignore[arg-type]
    assert [problem.check for problem in problems] == ["config-imports"]
    assert "imports torch" in problems[0].message


@pytest.mark.parametrize("target", ["gone.module:x", "json:gone", "no-colon", "json:decoder"])
def test_targets(target: str) -> None:
    assert "targets" in checks(encoder("e", config="pydantic:BaseModel", build=target))


class GoodResampler(nn.Module):
    def __init__(self, config: Config, in_dim: int, in_tokens: int) -> None:
        super().__init__()
        self.tokens, self.out_dim = config.size, in_dim

    def init_weights(self) -> None: ...

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features[:, : self.tokens]


class WrongCount(GoodResampler):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features[:, : self.tokens + 1]


class Picky(GoodResampler):
    def __init__(self, config: Config, in_dim: int, in_tokens: int) -> None:
        if in_tokens != 49:
            raise ConfigError("only 49")
        super().__init__(config, in_dim, in_tokens)


class Never(GoodResampler):
    def __init__(self, config: Config, in_dim: int, in_tokens: int) -> None:
        raise ConfigError("never")


@pytest.mark.parametrize(
    ("build", "failing"),
    [(GoodResampler, set()), (Picky, set()), (WrongCount, {"shape", "shape-meta"}), (Never, {"build"})],
)
def test_resamplers(build: Callable[..., Any], failing: set[str]) -> None:
    assert checks(resampler("r", config=Config, build=build)) == failing


class Projector(nn.Module):
    def __init__(self, config: Config, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.linear = nn.Linear(in_dim, out_dim)

    def init_weights(self) -> None:
        self.linear.reset_parameters()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(features)


class Shuffled(Projector):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features.mean(0, keepdim=True).expand_as(features))


@pytest.mark.parametrize(("build", "failing"), [(Projector, set()), (Shuffled, {"batch", "sees-image"})])
def test_projectors(build: Callable[..., Any], failing: set[str]) -> None:
    assert checks(projector("p", config=Config, build=build)) == failing


def broken_gpt(**methods: Any) -> Callable[..., Any]:
    """The built-in backbone with other methods."""
    from components.backbones.gpt import GPT

    kind = type("Broken", (GPT,), methods)
    return lambda config, vocab_size: kind(config, vocab_size)


def one_document(self: Any, x: torch.Tensor, *, positions: Any, cu_seqlens: torch.Tensor, cache: Any = None) -> Any:
    from components.backbones.gpt import GPT

    if cache is None:
        cu_seqlens = cu_seqlens[[0, -1]]
    return GPT.forward(self, x, positions=positions, cu_seqlens=cu_seqlens, cache=cache)


def looks_ahead(self: Any, x: torch.Tensor, *, positions: Any, cu_seqlens: torch.Tensor, cache: Any = None) -> Any:
    from components.backbones.gpt import GPT

    hidden = GPT.forward(self, x, positions=positions, cu_seqlens=cu_seqlens, cache=cache)
    return hidden + hidden.roll(-1, 0)


def no_attention(self: Any, x: torch.Tensor, *, positions: Any, cu_seqlens: torch.Tensor, cache: Any = None) -> Any:
    return x + sum(parameter.sum() for parameter in self.parameters()) * 1e-3


def ignores_positions(self: Any, x: torch.Tensor, *, positions: Any, cu_seqlens: Any, cache: Any = None) -> Any:
    from components.backbones.gpt import GPT

    restarted = torch.cat([torch.arange(int(n)) for n in cu_seqlens.diff()]).to(positions.device)
    return GPT.forward(self, x, positions=restarted, cu_seqlens=cu_seqlens, cache=cache)


@pytest.mark.parametrize(
    ("methods", "failing"),
    [
        ({}, set()),
        ({"forward": one_document}, {"packing"}),
        ({"forward": looks_ahead}, {"causal"}),
        ({"forward": no_attention}, {"attention"}),
        ({"forward": ignores_positions}, {"cache"}),
        ({"logits": lambda self, hidden: hidden @ hidden.T}, {"shape"}),
    ],
)
def test_backbones(methods: dict[str, Any], failing: set[str]) -> None:
    from components.backbones.config import GPT

    found = checks(
        backbone("b", config=GPT, build=broken_gpt(**methods)), options={"depth": 2, "aspect": 32, "head_dim": 16}
    )
    assert failing <= found
    assert failing or not found


def samples(split: str, count: int = 12) -> list[Conversation]:
    return [Conversation((user(f"{i}?"), assistant(str(i))), id=f"{split}/{i}") for i in range(count)]


class Lying(SampleList):
    def length(self, index: int) -> Length:
        return Length(1, 1)


class Moving(SampleList):
    def __getitem__(self, index: int) -> Any:
        sample = super().__getitem__(index)
        return Conversation((user(str(random.random())), *sample.messages[1:]), id=sample.id)


class Endless(SampleList):
    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index % len(self))


@pytest.mark.parametrize(
    ("build", "failing"),
    [
        (lambda config, split: SampleList(samples(split)), set()),
        (lambda config, split: Lying(samples(split)), {"length"}),
        (lambda config, split: Moving(samples(split)), {"deterministic", "length"}),
        (lambda config, split: Endless(samples(split)), {"index"}),
        (lambda config, split: SampleList([]), {"length"}),
        (lambda config, split: SampleList(["text"]), {"sample"}),
        (lambda config, split: SampleList(samples(split)[:1] * 9), {"id"}),
        (lambda config, split: SampleList([Conversation((user("?"),), id="a")]), {"sample"}),
        (lambda config, split: samples(split), {"protocol"}),
        (lambda config, split: 1 / 0, {"build"}),
    ],
)
def test_datasets(build: Callable[..., Any], failing: set[str]) -> None:
    found = checks(dataset("d", config=Config, build=build))
    assert failing <= found
    assert failing or not found


def test_a_data_set_may_lack_a_split_but_not_all() -> None:
    def build(config: Config, split: str) -> SampleList:
        if split != "train":
            raise ConfigError("there is no such split")
        return SampleList(samples(split))

    def never(config: Config, split: str) -> SampleList:
        raise ConfigError("there is no such split")

    assert checks(dataset("d", config=Config, build=build)) == set()
    assert checks(dataset("d", config=Config, build=never)) == {"build"}


class GoodTask:
    name, version, metric, generation = "t", "1", "exact", Generation()

    def docs(self) -> list[EvalDoc]:
        return [EvalDoc(id=str(i), prompt=Conversation((user("?"),)), target="a") for i in range(3)]

    def score(self, doc: EvalDoc, answer: str) -> dict[str, float]:
        return {"exact": float(answer == doc.target)}


class Generous(GoodTask):
    def score(self, doc: EvalDoc, answer: str) -> dict[str, float]:
        return {"exact": 1.0}


class Percent(GoodTask):
    def score(self, doc: EvalDoc, answer: str) -> dict[str, float]:
        return {"exact": 100.0 * (answer == doc.target)}


@pytest.mark.parametrize(("kind", "failing"), [(GoodTask, set()), (Generous, {"score"}), (Percent, {"score"})])
def test_tasks(kind: type, failing: set[str]) -> None:
    assert checks(task("t", config=Config, build=lambda config: kind())) == failing


def test_optimizers_and_trackers() -> None:
    def sgd(config: Config, *, groups: list[Any]) -> Any:
        return torch.optim.SGD(groups, momentum=0.9)

    def wrong_way(config: Config, *, groups: list[Any]) -> Any:
        return torch.optim.SGD(groups, maximize=True)

    class Amnesic(torch.optim.SGD):
        def load_state_dict(self, state: Any) -> None: ...

    def amnesic(config: Config, *, groups: list[Any]) -> Any:
        return Amnesic(groups, momentum=0.9)

    assert checks(optimizer("o", config=Config, build=sgd)) == set()
    assert checks(optimizer("o", config=Config, build=wrong_way)) == {"optimizer"}
    assert checks(optimizer("o", config=Config, build=amnesic)) == {"state-dict"}
    assert checks(tracker("t", config=Config, build=lambda config, run_dir: object())) == {"protocol"}


def test_the_assertion_lists_every_problem() -> None:
    with pytest.raises(AssertionError) as caught:
        assert_component_ok(encoder("e", config=Config, build=RandomCrop))
    assert "encoder 'e' does not conform" in str(caught.value)
    assert "the same picture gives other pixels" in str(caught.value)


class Plugin:
    @hookimpl
    def ghostvis_components(self) -> Any:
        yield encoder("mine", config=Config, build=GoodEncoder)


def test_fixtures(ghostvis_registry: Registry, ghostvis_register: Callable[[Any], PluginInfo]) -> None:
    assert ghostvis_registry.specs() == []
    info = ghostvis_register(Plugin())
    assert info.components == ("encoder:mine",)
    assert ghostvis_registry.names("encoder") == ["mine"]
    with pytest.raises(Exception, match="implements none of"):
        ghostvis_register(object())


def test_pytest_finds_the_fixtures_where_ghostvis_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"ghostvis": "ghostvis_plugins.testing"}
