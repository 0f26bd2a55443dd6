"""The kernels of the factorisation machine's sampler, each against what it should draw."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from shortlist.training.sources.machine_data import Outcomes
from shortlist.training.sources.sampling import BLOCK, fold, look, sweep, update

Drawn = tuple[tuple[NDArray[np.float64], ...], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]


def outcomes(acted: NDArray[np.bool_], rejected: NDArray[np.bool_], against: int = -1) -> Outcomes:
    """Impressions of a pair each, all of the first user and item, in one group and place; nothing followed."""
    n = len(acted)
    nobody, ends, nothing = np.zeros(n, np.int32), np.arange(n + 1), np.zeros(0, np.int32)
    measured = np.zeros(2, np.bool_)
    return Outcomes(
        nobody, nobody, ends, nobody, nobody, acted, rejected, 0 * ends, nothing, np.zeros(0), measured, 1, against
    )


def drawn_from(
    shown: Outcomes,
    users: NDArray[np.float64],
    items: NDArray[np.float64],
    base: list[float],
    scale: list[float],
    seen: float,
) -> Drawn:
    """What `look` draws: weights, products, sums over blocks, looks over blocks."""
    pairs, blocks, groups = len(shown.user), -(-len(shown.user) // BLOCK), len(base)
    weights = (np.empty(len(shown.acted)), np.empty(len(shown.acted)), np.empty(len(shown.further)))
    product, sums, looks = np.empty(pairs), np.empty((blocks, groups, 5)), np.empty((blocks, 1), np.int64)
    rest = (np.array(base), np.array(scale), np.full(groups, 4.0), np.array([seen]))
    look(np.uint64(7), shown, users, items, *rest, weights, product, sums, looks)
    return weights, product, sums.sum(axis=0), looks.sum(axis=0)


NOBODY = np.zeros((1, 2))


def test_a_weight_is_a_polya_gamma_number() -> None:
    never = np.zeros(100_000, np.bool_)
    for odds in (0.0, -2.5, 4.0, 12.0):
        (weight, _, _), _, sums, _ = drawn_from(outcomes(never, never), NOBODY, NOBODY, [odds], [1.0], 1.0)
        mean = 0.25 if odds == 0 else math.tanh(odds / 2) / (2 * odds)
        size = abs(odds)
        spread = 1 / 24 if odds == 0 else (math.sinh(size) - size) / (4 * size**3 * math.cosh(size / 2) ** 2)
        assert weight.mean() == pytest.approx(mean, rel=0.01)
        assert weight.var() == pytest.approx(spread, rel=0.05)
        assert sums[0, 0] == pytest.approx(weight.sum())


def test_who_acted_or_rejected_has_looked_and_others_as_often_as_they_may_have() -> None:
    acted, rejected = np.arange(100_000) < 1_000, np.arange(100_000) >= 99_000
    rest = ~(acted | rejected)
    for against, left in ((-1, 0.5), (1, 0.5 * 0.8)):
        shown = outcomes(acted, rejected, against)
        found, _, sums, looks = drawn_from(shown, NOBODY, NOBODY, [0.0, math.log(0.25)], [1.0, 1.0], 0.4)
        looked = found[0] > 0
        assert looked[~rest].all()
        assert looked[rest].mean() == pytest.approx(0.4 * left / (1 - 0.4 * (1 - left)), abs=0.01)
        assert looks.tolist() == [looked.sum()]
        assert ((found[1] > 0) == (looked & ~acted & (against > 0))).all()
        assert sums[0, 3] == pytest.approx(acted.sum() - 0.5 * looked.sum())
        assert sums[1, 3] == pytest.approx((rejected.sum() - 0.5 * (looked & ~acted).sum()) * (against > 0))


def test_a_vector_is_drawn_around_its_mean_given_the_other_side() -> None:
    rng = np.random.default_rng(0)
    n, d, pairs = 5, 3, 200
    owner, other = rng.integers(0, n, pairs).astype(np.int32), rng.integers(0, 7, pairs).astype(np.int32)
    weight, outcome = rng.random(pairs) * (rng.random(pairs) < 0.7), rng.normal(size=pairs)
    partners, prior, precision = rng.normal(size=(7, d)), rng.normal(size=(n, d)), np.array([1.0, 2.0, 3.0])
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(n + 1))
    means, drawn, noise = np.empty((n, d)), np.empty((n, d)), rng.normal(size=(n, d))
    update(starts, order, other, weight, outcome, partners, prior, precision, noise, means, drawn)
    for one in range(n):
        mine = np.flatnonzero((owner == one) & (weight > 0))
        held = partners[other[mine]]
        lines = np.column_stack([held[:, :-1], np.ones(len(mine))])
        matrix = np.diag(precision) + (lines * weight[mine, None]).T @ lines
        left = outcome[mine] - weight[mine] * held[:, -1]
        assert means[one] == pytest.approx(np.linalg.solve(matrix, precision * prior[one] + lines.T @ left))
        strays = np.linalg.solve(np.linalg.cholesky(matrix).T, noise[one])
        assert drawn[one] - means[one] == pytest.approx(strays)


def test_everything_that_is_known_of_a_pair_says_what_its_product_is() -> None:
    """Two impressions, the first rejected, the second acted on; then it went on, and there was an amount."""
    two, three = np.array([0, 0], np.int32), np.array([1, 2], np.int32)
    acted, measured = np.array([False, True]), np.array([False, False, True, False])
    # fmt: off
    shown = Outcomes(two[:1], two[:1], np.array([0, 2]), two, two, acted, ~acted, np.array([0, 2]), three,
                     np.array([0.5, 1.7]), measured, 1, 3)
    # fmt: on
    base, scale = np.array([-1.0, 0.3, 2.0, -2.0]), np.array([1.0, 0.5, 0.4, -0.7])
    users, items = np.array([[0.5, 1.0]]), np.array([[2.0, -0.5]])
    weights, product, sums, _ = drawn_from(shown, users, items, base.tolist(), scale.tolist(), 1.0)
    assert product == pytest.approx(0.5 * 2.0 + 1.0 - 0.5)
    assert weights[2][1] == 4.0  # the precision of the amount
    assert weights[1][1] == 0.0  # who acts cannot reject
    w = np.array([weights[0][0], weights[0][1], weights[1][0], *weights[2]])
    group, said = np.array([0, 0, 3, 1, 2]), np.array([-0.5, 0.5, 0.5, 0.5, 4.0 * 1.7])
    for place, each in enumerate((w, w * product, w * product**2, said, said * product)):
        assert sums[:, place] == pytest.approx(np.bincount(group, each, 4))
    weight, outcome = np.empty(1), np.empty(1)
    fold(shown, base, scale, weights, weight, outcome)
    assert weight == pytest.approx((w * scale[group] ** 2).sum())
    assert outcome == pytest.approx((scale[group] * (said - w * base[group])).sum())


def test_values_explain_what_nothing_else_does() -> None:
    rng = np.random.default_rng(0)
    rest, precision, own = rng.normal(size=(6, 2)), np.array([2.0, 3.0]), np.array([1.0, 4.0])
    before, table = rest.copy(), np.zeros((2, 2))
    starts, rows, shares = (
        np.array([0, 4, 6]),
        np.array([0, 1, 2, 3, 4, 5], np.int32),
        np.array([1, 1, 0.5, 0.5, 1, 1.0]),
    )
    sweep(starts, rows, shares, rest, precision, own, np.zeros((2, 2)), table)
    held = (shares[:4, None] * before[:4]).sum(axis=0)
    assert table[0] == pytest.approx(precision * held / (precision * 2.5 + own))
    assert rest == pytest.approx(before - shares[:, None] * np.repeat(table, [4, 2], axis=0))
