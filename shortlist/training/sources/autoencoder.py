"""The linear autoencoder's weights: every item as a ridge regression on those that are nearest to it.

On all others it would be EASE, one inverse whose cost grows with the cube of the catalogue. Here each item has a small
regression of its own, on the items that go with it most often, and what it leaves out is mostly noise (LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from shortlist.training.rankers.fitting import NothingToLearnError
from shortlist.training.sources.graph import Matrix

Sparse = Any
"""A scipy CSR matrix of float32; scipy has no types."""
TABLE = 5_000
"""Of so many items at most, one table says how many users any two have in common: 100 MB."""


def regressions(
    matrix: Sparse, near: Sparse, ridges: Sequence[float], step: Callable[[float], None]
) -> Mapping[float, Sparse]:
    """Of ones, shape (users, items), the weights under every ridge, (items, items): row i is what i says of others.

    Column j minimises |x_j - sum_i x_i w_ij|^2 + ridge |w_j|^2 over the items i that row j of `near`, a CSR matrix of
    (items, items), has entries of: not itself, and others once. Raises NothingToLearnError where a ridge is so small
    that the equations have no one solution.
    """
    common, items = in_common(matrix), near.shape[0]
    weights = {ridge: np.zeros(near.nnz, np.float32) for ridge in ridges}
    for item in range(items):
        row = slice(near.indptr[item], near.indptr[item + 1])
        others = near.indices[row]
        if len(others):
            counts = common(np.append(others, item))
            for ridge, found in weights.items():
                gram = counts[:-1, :-1] + ridge * np.eye(len(others))
                _, found[row], failed = linalg.lapack.dposv(gram, counts[:-1, -1])
                if failed:
                    raise NothingToLearnError(f"a ridge of {ridge:g} is lost beside the counts of users; raise it")
        step(item / items)
    told = np.repeat(np.arange(items), np.diff(near.indptr))
    return {ridge: sparse.csr_matrix((found, (near.indices, told)), near.shape) for ridge, found in weights.items()}


def in_common(matrix: Sparse) -> Callable[[NDArray[np.int32]], Matrix]:
    """What says of some items how many users any two of them have in common."""
    by_item = sparse.csr_matrix(matrix.T)
    if by_item.shape[0] <= TABLE:
        table = (by_item @ matrix).toarray()
        return lambda some: np.asarray(table[np.ix_(some, some)])

    def counted(some: NDArray[np.int32]) -> Matrix:
        acted = by_item[some]
        return np.asarray((acted @ acted.T).toarray())

    return counted
