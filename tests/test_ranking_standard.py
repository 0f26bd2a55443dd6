"""Columns as rankers that multiply read them: against numpy's logarithm, and in whatever portions they come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from shortlist.ranking.standard import BLOCK, FAR, HUGE, Input, Inputs, Standard

UNIT, MEAN, SCALE = np.array([0.0, 1.0, 1e-3]), np.array([3.0, 0.5, -2.0]), np.array([2.0, 1.5, 0.1])
STANDARD = Standard(UNIT, MEAN, SCALE)
GAPS = (True, False, True)
INPUTS = Inputs([Input(*each) for each in zip("abc", *map(np.ndarray.tolist, (UNIT, MEAN, SCALE)), GAPS, strict=True)])


def by_numpy(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The formula in the docstring of Standard."""
    with np.errstate(all="ignore"):
        curved = np.copysign(np.log1p(np.abs(matrix) / UNIT[:, None]), matrix)
    values = np.where(UNIT[:, None] > 0, curved, matrix)
    return np.where(np.abs(matrix) < HUGE, (values - MEAN[:, None]) / SCALE[:, None], np.nan)


@given(arrays(np.float64, st.tuples(st.just(3), st.integers(0, 150)), elements=st.floats(width=64)))
def test_any_number_is_standardised_as_numpy_would(matrix: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(STANDARD.of(matrix), by_numpy(matrix), rtol=1e-12, atol=1e-12)


def test_logarithms_of_all_sizes_are_exact_to_twelve_digits() -> None:
    sizes = 10.0 ** np.linspace(-12, 99, 20_001)
    matrix = np.stack([sizes, -sizes, sizes])
    found = STANDARD.of(matrix) * SCALE[:, None] + MEAN[:, None]
    np.testing.assert_allclose(found[1], -np.log1p(sizes), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found[2], np.log1p(sizes / 1e-3), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rows", [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 5])
def test_inputs_are_the_standardised_columns_and_their_gaps(rows: int) -> None:
    rng = np.random.default_rng(rows)
    matrix = rng.normal(scale=20, size=(3, rows))
    matrix[rng.random((3, rows)) < 0.2] = np.nan
    standard, found = STANDARD.of(matrix), INPUTS.of(matrix)
    assert found.shape == (rows, 5)
    np.testing.assert_array_equal(found[:, :3], np.clip(np.nan_to_num(standard), -FAR, FAR).T.astype(np.float32))
    np.testing.assert_array_equal(found[:, 3:], np.isnan(matrix[[0, 2]]).T)


def test_columns_are_found_where_they_lie() -> None:
    matrix = np.random.default_rng(0).normal(scale=20, size=(7, 90))
    places = np.array([4, 0, 6])
    np.testing.assert_array_equal(STANDARD.of(matrix, places), STANDARD.of(matrix[places]))
    np.testing.assert_array_equal(INPUTS.of(matrix, places), INPUTS.of(matrix[places]))
    np.testing.assert_array_equal(INPUTS.of(matrix[2:5, 10:80]), INPUTS.of(matrix[2:5])[10:80])
