"""Logistic regression: one weight per column, every number of it in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.framing.values import is_number
from shortlist.ranking.calibration import Head, probabilities, sigmoid
from shortlist.ranking.scorer import ColumnFinder, Matrix, as_matrix
from shortlist.ranking.standard import Standard


class LinearError(ValueError):
    """The file holds no linear model: where, what was found, and what was expected."""


@dataclass(frozen=True)
class Term:
    """What one column adds to the log-odds.

    `weight * (x - mean) / scale`, where x is the value, or sign(value) * log(1 + |value| / unit) where it has a `unit`
    above 0; a value that is missing, infinite or beyond 1e100 adds `missing` instead.
    """

    column: str
    unit: float
    mean: float
    scale: float
    weight: float
    missing: float


class Linear:
    """A sum of terms and a bias, as a probability. Contributions add up to the log-odds of the score.

    `heads` are the sigmoids of these log-odds that give the calibrated probability of each action.
    """

    def __init__(self, terms: Sequence[Term], bias: float, heads: Sequence[Head] = ()) -> None:
        self.terms = tuple(terms)
        self.bias = bias
        self.heads = tuple(heads)
        self.names = tuple(term.column for term in terms)
        self._columns = ColumnFinder(self.names)
        unit, mean, scale, weight, missing = (
            np.array([getattr(term, name) for term in terms], float)
            for name in ("unit", "mean", "scale", "weight", "missing")
        )
        self._standard = Standard(unit, mean, scale)
        self._weight, self._missing = weight[:, None], missing[:, None]

    def score(self, matrix: Matrix, names: Sequence[str]) -> NDArray[np.float64]:
        """The probability of each row of `matrix` [features, rows], whose features are named by `names`."""
        return sigmoid(self.margin(matrix, names))

    def margin(self, matrix: Matrix, names: Sequence[str]) -> NDArray[np.float64]:
        """The log-odds of the score of each row."""
        return np.asarray(self.bias + self._contributions(matrix, names).sum(axis=0))

    def probabilities(self, matrix: Matrix, names: Sequence[str]) -> Mapping[str, NDArray[np.float64]]:
        """The calibrated probability of each action on each row; nothing where training could not calibrate."""
        return probabilities(self.margin(matrix, names), self.heads)

    def explain(self, matrix: Matrix, names: Sequence[str]) -> Mapping[str, NDArray[np.float64]]:
        """What each column, and `bias`, adds to the log-odds of each row."""
        values = self._contributions(matrix, names)
        return {"bias": np.full(values.shape[1], self.bias), **dict(zip(self.names, values, strict=True))}

    def _contributions(self, matrix: Matrix, names: Sequence[str]) -> NDArray[np.float64]:
        values = self._standard.of(as_matrix(matrix, names), self._columns.positions(names))
        return np.where(np.isnan(values), self._missing, self._weight * values)

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        path.write_text(json.dumps({"bias": self.bias, "terms": [asdict(term) for term in self.terms]}, indent=1))

    @classmethod
    def load(cls, path: Path, heads: Sequence[Head] = ()) -> Linear:
        """Read what `save` wrote. Raises LinearError with the place, OSError where the file cannot be read."""
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise LinearError(f"{path}: not JSON ({error}); train the ranker again") from None
        if not isinstance(stored, dict) or not isinstance(stored.get("terms"), list):
            raise LinearError(f"{path}: expected an object with 'bias' and a list of 'terms'; train the ranker again")
        terms = [_term(f"{path}, term {number}", term) for number, term in enumerate(stored["terms"])]
        return cls(terms, _number(str(path), "bias", stored.get("bias")), heads)


def _term(place: str, stored: Any) -> Term:
    expected = [field.name for field in fields(Term)]
    if not isinstance(stored, dict) or sorted(stored) != sorted(expected):
        raise LinearError(f"{place}: expected {', '.join(expected)}; train the ranker again")
    if not isinstance(stored["column"], str):
        raise LinearError(f"{place}: 'column' must be a text; train the ranker again")
    numbers = {name: _number(place, name, stored[name]) for name in ("unit", "mean", "scale", "weight", "missing")}
    if numbers["scale"] <= 0:
        raise LinearError(f"{place}: found scale {numbers['scale']}; expected more than 0; train the ranker again")
    if numbers["unit"] < 0:
        raise LinearError(f"{place}: found unit {numbers['unit']}; expected 0 or more; train the ranker again")
    return Term(stored["column"], **numbers)


def _number(place: str, name: str, value: Any) -> float:
    if not is_number(value):
        raise LinearError(f"{place}: found {name} {value!r}; expected a finite number; train the ranker again")
    return float(value)
