"""The items under consideration, as columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]
ROUND = "round"
"""The column of the round in which a candidate was found; where it is missing, or NaN, that was the first, 0."""


@dataclass(frozen=True)
class Candidates:
    """Items as indexes into the catalogue, with write-once named columns of one value per item.

    `matrix` is the block of feature columns, shape (features, items), named by `features`: kept whole because
    scorers read it whole, feature by feature. `own` is set where the caller brought the items: the place of each
    in `query.items`; only then an index may be -1, which is an item that the catalogue does not know. `passed` are the
    filters that have let all of them through, for the query at hand: none needs to be asked twice.
    """

    items: NDArray[np.int32]
    columns: Mapping[str, Column] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    matrix: NDArray[np.float64] | None = None
    own: NDArray[np.int32] | None = None
    passed: tuple[object, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def describe(self, columns: Mapping[str, Column]) -> Candidates:
        """These candidates with more columns. Raises KeyError on a name that is taken, ValueError on a wrong length."""
        for name, column in columns.items():
            if name in self.columns:
                raise KeyError(f"column {name!r} is written already; columns are written once")
            if len(column) != len(self):
                raise ValueError(f"column {name!r} has {len(column)} values for {len(self)} candidates")
        described = {**self.columns, **columns}
        return Candidates(self.items, described, self.features, self.matrix, self.own, self.passed)

    def with_matrix(self, features: tuple[str, ...], matrix: NDArray[np.float64]) -> Candidates:
        """These candidates with the feature block, shape (features, items), written once."""
        if self.matrix is not None:
            raise KeyError("the feature block is written already; it is written once")
        if matrix.shape != (len(features), len(self)):
            raise ValueError(f"the feature block has shape {matrix.shape}, expected {(len(features), len(self))}")
        return Candidates(self.items, self.columns, features, matrix, self.own, self.passed)

    def having_passed(self, filters: Iterable[object]) -> Candidates:
        """These candidates, all of which some filters have let through."""
        passed = (*self.passed, *filters)
        return Candidates(self.items, self.columns, self.features, self.matrix, self.own, passed)

    def take(self, chosen: NDArray[np.intp] | NDArray[np.bool_]) -> Candidates:
        """The chosen candidates: a mask, or indexes in their new order."""
        matrix = None if self.matrix is None else np.ascontiguousarray(self.matrix[:, chosen])
        columns = {name: column[chosen] for name, column in self.columns.items()}
        own = None if self.own is None else self.own[chosen]
        return Candidates(self.items[chosen], columns, self.features, matrix, own, self.passed)

    def followed_by(self, others: Candidates) -> Candidates:
        """These candidates and then the others. A column or feature that only one side has is NaN for the other.

        Either both are the caller's own items or neither is; ValueError otherwise.
        """
        if not len(self) or not len(others):
            return self if len(self) else others
        if (self.own is None) != (others.own is None):
            raise ValueError("the caller's own items and retrieved ones do not mix")
        columns = {
            name: np.concatenate([_column(side, name) for side in (self, others)])
            for name in dict.fromkeys((*self.columns, *others.columns))
        }
        features = self.features or others.features
        matrix = None
        if self.matrix is not None or others.matrix is not None:
            matrix = np.concatenate([_block(side, features) for side in (self, others)], axis=1)
        own = None if self.own is None or others.own is None else np.concatenate([self.own, others.own])
        items = np.concatenate([self.items, others.items])
        return Candidates(items, columns, features, matrix, own, passed_by_all([self, others]))


def passed_by_all(several: Iterable[Candidates]) -> tuple[object, ...]:
    """The filters that all of these have passed; those of which there are none have passed every one."""
    first, *others = [held.passed for held in several if len(held)] or [()]
    return tuple(stage for stage in first if all(stage in passed for passed in others))


def _column(side: Candidates, name: str) -> Column:
    return side.columns.get(name, np.full(len(side), np.nan))


def _block(side: Candidates, features: tuple[str, ...]) -> NDArray[np.float64]:
    return np.full((len(features), len(side)), np.nan) if side.matrix is None else side.matrix


NOTHING = Candidates(np.empty(0, np.int32))
