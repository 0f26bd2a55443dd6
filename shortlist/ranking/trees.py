"""Gradient-boosted trees: LightGBM's model, without LightGBM.

Scores equal LightGBM's `predict(raw_score=True)` to the last bit: the same comparisons, the same float64 sums in the
order of the trees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shortlist.ranking.calibration import Head, probabilities, sigmoid
from shortlist.ranking.compilation import bit_vectors
from shortlist.ranking.model_text import Model, ModelTextError, read_model
from shortlist.ranking.paths import Paths
from shortlist.ranking.scorer import ColumnFinder, Matrix, as_matrix


class Trees:
    """A sum of decision trees. Contributions add up to the raw score.

    `names` are the names that the model text gives its features, or those given here in the same order. `heads` are the
    sigmoids of the raw score that give the calibrated probability of each action.
    """

    def __init__(self, model: Model, names: Sequence[str] | None = None, heads: Sequence[Head] = ()) -> None:
        if names is not None and len(names) != len(model.names):
            raise ModelTextError(f"{len(names)} columns are named for a model of {len(model.names)} features")
        self.names = model.names if names is None else tuple(names)
        self.model = model
        self.heads = tuple(heads)
        self._vectors = bit_vectors(model)
        self._columns = ColumnFinder(self.names)

    @classmethod
    def load(cls, path: Path, names: Sequence[str] | None = None, heads: Sequence[Head] = ()) -> Trees:
        """Read a model text. Raises ModelTextError with the line, OSError where the file cannot be read."""
        return cls(read_model(path), names, heads)

    def score(self, matrix: Matrix, names: Sequence[str]) -> NDArray[np.float64]:
        """The raw score of each row of `matrix` [features, rows], whose features are named by `names`."""
        return self._vectors.score(as_matrix(matrix, names), self._columns.positions(names))

    def margin(self, matrix: Matrix, names: Sequence[str]) -> NDArray[np.float64]:
        """The score itself."""
        return self.score(matrix, names)

    def probabilities(self, matrix: Matrix, names: Sequence[str]) -> Mapping[str, NDArray[np.float64]]:
        """The calibrated probability of each action on each row; nothing where training could not calibrate."""
        return probabilities(self.score(matrix, names), self.heads)

    def probability(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """What raw scores mean as probabilities. Raises ValueError unless the model was trained for a yes or no."""
        words = self.model.objective.split()
        if not words or words[0] not in {"binary", "cross_entropy"} or self.model.averaged:
            raise ValueError(
                f"a model with objective {self.model.objective!r} has no probabilities; rank by the scores"
            )
        slope = next((float(word.removeprefix("sigmoid:")) for word in words if word.startswith("sigmoid:")), 1.0)
        return sigmoid(slope * scores)

    def explain(self, matrix: Matrix, names: Sequence[str]) -> Mapping[str, NDArray[np.float64]]:
        """Path attribution (Saabas, 2014): each split moves the expected output, and its feature gets the difference.

        Cheap and exact in sum, but it credits a split near the leaf more than one near the root; unlike Shapley values
        it can rank features inconsistently. `bias` is the model's mean output over its training rows.
        """
        columns = as_matrix(matrix, names)[self._columns.positions(names)]
        bias, values = self._paths.contributions(columns)
        return {"bias": bias, **dict(zip(self.names, values, strict=True))}

    @cached_property
    def _paths(self) -> Paths:
        return Paths(self.model)
