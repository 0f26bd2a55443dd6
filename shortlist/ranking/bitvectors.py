"""Trees as bit vectors: every node is one comparison over all rows, and no row ever walks a tree.

QuickScorer (Lucchese et al., SIGIR 2015): number a tree's leaves from left to right and give each row one bit per
leaf. A node whose test fails clears the leaves of its left subtree; the lowest bit that is left is the row's leaf.
Two ideas of RapidScorer (Ye et al., KDD 2018) make it fit vector units. Rows lie side by side and bits are kept in
bytes, eight leaves a *group*, so that a node touches only the groups in which it clears something, and trees of any
number of leaves take as many groups as they need. Values are replaced by their ranks among the thresholds of their
feature, which fit a byte too: one instruction compares 64 rows (`steps`). All of it is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from shortlist.features.pointers import numbers_of, octets_of, reals, rows_of
from shortlist.ranking.steps import RUNGS, WIDTH, below, number_lowest_bits, take_128, take_256, take_512

ZERO = float(np.float32(1e-35))
"""LightGBM takes every number this close to zero for zero (its kZeroThreshold, a float32)."""

RANKS = 255
"""Thresholds per ladder: a rank among them, 0 to 255, fits a byte."""
LADDER = RUNGS + RANKS + 1
"""Numbers of a ladder: the last of every sixteen thresholds, then all of them, padded with infinity."""

BLOCK = 512
"""Rows scored at a time: their planes stay in the fast caches."""

# Columns of a table, and its kinds: what counts as missing, or that it is a set of categories.
FEATURE, KIND, START, LENGTH, LOW, HIGH, TABLE_FIELDS = range(7)
NEVER_MISSING, MISSING_ZERO, MISSING_NAN, CATEGORIES = 0, 4, 8, 9


@dataclass(frozen=True)
class BitVectors:
    """A model as arrays, ready for `add_scores`.

    A *plane* is one byte per row: the rank of the row's value in one table. A table is a ladder of 255 thresholds
    (`LADDER`) or a set of categories (rank 0 inside, 1 outside); START and LENGTH say where in
    `thresholds` or `words` it lies. Missing values rank lowest in plane LOW and highest in plane HIGH, for the nodes
    at which they go left and right; -1 where no node needs that plane.

    A *step* takes the leaves not in its `step_mask` from the rows whose rank in `step_plane` is above `step_rank`.
    Steps are sorted by group; `group_stop` says where each group's end. A tree has `tree_groups` groups, the last
    leaves first, so that the group seen last is the one with the lowest leaves. `outputs` holds eight per group.
    """

    tables: NDArray[np.int64]
    thresholds: NDArray[np.float64]
    words: NDArray[np.uint32]
    planes: int
    step_plane: NDArray[np.int32]
    step_rank: NDArray[np.uint8]
    step_mask: NDArray[np.uint8]
    group_stop: NDArray[np.int64]
    tree_groups: NDArray[np.int64]
    outputs: NDArray[np.float64]

    def score(self, matrix: NDArray[np.float64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """The sum of the trees' outputs for every column of `matrix` [features, rows], C-contiguous.

        `positions[f]` is the row of `matrix` that holds the model's feature f.
        """
        out = np.zeros(matrix.shape[1])
        add_scores(
            matrix, positions, self.tables, self.thresholds, self.words, self.planes, self.step_plane, self.step_rank,
            self.step_mask, self.group_stop, self.tree_groups, self.outputs, out,
        )  # fmt: skip
        return out


OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
INNER: dict[str, Any] = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
inner = njit(**INNER)


@inner
def rank_rows(matrix, positions, first, rows, tables, thresholds, words, planes):  # type: ignore[no-untyped-def]
    """Fill the planes for `rows` rows from `first` on."""
    value, ladders = np.empty(rows), reals(thresholds)
    rank = np.empty(rows, np.uint8)
    for table in range(len(tables)):
        kind, start = tables[table, KIND], tables[table, START]
        column = matrix[positions[tables[table, FEATURE]], first : first + rows]
        alike = True
        for row in range(rows):
            x = column[row]
            alike &= x == column[0]
            value[row] = 0.0 if abs(x) <= ZERO or (np.isnan(x) and kind < MISSING_NAN) else x
        if kind == CATEGORIES:
            for row in range(rows):
                inside = value[row] > -1.0 and value[row] < 32.0 * tables[table, LENGTH]
                category = int(value[row]) if inside else 0
                inside = inside and words[start + (category >> 5)] >> np.uint32(category & 31) & 1
                planes[tables[table, LOW], row] = 0 if inside else 1
            continue
        for row in range(1 if alike else rows):
            passed = below(ladders, start, value[row]) * RUNGS
            rank[row] = passed + below(ladders, start + RUNGS + passed, value[row])
        if alike:  # what is said of the user is the same for every candidate
            rank[:] = rank[0]
        for field, extreme in ((LOW, np.uint8(0)), (HIGH, np.uint8(255))):
            plane = tables[table, field]
            for row in range(rows if plane >= 0 else 0):
                x = value[row]
                missing = np.isnan(x) if kind == MISSING_NAN else kind == MISSING_ZERO and x == 0.0
                planes[plane, row] = extreme if missing else rank[row]


@inner
def add_trees(planes, step_plane, step_rank, step_mask, group_stop, tree_groups, outputs, total):  # type: ignore[no-untyped-def]
    """Add each tree's output to `total`, in the order of the trees."""
    width = planes.shape[1]
    lowest = np.empty(width, np.uint8)
    where = np.empty(width, np.uint16)
    plane_p, of_p, rank_p, mask_p = octets_of(planes), rows_of(step_plane), octets_of(step_rank), octets_of(step_mask)
    lowest_p, where_p = octets_of(lowest), numbers_of(where)
    group, step = 0, 0
    for tree in range(len(tree_groups)):
        leaves = outputs[group * 8 :]
        for number in range(tree_groups[tree]):
            stop, this = group_stop[group], np.uint16(number)
            if width == 128:
                take_128(plane_p, of_p, rank_p, mask_p, step, stop, this, lowest_p, where_p)
            elif width == 256:
                take_256(plane_p, of_p, rank_p, mask_p, step, stop, this, lowest_p, where_p)
            else:
                take_512(plane_p, of_p, rank_p, mask_p, step, stop, this, lowest_p, where_p)
            step = stop
            group += 1
        for first in range(0, width, WIDTH):
            number_lowest_bits(lowest_p, first)
        for row in range(width):
            total[row] += leaves[np.uint64(where[row]) * np.uint64(8) + np.uint64(lowest[row])]


@njit(
    "void(float64[:,::1], int64[::1], int64[:,::1], float64[::1], uint32[::1], int64, int32[::1], uint8[::1],"
    " uint8[::1], int64[::1], int64[::1], float64[::1], float64[::1])",
    cache=True,
    **OPTIONS,
)
def add_scores(  # type: ignore[no-untyped-def]
    matrix,
    positions,
    tables,
    thresholds,
    words,
    planes,
    step_plane,
    step_rank,
    step_mask,
    group_stop,
    tree_groups,
    outputs,
    out,
):
    """Add the model's raw score of every column of `matrix` to `out`; see BitVectors."""
    for first in range(0, len(out), BLOCK):
        rows = min(BLOCK, len(out) - first)
        width = 128 if rows <= 128 else 256 if rows <= 256 else 512  # so that no vector has a remainder
        ranks = np.zeros((planes, width), np.uint8)
        total = np.zeros(width)
        rank_rows(matrix, positions, first, rows, tables, thresholds, words, ranks)
        add_trees(ranks, step_plane, step_rank, step_mask, group_stop, tree_groups, outputs, total)
        for row in range(rows):
            out[first + row] += total[row]
