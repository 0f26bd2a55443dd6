"""The paths that rows take through trees, and what each split changed: for explanations, a few rows at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shortlist.ranking.bitvectors import MISSING_NAN, MISSING_ZERO, ZERO
from shortlist.ranking.model_text import CATEGORICAL, DEFAULT_LEFT, MISSING_TYPE, Model, Tree

Integers = NDArray[np.int64]


class Paths:
    """All trees as one graph: inner nodes first, then leaves; `value` is the mean output of the rows that pass."""

    def __init__(self, model: Model) -> None:
        none = np.zeros(0, np.int64)
        self.feature = np.concatenate([none, *(tree.feature for tree in model.trees)])
        self.decision = np.concatenate([none, *(tree.decision for tree in model.trees)])
        self.threshold = np.concatenate([np.zeros(0), *(tree.threshold for tree in model.trees)])
        self.sets = [words for tree in model.trees for words in tree.sets]
        self.features = len(model.names)
        inner, sets, leaf = 0, 0, len(self.feature)
        roots, left, right = [], [none], [none]
        for tree in model.trees:
            roots.append(inner if len(tree.feature) else leaf)
            left.append(np.where(tree.left >= 0, tree.left + inner, leaf - 1 - tree.left))
            right.append(np.where(tree.right >= 0, tree.right + inner, leaf - 1 - tree.right))
            here = slice(inner, inner + len(tree.feature))
            self.threshold[here] += np.where(tree.decision & CATEGORICAL, sets, 0)
            inner, sets, leaf = inner + len(tree.feature), sets + len(tree.sets), leaf + len(tree.leaf_value)
        self.roots = np.array(roots, np.int64)
        self.left, self.right = np.concatenate(left), np.concatenate(right)
        means = [_means(tree) for tree in model.trees]
        outputs = [tree.leaf_value for tree in model.trees]
        self.value = np.concatenate([np.zeros(0), *means, *outputs])

    def contributions(self, matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """`(bias [rows], values [features, rows])` of `matrix` [features, rows]; they add up to the raw score."""
        rows = matrix.shape[1]
        bias = np.full(rows, self.value[self.roots].sum())
        values = np.zeros((self.features, rows))
        node = np.repeat(self.roots, rows)
        row = np.tile(np.arange(rows), len(self.roots))
        while len(node := node[keep := node < len(self.feature)]):
            row = row[keep]
            feature = self.feature[node]
            to = np.where(self._goes_left(node, matrix[feature, row]), self.left[node], self.right[node])
            np.add.at(values, (feature, row), self.value[to] - self.value[node])
            node = to
        return bias, values

    def _goes_left(self, node: Integers, x: NDArray[np.float64]) -> NDArray[np.bool_]:
        """LightGBM's decision at each node."""
        x = np.where(np.abs(x) <= ZERO, 0.0, x)
        decision = self.decision[node]
        kind = decision & MISSING_TYPE
        number = np.where(np.isnan(x) & (kind != MISSING_NAN), 0.0, x)
        missing = ((kind == MISSING_ZERO) & (number == 0.0)) | ((kind == MISSING_NAN) & np.isnan(x))
        left = np.where(missing, (decision & DEFAULT_LEFT) != 0, number <= self.threshold[node])
        for at in np.flatnonzero(decision & CATEGORICAL).tolist():
            words = self.sets[int(self.threshold[node[at]])]
            inside = -1.0 < x[at] < 32.0 * len(words)
            category = int(x[at]) if inside else 0
            left[at] = inside and bool(int(words[category >> 5]) >> (category & 31) & 1)
        return left


def _means(tree: Tree) -> NDArray[np.float64]:
    """The mean output of the training rows that reach each inner node."""
    inner = len(tree.feature)
    weight = np.maximum(tree.leaf_count, 1).tolist()
    output = tree.leaf_value.tolist()
    total, count = [0.0] * inner, [0.0] * inner
    for node in range(inner - 1, -1, -1):
        for child in (int(tree.left[node]), int(tree.right[node])):
            leaf = -1 - child
            total[node] += total[child] if child >= 0 else weight[leaf] * output[leaf]
            count[node] += count[child] if child >= 0 else weight[leaf]
    return np.array(total) / np.array(count) if inner else np.zeros(0)
