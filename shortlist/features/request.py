"""Columns made of columns: attributes, smoothed ratios and request features, for 500 candidates or a million rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.features.plan import Plan, RatioPlan

Matrix = NDArray[np.float64]


class RequestFeatureError(Exception):
    """A request feature's function failed, or returned something that is no column."""


def fill_ratios(plan: Plan, matrix: Matrix) -> None:
    """Fill the ratios' rows of the matrix; NaN where the smoothed denominator is 0."""
    if plan.plain is not None:
        _divide(plan.plain, matrix, matrix[plan.plain.top], matrix[plan.plain.bottom])
    if plan.smoothed is not None:
        ratio = plan.smoothed
        everything = matrix[ratio.all_bottom]
        everything[everything == 0] = np.nan
        rate = matrix[ratio.all_top] / everything
        _divide(ratio, matrix, matrix[ratio.top] + ratio.prior * rate, matrix[ratio.bottom] + ratio.prior)


def _divide(ratio: RatioPlan, matrix: Matrix, top: Matrix, bottom: Matrix) -> None:
    bottom[bottom == 0] = np.nan
    matrix[ratio.target] = top / bottom


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
