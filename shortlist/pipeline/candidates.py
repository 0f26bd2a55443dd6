"""The items under consideration, as columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """Items as indexes into the catalogue, with write-once named columns of one value per item.

    `matrix` is the block of feature columns, shape (features, items), named by `features`: kept whole because
    scorers read it whole, feature by feature.
    """

    items: NDArray[np.int32]
    columns: Mapping[str, Column] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    matrix: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def describe(self, columns: Mapping[str, Column]) -> Candidates:
        """These candidates with more columns. Raises KeyError on a name that is taken, ValueError on a wrong length."""
        for name, column in columns.items():
            if name in self.columns:
                raise KeyError(f"column {name!r} is written already; columns are written once")
            if len(column) != len(self):
                raise ValueError(f"column {name!r} has {len(column)} values for {len(self)} candidates")
        return Candidates(self.items, {**self.columns, **columns}, self.features, self.matrix)

    def with_matrix(self, features: tuple[str, ...], matrix: NDArray[np.float64]) -> Candidates:
        """These candidates with the feature block, shape (features, items), written once."""
        if self.matrix is not None:
            raise KeyError("the feature block is written already; it is written once")
        if matrix.shape != (len(features), len(self)):
            raise ValueError(f"the feature block has shape {matrix.shape}, expected {(len(features), len(self))}")
        return Candidates(self.items, self.columns, features, matrix)

    def take(self, chosen: NDArray[np.intp] | NDArray[np.bool_]) -> Candidates:
        """The chosen candidates: a mask, or indexes in their new order."""
        matrix = None if self.matrix is None else np.ascontiguousarray(self.matrix[:, chosen])
        columns = {name: column[chosen] for name, column in self.columns.items()}
        return Candidates(self.items[chosen], columns, self.features, matrix)
