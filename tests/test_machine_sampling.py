"""The kernels of the factorisation machine's sampler, each against what it should draw."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shortlist.training.sources.sampling import look, sweep, update


def test_a_weight_is_a_polya_gamma_number() -> None:
    n = 100_000
    nobody = np.zeros(n, np.int32)
    weight, rest, one = np.empty(n), np.empty(n), np.zeros((1, 2))
    for odds in (0.0, -2.5, 4.0, 12.0):
        base = np.array([odds])
        look(np.uint64(7), nobody, nobody, nobody, nobody, nobody > 0, one, one, base, base, np.ones(1), weight, rest)
        mean = 0.25 if odds == 0 else math.tanh(odds / 2) / (2 * odds)
        size = abs(odds)
        spread = 1 / 24 if odds == 0 else (math.sinh(size) - size) / (4 * size**3 * math.cosh(size / 2) ** 2)
        assert weight.mean() == pytest.approx(mean, rel=0.01)
        assert weight.var() == pytest.approx(spread, rel=0.05)


def test_who_acted_has_looked_and_others_as_often_as_they_may_have() -> None:
    n = 100_000
    nobody, acted = np.zeros(n, np.int32), np.arange(n) < 1_000
    weight, rest, one = np.empty(n), np.empty(n), np.zeros((1, 2))
    nothing = np.zeros(1)
    # fmt: off
    look(np.uint64(1), nobody, nobody, nobody, nobody, acted, one, one, nothing, nothing, np.array([0.4]), weight, rest)
    # fmt: on
    assert (weight[:1_000] > 0).all()
    assert (weight[1_000:] > 0).mean() == pytest.approx(0.4 * 0.5 / (1 - 0.4 * 0.5), abs=0.01)


def test_a_vector_is_drawn_around_its_mean_given_the_other_side() -> None:
    rng = np.random.default_rng(0)
    n, d, rows = 5, 3, 200
    owner, other = rng.integers(0, n, rows).astype(np.int32), rng.integers(0, 7, rows).astype(np.int32)
    acted, weight = rng.random(rows) < 0.4, rng.random(rows) * (rng.random(rows) < 0.7)
    partners, prior, precision = rng.normal(size=(7, d)), rng.normal(size=(n, d)), np.array([1.0, 2.0, 3.0])
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(n + 1))
    means, drawn, noise = np.empty((n, d)), np.empty((n, d)), rng.normal(size=(n, d))
    group, base, scale = rng.integers(0, 2, rows).astype(np.int32), np.array([-1.0, 2.0]), np.array([1.0, 0.5])
    # fmt: off
    update(starts, order, other, group, acted, weight, base, scale, partners, prior, precision, noise, means, drawn)
    # fmt: on
    for one in range(n):
        mine = np.flatnonzero((owner == one) & (weight > 0))
        slope, held = scale[group[mine]], partners[other[mine]]
        lines = slope[:, None] * np.column_stack([held[:, :-1], np.ones(len(mine))])
        matrix = np.diag(precision) + (lines * weight[mine, None]).T @ lines
        left = np.where(acted[mine], 0.5, -0.5) - weight[mine] * (slope * held[:, -1] + base[group[mine]])
        assert means[one] == pytest.approx(np.linalg.solve(matrix, precision * prior[one] + lines.T @ left))
        strays = np.linalg.solve(np.linalg.cholesky(matrix).T, noise[one])
        assert drawn[one] - means[one] == pytest.approx(strays)


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
