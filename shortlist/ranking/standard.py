"""Columns with mean 0 and deviation 1, as rankers that multiply them by weights read them, by training and by serving.

numpy goes over all values ten times for it, and lets go of the interpreter as often; here a value is seen once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from shortlist.features.pointers import bits_of, real_of
from shortlist.ranking.scorer import Matrix

HUGE = 1e100
"""A value beyond this is taken for missing, as infinity is: its square would leave the range of a float."""
FAR = 6.0
"""Inputs stop here: what lies further out than training ever saw must not be multiplied by itself."""
BLOCK = 64
"""Rows of inputs that are written at a time, so that what lies between two columns of a row stays in the caches."""
LOG_2 = math.log(2.0)
ROOT_HALF = int(np.float64(0.5**0.5).view(np.int64))
EXPONENT = 52
"""Bits behind a float's exponent."""

Column = NDArray[np.float64]
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
INNER: dict[str, Any] = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
inner = njit(**INNER)


@dataclass(frozen=True)
class Standard:
    """How columns are standardised: each by its logarithm in a `unit` above 0 or as it is, less `mean`, by `scale`."""

    unit: Column
    mean: Column
    scale: Column

    def of(self, matrix: Matrix, positions: NDArray[np.int64] | None = None) -> Matrix:
        """[columns, rows]; NaN where a value is missing, infinite or beyond HUGE.

        `positions` says in which row of `matrix` each column lies; in the row of its own number, if they are left out.
        """
        chosen = np.arange(len(matrix)) if positions is None else positions
        out = np.empty((len(chosen), matrix.shape[1]))
        standardise(np.ascontiguousarray(matrix), chosen, self.unit, self.mean, self.scale, out)
        return out


@dataclass(frozen=True)
class Input:
    """How one column becomes an input: itself, or its logarithm in a `unit` above 0, minus `mean`, by `scale`; and a
    second input for `gaps`.
    """

    column: str
    unit: float
    mean: float
    scale: float
    gaps: bool


class Inputs:
    """Standardised columns, 0 where a value is missing, and behind them a flag for every column that has gaps."""

    def __init__(self, inputs: Sequence[Input]) -> None:
        self.columns = tuple(inputs)
        self._unit, self._mean, self._scale = (
            np.array([getattr(each, name) for each in inputs], float) for name in ("unit", "mean", "scale")
        )
        gaps = np.array([each.gaps for each in inputs], np.bool_)
        self._flags = np.where(gaps, len(inputs) + np.cumsum(gaps) - 1, -1)
        self.owner = np.concatenate([np.arange(len(inputs)), np.flatnonzero(gaps)])
        """The number of the column that each input belongs to."""

    def of(self, matrix: Matrix, positions: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """[rows, inputs] of the columns that lie at `positions` of `matrix`, as in `Standard.of`."""
        chosen = np.arange(len(matrix)) if positions is None else positions
        out = np.empty((matrix.shape[1], len(self.owner)), np.float32)
        lay_out(np.ascontiguousarray(matrix), chosen, self._unit, self._mean, self._scale, self._flags, out)
        return out


@inner
def logarithm(number):  # type: ignore[no-untyped-def]
    """The logarithm of a number of at least 1, to 14 digits.

    What is left when the power of two nearest to it is taken out lies between the roots of 1/2 and 2, where eight terms
    of 2 artanh((x - 1) / (x + 1)) are enough. Unlike a call of the C library, it is done for eight numbers at once.
    """
    bits = bits_of(number)
    power = (bits - ROOT_HALF) >> EXPONENT
    rest = real_of(bits - (power << EXPONENT))
    ratio = (rest - 1.0) / (rest + 1.0)
    z = ratio * ratio
    series = 1 / 13 + z * (1 / 15)
    series = 1 / 9 + z * (1 / 11 + z * series)
    series = 1 / 5 + z * (1 / 7 + z * series)
    return power * LOG_2 + 2.0 * ratio * (1.0 + z * (1 / 3 + z * series))


@inner
def standardise_some(matrix, position, first, rows, unit, mean, scale, out):  # type: ignore[no-untyped-def]
    """So many rows of one column, from `first` on."""
    curved, by = unit > 0.0, unit if unit > 0.0 else 1.0
    for row in range(rows):
        value = matrix[position, np.uint64(first) + np.uint64(row)]
        known = abs(value) < HUGE
        size = abs(value) if known else 0.0
        if curved:
            size = logarithm(1.0 + size / by)
        out[row] = (math.copysign(size, value) - mean) / scale if known else np.nan


@njit(
    "void(Array(float64, 2, 'C', readonly=True), int64[::1], float64[::1], float64[::1], float64[::1], float64[:,::1])",
    cache=True,
    **OPTIONS,
)
def standardise(matrix, positions, unit, mean, scale, out):  # type: ignore[no-untyped-def]
    """See `Standard.of`."""
    rows = matrix.shape[1]
    for column in range(len(positions)):
        standardise_some(matrix, positions[column], 0, rows, unit[column], mean[column], scale[column], out[column])


@njit(
    "void(Array(float64, 2, 'C', readonly=True), int64[::1], float64[::1], float64[::1], float64[::1], int64[::1],"
    " float32[:,::1])",
    cache=True,
    **OPTIONS,
)
def lay_out(matrix, positions, unit, mean, scale, flags, out):  # type: ignore[no-untyped-def]
    """See `Inputs.of`; `flags` are the inputs that say of each column where it is missing, -1 for none."""
    some, block = np.empty(BLOCK), np.empty((out.shape[1], BLOCK), np.float32)
    for first in range(0, len(out), BLOCK):
        rows = min(BLOCK, len(out) - first)
        for column in range(len(positions)):
            standardise_some(matrix, positions[column], first, rows, unit[column], mean[column], scale[column], some)
            for row in range(rows):
                value = some[row]
                block[column, row] = min(max(value, -FAR), FAR) if value == value else 0.0
            if flags[column] >= 0:
                for row in range(rows):
                    block[flags[column], row] = np.float32(some[row] != some[row])
        for row in range(rows):
            for number in range(out.shape[1]):
                out[np.uint64(first) + np.uint64(row), number] = block[number, row]
