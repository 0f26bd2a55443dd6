"""What every trained ranker can do, and how it finds its columns in a feature matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shortlist.framing.problems import nearest

Matrix = NDArray[np.float64]
"""Feature-major: shape [features, rows], so that each feature's values lie side by side. NaN is missing."""


class MatrixScorer(Protocol):
    """A trained ranker as a function of a feature matrix; safe to call from several threads."""

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that it reads."""

    def score(self, matrix: Matrix, names: Sequence[str]) -> NDArray[np.float64]:
        """One score per row, higher is better; `names` names the rows of `matrix`. Raises MissingColumnsError."""

    def margin(self, matrix: Matrix, names: Sequence[str]) -> NDArray[np.float64]:
        """The score on the scale on which contributions add up, such as the log-odds of a probability."""

    def explain(self, matrix: Matrix, names: Sequence[str]) -> Mapping[str, NDArray[np.float64]]:
        """What each column, and `bias`, adds to the margin."""

    def probabilities(self, matrix: Matrix, names: Sequence[str]) -> Mapping[str, NDArray[np.float64]]:
        """The calibrated probability of each action on each row, by action; none where training could not calibrate."""


class MissingColumnsError(ValueError):
    """A ranker needs columns that the feature matrix does not have."""


class ColumnFinder:
    """Where the columns that a ranker needs lie; looked up once per layout, not once per request."""

    def __init__(self, needed: Sequence[str]) -> None:
        self.needed = tuple(needed)
        self._last: tuple[tuple[str, ...], NDArray[np.int64]] = (), np.zeros(0, np.int64)

    def positions(self, names: Sequence[str]) -> NDArray[np.int64]:
        """The index in `names` of each needed column. Raises MissingColumnsError naming those that are missing."""
        known, positions = self._last
        if known == names and len(positions) == len(self.needed):
            return positions
        index = {name: number for number, name in enumerate(names)}
        missing = [name for name in self.needed if name not in index]
        if missing:
            listed = ", ".join(map(repr, missing[:10])) + (" and more" if len(missing) > 10 else "")
            raise MissingColumnsError(
                f"the ranker needs {listed}, which the "
                f"features do not have ({nearest(missing[0], index)}): declare them, or train a ranker without them"
            )
        positions = np.array([index[name] for name in self.needed], np.int64)
        self._last = tuple(names), positions
        return positions


def as_matrix(matrix: Matrix, names: Sequence[str]) -> Matrix:
    """`matrix` as C-contiguous float64, copied only if it is not. Raises ValueError where the shape is wrong."""
    if matrix.ndim != 2 or len(matrix) != len(names):
        raise ValueError(f"the matrix has shape {matrix.shape}; expected [{len(names)} features, rows]")
    return np.ascontiguousarray(matrix, np.float64)
