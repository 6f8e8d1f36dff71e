"""Figures of merit: the normaliser against the reference's own outputs, intervals against theory."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from components.metrics import bootstrap_ci, choose, exact_match, mean_scores, normalize_answer
from ghostvis_plugins.types import Score

GOLDEN = json.loads((Path(__file__).parent / "data" / "normalized_answers.json").read_text(encoding="utf-8"))


def test_normaliser_equals_the_reference_on_recorded_pairs() -> None:
    assert len(GOLDEN) > 400
    assert [(text, normalize_answer(text)) for text, _ in GOLDEN] == [tuple(pair) for pair in GOLDEN]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two dogs.", "2 dogs"),  # number words and a final period
        ("t-shirt", "t shirt"),  # a mark inside becomes a space
        ("1 - 2", "1 2"),  # touching a space it disappears
        ("red,white", "redwhite"),  # commas go before punctuation is looked at
        ("3.5 kg.", "3.5 kg"),  # a period stays where a digit follows
        ("the cat's hat", "cat 's hat"),
        ("dont", "don't"),
        ("none", "0"),
        ("A", ""),
        ("a\tb\nc", "b c"),
        ("x" + "." * 40, "x" + "." * 8),  # only 32 periods go
    ],
)
def test_normaliser_rules(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


def test_exact_match_normalises_both_sides_and_takes_several_targets() -> None:
    assert exact_match("The  Dog.", "dog") == 1.0
    assert exact_match("two", ["3", "2"]) == 1.0
    assert exact_match("cat", "dog") == 0.0


@pytest.mark.parametrize("answer", ["", "  ", "the", "."])
def test_an_empty_answer_never_matches(answer: str) -> None:
    assert exact_match(answer, "the") == 0.0
    assert exact_match(answer, "") == 0.0


def test_choice_is_by_mean_not_by_sum() -> None:
    short = Score(logprob=-2.0, tokens=1)
    long = Score(logprob=-3.0, tokens=3)
    assert choose([short, long]) == 1


def test_choice_refuses_nan_and_nothing() -> None:
    with pytest.raises(ValueError, match="nan"):
        choose([Score(logprob=math.nan, tokens=1)])
    with pytest.raises(ValueError, match="likelihoods"):
        choose([])


def test_bootstrap_of_independent_values_is_the_normal_interval() -> None:
    values = np.random.default_rng(0).random(2000) < 0.3
    estimate = bootstrap_ci(values.astype(float).tolist(), resamples=4000)
    half = 1.96 * math.sqrt(estimate.mean * (1 - estimate.mean) / 2000)
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.06)
    assert estimate.low < estimate.mean < estimate.high


def test_copies_of_a_cluster_add_no_certainty() -> None:
    right = (np.random.default_rng(1).random(200) < 0.5).astype(float)
    once = bootstrap_ci(right.tolist(), list(range(200)))
    tenfold = bootstrap_ci(np.repeat(right, 10).tolist(), np.repeat(np.arange(200), 10).tolist())
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high))
    careless = bootstrap_ci(np.repeat(right, 10).tolist())
    assert careless.high - careless.low < 0.5 * (tenfold.high - tenfold.low)


def test_bootstrap_resamples_clusters_like_a_plain_loop_does() -> None:
    rng = np.random.default_rng(2)
    clusters = rng.integers(0, 30, 200)
    values = (rng.random(200) < 0.2 + 0.6 * (clusters % 2)).astype(float)
    groups = [values[clusters == c] for c in np.unique(clusters)]
    means = [np.concatenate([groups[i] for i in rng.integers(0, 30, 30)]).mean() for _ in range(4000)]
    estimate = bootstrap_ci(values.tolist(), clusters.tolist(), resamples=4000)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.02)


def test_bootstrap_is_seeded_and_its_chunks_do_not_matter() -> None:
    values = (np.arange(3000) % 7 == 0).astype(float).tolist()
    assert bootstrap_ci(values, seed=1) == bootstrap_ci(values, seed=1)
    assert bootstrap_ci(values, seed=1) != bootstrap_ci(values, seed=2)
    assert bootstrap_ci(values).n == 3000


def test_bootstrap_says_when_there_is_nothing_to_resample() -> None:
    estimate = bootstrap_ci([1.0, 0.0], ["one", "one"])
    assert (estimate.mean, estimate.low, estimate.high, estimate.clusters) == (0.5, None, None, 1)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_ci([])
    with pytest.raises(ValueError, match="2 values"):
        bootstrap_ci([1.0, 0.0], ["one"])


def test_means_count_only_the_rows_that_have_a_figure() -> None:
    assert mean_scores([{"a": 1.0}, {"a": 0.0, "b": 0.5}]) == {"a": 0.5, "b": 0.5}
