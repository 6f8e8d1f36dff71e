"""The packaged recipes: each resolves, its model fits together, and its mixture gives the shares that it names."""

from __future__ import annotations

import json
import random
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.planning import Plan, plan
from ghostvis_plugins.config import resolve
from ghostvis_plugins.layers import recipe_names
from ghostvis_plugins.manager import Registry
from ghostvis_plugins.resolved import Resolved
from stages.order import Mixture

ROOT = Path(__file__).parents[1]
QWEN_VOCABULARY = 151_665  # ids of its tokenizer

PLANS: dict[str, Plan] = {}  # recipes share models

SHARES: dict[str, dict[str, float]] = {
    "vision_align": {"coco_captions": 0.1, "laion": 0.9},
    "vision_sft_minimal": {"llava_instruct": 50, "vqav2": 20, "textvqa": 12, "chartqa": 10, "smoltalk": 8},
    "vision_sft": {
        "llava_instruct": 45,
        "aokvqa": 5,
        "vqav2": 15,
        "okvqa": 5,
        "textvqa": 10,
        "stvqa": 2,
        "docvqa": 3,
        "chartqa": 10,
        "smoltalk": 5,
    },
    "vision_sft_premium": {
        "sharegpt4v": 30,
        "llava_instruct": 20,
        **{
            name: weight * 50 / 55
            for name, weight in {
                "aokvqa": 5,
                "vqav2": 15,
                "okvqa": 5,
                "textvqa": 10,
                "stvqa": 2,
                "docvqa": 3,
                "chartqa": 10,
                "smoltalk": 5,
            }.items()
        },
    },
    "pretrain": {"fineweb_edu": 1},
    "chat_sft": {"smoltalk": 85, "gsm8k": 14, "mmlu_aux": 0.5, "arc": 0.1},
    "r1_cold_start": {"openthoughts": 1},
    "r1_mixed": {"openthoughts": 0.7, "smoltalk": 0.3},
    "r1_rs_sft": {"jsonl": 0.7, "smoltalk": 0.3},
}

# Roughly how many tokens the answers of one sample have, the end of each turn included.
ANSWER_TOKENS: dict[str, float] = {
    "aokvqa": 3,
    "arc": 2,
    "chartqa": 4,
    "coco_captions": 13,
    "docvqa": 6,
    "fineweb_edu": 1000,
    "gsm8k": 125,
    "identity": 25,
    "jsonl": 2000,
    "laion": 20,
    "llava_instruct": 160,
    "mmlu_aux": 2,
    "okvqa": 3,
    "openthoughts": 8000,
    "sharegpt4v": 220,
    "smoltalk": 550,
    "stvqa": 4,
    "textvqa": 4,
    "vqav2": 3,
}


@pytest.fixture(scope="session")
def all_specs() -> Registry:
    from components.builtin import ghostvis_components
    from stages.builtin import ghostvis_components as stage_components

    return Registry.from_specs([*ghostvis_components(), *stage_components()])


def resolved(recipe: str, registry: Registry) -> Resolved:
    return resolve(registry=registry, recipes=[recipe], env={}, cwd=ROOT)


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_resolves_with_known_data_sets(recipe: str, all_specs: Registry) -> None:
    """Every data set exists, with the options that are given; none is left out by a weight of zero."""
    run = resolved(recipe, all_specs)
    assert run.values["stage"]["name"]
    assert run.values["dataset"]
    assert not run.left_out
    said = tomllib.loads((ROOT / "recipes" / f"{recipe}.toml").read_text(encoding="utf-8"))
    assert set(said.get("dataset", ())) <= set(run.values["dataset"])


