"""The graph of users and items as a linear filter, applied through its two sparse halves.

With R the (users, items) matrix of ones and R' = Du^-p R Di^-1/2, the filter is P = R'^T R'. At p = 1/2 it is what a
random walk from an item over its users back to items says; below it, users of many items have more of a say. P itself
is never formed; it has too many entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray
from scipy import sparse

Matrix = NDArray[np.float32]
Setting = tuple[float, float]
"""How much of the low pass is added, and how long it is sharpened."""

SETTING: Setting = (0.2, 2.5)
"""The default one; those it has to beat are made of these."""
LOW_PASS, SHARPNESS = (0.0, 0.1, 0.2, 0.3, 0.5), (0.0, 1.0, 2.5)
ORDER = 4
"""Terms of exp(-sharpness P): one step of Runge and Kutta's fourth-order method."""
PROLIFIC, PROLIFICS = 0.5, (0.5, 0.4, 0.3)
"""The exponent by which users of many items are held back, by default, and those that it has to beat."""
ROUNDS, SPARE = 4, 32
WIDTH = 64


@njit(parallel=True, fastmath=True, cache=True)  # without a signature it is compiled when a source needs it
def _product(starts, columns, values, dense, out):  # type: ignore[no-untyped-def]
    """A sparse matrix times a dense one, row by row: every row is summed by one thread, always in the same order."""
    for row in prange(len(starts) - 1):
        total = out[row]
        total[:] = 0
        for place in range(starts[row], starts[row + 1]):
            value, other = values[place], dense[columns[place]]
            for number in range(len(total)):
                total[number] += value * other[number]


def product(matrix: Any, dense: Matrix) -> Matrix:
    """A CSR matrix of float32, shape (n, m), times a dense one, (m, w)."""
    out = np.empty((matrix.shape[0], dense.shape[1]), np.float32)
    _product(matrix.indptr, matrix.indices, matrix.data, np.ascontiguousarray(dense, np.float32), out)
    return out


@dataclass(frozen=True)
class Graph:
    """R' (`forth`), its transpose (`back`), the square root of each item's degree, and the smoothest directions.

    `directions`, shape (items, rank), are the right singular vectors of R' with the greatest singular values, `values`.
    Where there are any, R' is scaled so that the greatest is 1, as it is by itself at p = 1/2.
    """

    forth: Any
    back: Any
    root: Matrix
    directions: Matrix
    values: Matrix

    @classmethod
    def of(cls, matrix: Any, rank: int = 0, seed: int = 0, prolific: float = PROLIFIC) -> Graph:
        """The graph of a CSR matrix of ones, shape (users, items)."""
        by_user, by_item = (np.asarray(matrix.sum(axis), np.float32).ravel() for axis in (1, 0))
        root = np.sqrt(np.maximum(by_item, 1))
        halves = sparse.diags(np.maximum(by_user, 1) ** -prolific), sparse.diags(1 / root)
        forth = sparse.csr_matrix(halves[0] @ matrix @ halves[1], dtype=np.float32)
        back = sparse.csr_matrix(forth.T)
        directions, values = smoothest(forth, min(rank, min(forth.shape) - 1), seed)
        if len(values) and values[0] > 0:
            forth, back, values = forth / values[0], back / values[0], values / values[0]
        return cls(forth, back, root, directions, values)

    def spread(self, signals: Matrix) -> Matrix:
        """P times signals, shape (items, w)."""
        return product(self.back, product(self.forth, signals))

    def smooth(self, signals: Matrix) -> Matrix:
        """The ideal low pass: Di^1/2 V V^T Di^-1/2 times signals, shape (items, w)."""
        inner = self.directions.T @ (signals / self.root[:, None])
        return np.asarray((self.directions @ inner) * self.root[:, None], np.float32)

    def filtered(self, signals: Matrix, low_pass: float, sharpness: float) -> Matrix:
        """One setting's answer to signals, shape (items, w)."""
        term = self.spread(signals)
        if low_pass:
            term = term + np.float32(low_pass) * self.smooth(signals)
        return total([term, *self._powers(term)] if sharpness else [term], sharpness)

    def answers(self, known: Any) -> Matrix:
        """The default setting's answer to the histories of some users, shape (users, items) like the histories."""
        return self.filtered(np.ascontiguousarray(known.toarray().T), *SETTING).T

    def settings(self, known: Any) -> dict[Setting, Matrix]:
        """Every setting's answer to the histories of some users, shape (users, items) like the histories themselves."""
        signals = np.ascontiguousarray(known.toarray().T)
        plain, smooth = self.spread(signals), self.smooth(signals)
        powers = [[term, *self._powers(term)] for term in (plain, smooth)]
        found: dict[Setting, Matrix] = {}
        for low_pass in LOW_PASS:
            terms = [one + np.float32(low_pass) * other for one, other in zip(*powers, strict=True)]
            found |= {(low_pass, sharpness): total(terms, sharpness).T for sharpness in SHARPNESS}
        return found

    def weights(self, low_pass: float, sharpness: float) -> Iterator[Matrix]:
        """What every item says of every other, some rows at a time: one setting's answers to single items."""
        items = len(self.root)
        for start in range(0, items, WIDTH):
            width = min(WIDTH, items - start)
            signals = np.zeros((items, width), np.float32)
            signals[np.arange(start, start + width), np.arange(width)] = 1
            yield self.filtered(signals, low_pass, sharpness).T

    def _powers(self, term: Matrix) -> Iterator[Matrix]:
        for _ in range(ORDER):
            term = self.spread(term)
            yield term


def total(terms: list[Matrix], sharpness: float) -> Matrix:
    """sum over n of (-sharpness)^n / n! times the n-th term."""
    found, factor = terms[0].copy(), 1.0
    for number, term in enumerate(terms[1:] if sharpness else [], 1):
        factor *= -sharpness / number
        found += np.float32(factor) * term
    return found


def smoothest(forth: Any, rank: int, seed: int) -> tuple[Matrix, Matrix]:
    """The first right singular vectors of a CSR matrix, shape (columns, rank), and their values, (rank,).

    By randomised subspace iteration: Halko, Martinsson, Tropp, Finding structure with randomness, 2011, algorithm 4.4.
    """
    if rank <= 0:
        return np.zeros((forth.shape[1], 0), np.float32), np.zeros(0, np.float32)
    from sklearn.utils.extmath import randomized_svd  # takes a second, and only some sources need it

    _, values, right = randomized_svd(
        forth, rank, n_oversamples=SPARE, n_iter=ROUNDS, power_iteration_normalizer="LU", random_state=seed
    )
    return np.ascontiguousarray(right.T, np.float32), values.astype(np.float32)
