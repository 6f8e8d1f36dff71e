"""Data order: a permutation per epoch, a pure function of its arguments; a mixture that keeps its shares."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.order import Mixture, MixtureState, Order, permutation_key, permuted


@given(size=st.integers(1, 400), seed=st.integers(0, 2**31), epoch=st.integers(0, 50), source=st.text(max_size=5))
@settings(deadline=None)
def test_every_epoch_is_a_permutation(size: int, seed: int, epoch: int, source: str) -> None:
    key = permutation_key(seed, epoch, source)
    assert sorted(permuted(i, size, key) for i in range(size)) == list(range(size))


def test_large_ranges_need_no_table() -> None:
    key = permutation_key(0, 0, "x")
    size = 10**12 + 39
    found = {permuted(i, size, key) for i in range(2000)}
    assert len(found) == 2000
    assert all(0 <= index < size for index in found)
    assert max(found) > size * 0.99
    assert min(found) < size * 0.01


def test_seed_epoch_and_source_each_shuffle_anew() -> None:
    size = 200
    orders = [
        [Order(seed, source, size)(epoch * size + i) for i in range(size)]
        for seed, epoch, source in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]
    ]
    for number, order in enumerate(orders):
        for other in orders[:number]:
            assert sum(a == b for a, b in zip(order, other, strict=True)) < 12  # 1 expected for random orders


def test_order_does_not_depend_on_what_was_asked_before() -> None:
    positions = [999, 0, 314, 100, 0, 315]
    order = Order(3, "a", 100)
    assert [order(p) for p in positions] == [Order(3, "a", 100)(p) for p in positions]


def test_neighbours_are_spread() -> None:
    """A weak permutation leaves runs of neighbours together; a random one has about two in a thousand."""
    order = Order(0, "a", 1000)
    steps = [abs(order(i) - order(i + 1)) for i in range(999)]
    assert sum(step == 1 for step in steps) < 12
    assert 290 < sum(steps) / len(steps) < 375  # a third of the size


def test_positions_out_of_range_are_refused() -> None:
    with pytest.raises(IndexError):
        permuted(5, 5, permutation_key(0, 0, "a"))


weights = st.dictionaries(st.sampled_from("abcd"), st.floats(0.1, 10), min_size=1)


@given(weights=weights, lengths=st.lists(st.integers(1, 300), min_size=1, max_size=30))
@settings(deadline=None)
def test_the_mixture_keeps_its_shares(weights: dict[str, float], lengths: list[int]) -> None:
    """After any number of samples no source is further from its share than the longest sample of each source."""
    mixture = Mixture(weights)
    for number in range(200):
        source = mixture.choose()
        mixture.advance(source)
        mixture.account(source, lengths[number % len(lengths)])
        total = sum(mixture.state.tokens.values())
        for name, share in mixture.shares.items():
            assert abs(mixture.state.tokens[name] - share * total) <= max(lengths) * len(weights)


@given(weights=weights, lengths=st.lists(st.integers(20, 160), min_size=1, max_size=40), unit=st.integers(1, 9))
@settings(deadline=None)
def test_shares_are_within_one_per_cent_after_a_thousand_samples(
    weights: dict[str, float], lengths: list[int], unit: int
) -> None:
    """Answers of one data set are ``unit`` times as long as those of the others, eight times as long as one another."""
    mixture = Mixture(weights)
    first = next(iter(mixture.shares))
    for number in range(1000):
        source = mixture.choose()
        mixture.advance(source)
        mixture.account(source, lengths[number % len(lengths)] * (unit if source == first else 1))
    total = sum(mixture.state.tokens.values())
    longest = max(lengths) * unit / total  # no scheme is closer than the answer that it took last
    for name, share in mixture.shares.items():
        assert abs(mixture.state.tokens[name] / total - share) <= max(0.01, longest)


def test_the_mixture_resumes_from_json() -> None:
    def run(mixture: Mixture, count: int) -> list[str]:
        chosen = []
        for number in range(count):
            chosen.append(mixture.choose())
            mixture.account(chosen[-1], 1 + mixture.advance(chosen[-1]) % 7 + number % 2)
        return chosen

    shares = {"a": 3.0, "b": 1.0, "c": 0.5}
    whole = Mixture(shares)
    expected = run(whole, 40)
    first = Mixture(shares)
    start = run(first, 20)
    saved = json.loads(json.dumps(first.state.to_json()))
    assert start + run(Mixture(shares, MixtureState.from_json(saved)), 20) == expected


def test_weights_of_zero_leave_a_source_out() -> None:
    assert list(Mixture({"a": 1, "b": 0}).shares) == ["a"]
    with pytest.raises(ValueError, match="positive"):
        Mixture({"a": 0.0})