@pytest.mark.parametrize("recipe", [name for name in SHARES if name != "pretrain"])
def test_shapes_fit_and_memory_does(recipe: str, all_specs: Registry) -> None:
    """On the meta device, as a dry run does it: the parts fit, every learning rate meets a module, 80 GB suffice."""
    run = resolved(recipe, all_specs)
    stage = run.values["stage"]
    model = json.dumps([run.values.get(kind) for kind in ("encoder", "resampler", "projector", "backbone")])
    if model not in PLANS:
        PLANS[model] = plan(run.values, all_specs, QWEN_VOCABULARY, origins=run.origins)
    made = PLANS[model]
    trained = {path.split(".")[0] for path in stage["train"]}
    assert trained <= {part.kind for part in made.parts}
    images = stage["micro_tokens"] // (2 * made.tokens_per_image) if made.tokens_per_image else 0
    kept = made.activation_bytes(
        tokens=stage["micro_tokens"], images=images, targets=stage["micro_tokens"] // 4, trained=trained
    )
    weights = sum((16 if part.kind in trained else 4) * part.parameters for part in made.parts)
    assert weights + kept < 80e9
    assert made.tokens_per_image == (64 if recipe.startswith("vision") else 0)


@pytest.mark.parametrize("recipe", SHARES)
def test_weights_are_the_shares_that_are_meant(recipe: str, all_specs: Registry) -> None:
    """Identity comes on top, with less than half a percent, and moves no other share by more."""
    weights = {name: table["weight"] for name, table in resolved(recipe, all_specs).values["dataset"].items()}
    meant = {name: share / sum(SHARES[recipe].values()) for name, share in SHARES[recipe].items()}
    total = sum(weights.values())
    assert weights.get("identity", 0) / total < 0.005
    assert {name: weight / total for name, weight in weights.items() if name != "identity"} == pytest.approx(
        meant, abs=0.005
    )


def drawn(weights: dict[str, float], samples: int, seed: int = 0) -> tuple[Mixture, dict[str, int]]:
    """A mixture after so many samples of sets with answers like the real ones, and the longest sample of each."""
    generator = random.Random(seed)
    mixture = Mixture(weights)
    longest = dict.fromkeys(weights, 0)
    for _ in range(samples):
        source = mixture.choose()
        mixture.advance(source)
        tokens = max(2, round(generator.lognormvariate(0, 0.6) * ANSWER_TOKENS[source] / 1.2))
        mixture.account(source, tokens)
        longest[source] = max(longest[source], tokens)
    return mixture, longest


def off(mixture: Mixture) -> float:
    """How far the realised share of answer tokens of any data set is from its weight."""
    total = sum(mixture.state.tokens.values())
    return max(abs(mixture.state.tokens[name] / total - share) for name, share in mixture.shares.items())


# Whole samples are dealt out, so no share can be nearer to its weight than one sample is. In the vision recipes nine
# samples in ten are answers of a few tokens, and a thousand samples weigh as much as a dozen conversations of SmolTalk.
SAMPLES = {recipe: 20_000 if recipe.startswith("vision_sft") else 1000 for recipe in SHARES}


@pytest.mark.parametrize("recipe", SHARES)
def test_a_mixture_realises_its_shares(recipe: str, all_specs: Registry) -> None:
    """Within 1 % of the answer tokens after 1,000 samples, or what one sample is; where samples are tiny, later."""
    weights = {name: table["weight"] for name, table in resolved(recipe, all_specs).values["dataset"].items()}
    for seed in range(5):
        early, longest = drawn(weights, 1000, seed)
        assert off(early) < max(0.01, max(longest.values()) / sum(early.state.tokens.values()))
        assert off(drawn(weights, SAMPLES[recipe], seed)[0]) < 0.01


@given(
    weights=st.lists(st.floats(0.001, 1), min_size=1, max_size=8),
    draws=st.lists(st.lists(st.integers(1, 5000), min_size=8, max_size=8), min_size=1, max_size=200),
)
@settings(deadline=None, max_examples=50)
def test_no_source_is_ahead_by_more_than_one_of_its_samples(weights: list[float], draws: list[list[int]]) -> None:
    """Whatever the lengths: a source is taken from only while it is behind its share, so one sample is the most."""
    mixture = Mixture({str(number): weight for number, weight in enumerate(weights)})
    longest = dict.fromkeys(mixture.shares, 0)
    for lengths in draws:
        source = mixture.choose()
        tokens = lengths[int(source)]
        mixture.account(source, tokens)
        longest[source] = max(longest[source], tokens)
        total = sum(mixture.state.tokens.values())
        for name, share in mixture.shares.items():
            assert mixture.state.tokens[name] - share * total <= longest[name] + 1e-6
