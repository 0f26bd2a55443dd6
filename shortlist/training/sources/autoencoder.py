"""The linear autoencoder's weights: every item as a ridge regression on those that are nearest to it.

On all others it would be EASE, one inverse whose cost grows with the cube of the catalogue. Here each item has a small
regression of its own, on the items that go with it most often, and what it leaves out is mostly noise (LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numba import njit, prange
from scipy import linalg, sparse

Sparse = Any
"""A scipy CSR matrix of float32; scipy has no types."""
TOGETHER, PARTS = 256, 8
"""The items that are counted for at once, and the parts in which threads share that."""


def regressions(
    matrix: Sparse, near: Sparse, ridges: Sequence[float], step: Callable[[float], None]
) -> Mapping[float, Sparse]:
    """Of ones, shape (users, items), the weights under every ridge, (items, items): row i is what i says of others.

    Column j minimises |x_j - sum_i x_i w_ij|^2 + ridge |w_j|^2 over the items i that row j of `near`, a CSR matrix of
    (items, items), has entries of: not itself, and others once.
    """
    by_item, counts = sparse.csr_matrix(matrix.T), np.diff(near.indptr)
    width = int(counts.max(initial=0))
    filled = np.arange(width) < counts[:, None]
    others = np.full(filled.shape, -1, np.int32)
    others[filled] = near.indices
    weights = {ridge: np.zeros(others.shape, np.float32) for ridge in ridges}
    for start in range(0, len(others), TOGETHER):
        part = slice(start, start + TOGETHER)
        common = np.zeros((len(others[part]), width + 1, width + 1), np.float32)
        _count(start, others[part], by_item.indptr, by_item.indices, matrix.indptr, matrix.indices, common)
        for row in np.flatnonzero(counts[part]):
            count = counts[start + row]
            gram, told = common[row, :count, :count], common[row, :count, -1]
            for ridge, found in weights.items():
                held = gram + np.float32(ridge) * np.eye(count, dtype=np.float32)
                found[start + row, :count] = linalg.lapack.sposv(held, told)[1]
        step(start / len(others))
    place = near.indices, np.repeat(np.arange(len(others)), counts)
    return {ridge: sparse.csr_matrix((of[filled], place), near.shape) for ridge, of in weights.items()}


@njit(parallel=True, cache=True)  # without a signature it is compiled when a source needs it
def _count(first, others, by_item, users, by_user, items, common):  # type: ignore[no-untyped-def]
    """How many users any two of an item's others have in common, and, in the last row and column, with the item."""
    for part in prange(PARTS):
        place = np.full(len(by_item) - 1, -1, np.int32)
        asked = np.full(len(by_user) - 1, -1, np.int32)  # for which item a user was looked at last
        found = np.empty(others.shape[1] + 1, np.int32)
        for row in range(part, len(others), PARTS):
            near = others[row][others[row] >= 0]
            place[near] = np.arange(len(near))
            place[first + row] = others.shape[1]
            for other in near:
                for user in users[by_item[other] : by_item[other + 1]]:
                    if asked[user] == row:
                        continue
                    asked[user] = row
                    count = 0
                    for item in items[by_user[user] : by_user[user + 1]]:
                        if place[item] >= 0:
                            found[count] = place[item]
                            count += 1
                    for one in found[:count]:
                        for two in found[:count]:
                            common[row, one, two] += 1
            place[near] = -1
            place[first + row] = -1
