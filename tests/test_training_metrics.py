"""The vectorised metrics against slow, obvious ones; the bootstrap against what it promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shortlist.training.metrics import (
    Relevant,
    bootstrap,
    by_user,
    coverage,
    gain_matrix,
    interval,
    intervals,
    ndcg,
    ordered_gains,
    recall,
    reciprocal_rank,
)


def slow_ndcg(shown: list[int], gains: dict[int, float], k: int, graded: bool) -> float:
    worth = {item: 2.0**gain - 1 if graded else 1.0 for item, gain in gains.items()}
    dcg = sum(worth.get(item, 0.0) / math.log2(rank + 2) for rank, item in enumerate(shown[:k]))
    best = sum(value / math.log2(rank + 2) for rank, value in enumerate(sorted(worth.values(), reverse=True)[:k]))
    return dcg / best if best else math.nan


def slow_recall(shown: list[int], gains: dict[int, float], k: int) -> float:
    return len(set(shown[:k]) & set(gains)) / len(gains) if gains else math.nan


def slow_reciprocal_rank(shown: list[int], gains: dict[int, float], k: int) -> float:
    if not gains:
        return math.nan
    return next((1 / (rank + 1) for rank, item in enumerate(shown[:k]) if item in gains), 0.0)


requests = st.lists(
    st.tuples(
        st.lists(st.integers(0, 12), max_size=8, unique=True),
        st.dictionaries(st.integers(0, 12), st.sampled_from([0.5, 1.0, 3.0]), max_size=6),
    ),
    min_size=1,
    max_size=6,
)


def arrays(drawn: list[tuple[list[int], dict[int, float]]]) -> tuple[NDArray[np.int32], Relevant]:
    ranked = np.full((len(drawn), max(len(shown) for shown, _ in drawn)), -1, np.int32)
    for row, (shown, _) in zip(ranked, drawn, strict=True):
        row[: len(shown)] = shown
    items = np.array([item for _, gains in drawn for item in gains], np.int32)
    gains = np.array([gain for _, gains in drawn for gain in gains.values()], np.float64)
    return ranked, Relevant(items, gains, np.cumsum([0, *(len(gains) for _, gains in drawn)]))


@given(requests, st.integers(1, 10), st.booleans())
def test_the_metrics_of_many_requests_are_those_of_each_computed_slowly(
    drawn: list[tuple[list[int], dict[int, float]]], k: int, graded: bool
) -> None:
    ranked, relevant = arrays(drawn)
    gains = gain_matrix(ranked, relevant)
    np.testing.assert_allclose(ndcg(gains, relevant, k, graded), [slow_ndcg(*one, k, graded) for one in drawn])
    np.testing.assert_allclose(recall(gains, relevant, k), [slow_recall(*one, k) for one in drawn])
    np.testing.assert_allclose(reciprocal_rank(gains, relevant, k), [slow_reciprocal_rank(*one, k) for one in drawn])


def test_what_a_score_puts_first_is_counted_per_request() -> None:
    sizes, gain = np.array([3, 2, 1]), np.array([0.0, 1.0, 0.0, 0.0, 2.0, 0.0])
    gains, relevant = ordered_gains(sizes, gain, np.array([3.0, 2.0, 1.0, math.nan, 6.0, 1.0]), k=2)
    assert gains.tolist() == [[0, 1], [2, 0], [0, 0]]
    assert relevant.counts.tolist() == [1, 1, 0]
    assert relevant.gains.tolist() == [1, 2]
    np.testing.assert_allclose(ndcg(gains, relevant, 2), [1 / math.log2(3), 1, math.nan])


def test_coverage_counts_each_shown_item_once_and_no_padding() -> None:
    ranked = np.array([[3, 1, -1], [1, 2, 0]], np.int32)
    assert coverage(ranked, 2, available=10) == 0.3
    assert coverage(ranked, 3, available=10) == 0.4
    assert math.isnan(coverage(ranked, 3, available=0))


def test_a_user_with_many_requests_counts_as_much_as_one_with_few() -> None:
    values = np.array([[1.0], [0.0], [0.0], [0.5], [np.nan]])
    means = by_user(values, np.array([0, 0, 0, 1, 2]), count=3)
    np.testing.assert_allclose(means[:, 0], [1 / 3, 0.5, np.nan])


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for trial in range(200):
        values = rng.exponential(size=(80, 1))
        found = interval(values[:, 0], bootstrap(values, seed=trial, resamples=400)[:, 0])
        held += found.low <= 1.0 <= found.high
    assert 0.87 <= held / 200 <= 0.98  # 0.95 less what a percentile bootstrap of 80 skewed values loses; +-3 s.e.


def test_a_paired_difference_is_surer_than_its_parts() -> None:
    rng = np.random.default_rng(6)
    hard = rng.random(300)
    found = intervals({"popularity": hard, "ours": hard + 0.01 + 0.01 * rng.standard_normal(300)}, "popularity", seed=1)
    value, difference = found["ours"]
    assert difference.low > 0
    assert difference.high - difference.low < 0.1 * (value.high - value.low)
    assert found["popularity"][1].value == 0


def test_the_same_seed_draws_the_same_users_and_nan_is_left_out() -> None:
    values = np.array([[1.0, np.nan], [2.0, 5.0], [3.0, np.nan]])
    np.testing.assert_array_equal(bootstrap(values, 3, 50), bootstrap(values, 3, 50))
    drawn = bootstrap(values, 3, 50)[:, 1]
    assert set(drawn[~np.isnan(drawn)]) == {5.0}
    assert interval(values[:, 1], drawn).value == 5.0


@pytest.mark.parametrize("users", [0, 1])
def test_nothing_measured_is_nan_not_a_crash(users: int) -> None:
    found = intervals({"popularity": np.full(users, np.nan)}, "popularity", seed=1)
    assert math.isnan(found["popularity"][0].value)
    assert found["popularity"][0].to_dict() == {"value": None, "low": None, "high": None}


def test_gains_beyond_what_a_power_of_two_can_be_are_measured_all_the_same() -> None:
    relevant = Relevant(np.array([0, 1], np.int32), np.array([1500.0, 1500.0]), np.array([0, 2]))
    alike = Relevant(relevant.items, np.ones(2), relevant.offsets)
    ranked = np.array([[5, 0, 1]], np.int32)
    huge, one = (ndcg(gain_matrix(ranked, each), each, 3) for each in (relevant, alike))
    assert huge == pytest.approx(one)
    mixed = Relevant(relevant.items, np.array([1.0, 3000.0]), relevant.offsets)
    assert ndcg(gain_matrix(ranked, mixed), mixed, 3) == pytest.approx([0.5])
