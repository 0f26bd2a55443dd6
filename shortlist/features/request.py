"""Columns made of columns: attributes, smoothed ratios and request features, for 500 candidates or a million rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from shortlist.features.plan import Plan

Matrix = NDArray[np.float64]


class RequestFeatureError(Exception):
    """A request feature's function failed, or returned something that is no column."""


def fill_ratios(plan: Plan, matrix: Matrix) -> None:
    """Fill the ratios' rows of the matrix; NaN where the smoothed denominator is 0."""
    for ratio in (plan.plain, plan.smoothed):
        if ratio is not None:
            divide(matrix, ratio.target, ratio.top, ratio.bottom, ratio.all_top, ratio.all_bottom, ratio.prior)


@njit(
    "void(float64[:,:], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], float64[::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def divide(matrix, target, top, bottom, all_top, all_bottom, prior):  # type: ignore[no-untyped-def]
    """target = (top + prior * all_top / all_bottom) / (bottom + prior), all rows of the matrix."""
    for number in range(len(target)):
        above, below, weight = matrix[top[number]], matrix[bottom[number]], prior[number]
        every, of_every, out = matrix[all_top[number]], matrix[all_bottom[number]], matrix[target[number]]
        for i in range(matrix.shape[1]):
            numerator, denominator = above[i], below[i]
            if weight > 0.0:
                numerator += weight * (every[i] / of_every[i] if of_every[i] != 0.0 else np.nan)
                denominator += weight
            out[i] = numerator / denominator if denominator != 0.0 else np.nan


def fill_requests(plan: Plan, matrix: Matrix, now: int | NDArray[np.int64], context: Mapping[str, Any]) -> None:
    """Compute request features in the order of their inputs. Context that was not given is NaN.

    Raises RequestFeatureError, naming the function, when one fails.
    """
    for feature in plan.requests:
        inputs = [_input(name, row, matrix, now, context) for name, row in feature.inputs]
        try:
            with np.errstate(all="ignore"):
                matrix[feature.target] = feature.function(*inputs)
        except Exception as error:  # the user's own code: whatever it raises, say which function it was
            name = getattr(feature.function, "__name__", "request feature")
            given = ", ".join(name for name, _ in feature.inputs)
            raise RequestFeatureError(
                f"request feature {name}({given}) failed: {type(error).__name__}: {error}; "
                "it must work elementwise on numpy arrays and return one number per row"
            ) from error


def _input(name: str, row: int, matrix: Matrix, now: int | NDArray[np.int64], context: Mapping[str, Any]) -> Any:
    if row >= 0:
        return matrix[row]
    if name == "now":
        return np.asarray(now, np.float64)
    value = context.get(name)
    if value is None:
        return np.float64(np.nan)
    if isinstance(value, (str, np.ndarray)):
        return value
    return np.array(value) if isinstance(value, (list, tuple)) else np.float64(value)
