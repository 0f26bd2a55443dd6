"""From a model's trees to bit vectors: which tables and planes its nodes need, and the steps that they become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shortlist.ranking.bitvectors import CATEGORIES, HIGH, LADDER, LOW, NEVER_MISSING, RANKS, TABLE_FIELDS, BitVectors
from shortlist.ranking.model_text import CATEGORICAL, DEFAULT_LEFT, MISSING_TYPE, Model, Tree
from shortlist.ranking.steps import RUNGS

Integers = NDArray[np.int64]


def bit_vectors(model: Model) -> BitVectors:
    """The model, compiled. A tree of one leaf has one group and no step."""
    nodes = _Nodes.of(model.trees)
    tables = _Tables(nodes)
    tables.add_ladders()
    tables.add_categories()
    layouts = [_layout(tree) for tree in model.trees]
    groups = np.array([(len(tree.leaf_value) + 7) // 8 for tree in model.trees], np.int64)
    base = np.cumsum(groups) - groups
    steps = _steps(nodes, layouts, groups, base)
    order = np.lexsort((tables.plane[steps.node], steps.group))
    node = steps.node[order]
    outputs = np.zeros(8 * int(groups.sum()))
    for tree, layout, count, start in zip(model.trees, layouts, groups.tolist(), base.tolist(), strict=True):
        outputs[8 * (start + count - 1 - (layout.place >> 3)) + (layout.place & 7)] = tree.leaf_value
    ends = np.cumsum(np.bincount(steps.group, minlength=int(groups.sum())))
    return BitVectors(
        tables=np.array(tables.rows, np.int64).reshape(-1, TABLE_FIELDS),
        thresholds=np.concatenate([np.zeros(0), *tables.ladders]),
        words=np.concatenate([np.zeros(0, np.uint32), *tables.sets]),
        planes=tables.planes,
        step_plane=tables.plane[node].astype(np.int32),
        step_rank=tables.rank[node].astype(np.uint8),
        step_mask=steps.mask[order].astype(np.uint8),
        group_stop=ends.astype(np.int64),
        tree_groups=groups,
        outputs=outputs,
    )


class _Nodes(NamedTuple):
    """The inner nodes of all trees, one after the other."""

    tree: Integers
    feature: Integers
    decision: Integers
    threshold: NDArray[np.float64]
    sets: Sequence[NDArray[np.uint32]]  # of the categorical nodes, in their order

    @classmethod
    def of(cls, trees: Sequence[Tree]) -> _Nodes:
        none = np.zeros(0, np.int64)
        return cls(
            np.repeat(np.arange(len(trees)), [len(tree.feature) for tree in trees]),
            np.concatenate([none, *(tree.feature for tree in trees)]),
            np.concatenate([none, *(tree.decision for tree in trees)]),
            np.concatenate([np.zeros(0), *(tree.threshold for tree in trees)]),
            [
                tree.sets[int(number)]
                for tree in trees
                for number in tree.threshold[(tree.decision & CATEGORICAL) != 0].tolist()
            ],
        )


class _Tables:
    """The tables of a model, and the plane and rank that each of its nodes compares with."""

    def __init__(self, nodes: _Nodes) -> None:
        self.nodes = nodes
        self.rows: list[list[int]] = []
        self.ladders: list[NDArray[np.float64]] = []
        self.sets: list[NDArray[np.uint32]] = []
        self.planes = 0
        self.plane = np.zeros(len(nodes.feature), np.int64)
        self.rank = np.zeros(len(nodes.feature), np.int64)

    def add_ladders(self) -> None:
        """One table for every 255 thresholds of each feature and kind of missing value."""
        missing = self.nodes.decision & MISSING_TYPE
        numeric = np.flatnonzero((self.nodes.decision & CATEGORICAL) == 0)
        pairs = np.unique(np.stack([self.nodes.feature, missing])[:, numeric], axis=1)
        for feature, kind in pairs.T.tolist():
            nodes = numeric[(self.nodes.feature[numeric] == feature) & (missing[numeric] == kind)]
            thresholds, place = np.unique(self.nodes.threshold[nodes], return_inverse=True)
            self.rank[nodes] = place % RANKS
            for first in range(0, len(thresholds), RANKS):
                self._add_ladder(
                    feature, kind, thresholds[first : first + RANKS], nodes[place // RANKS == first // RANKS]
                )

    def _add_ladder(self, feature: int, kind: int, thresholds: NDArray[np.float64], nodes: NDArray[np.intp]) -> None:
        row = [feature, kind, LADDER * len(self.ladders), LADDER, -1, -1]
        goes_left = ((self.nodes.decision[nodes] & DEFAULT_LEFT) != 0) | (kind == NEVER_MISSING)
        for field, chosen in ((LOW, nodes[goes_left]), (HIGH, nodes[~goes_left])):
            if len(chosen):
                row[field] = self.plane[chosen] = self._new_plane()
        self.rows.append(row)
        padded = np.append(thresholds, np.full(RANKS + 1 - len(thresholds), np.inf))
        self.ladders.append(np.append(padded[RUNGS - 1 :: RUNGS], padded))

    def add_categories(self) -> None:
        """One table for every set of categories of each feature."""
        seen: dict[tuple[int, bytes], int] = {}
        start = 0
        for node, words in zip(np.flatnonzero(self.nodes.decision & CATEGORICAL), self.nodes.sets, strict=True):
            key = int(self.nodes.feature[node]), words.tobytes()
            if key not in seen:
                seen[key] = self._new_plane()
                self.rows.append([key[0], CATEGORIES, start, len(words), seen[key], -1])
                self.sets.append(words)
                start += len(words)
            self.plane[node] = seen[key]

    def _new_plane(self) -> int:
        self.planes += 1
        return self.planes - 1


class _Layout(NamedTuple):
    """Leaves in their order from left to right: [first, stop) of each node's left subtree, and each leaf's place."""

    first: Integers
    stop: Integers
    place: Integers


def _layout(tree: Tree) -> _Layout:
    inner = len(tree.feature)
    children = list(zip(tree.left.tolist(), tree.right.tolist(), strict=True))
    size = [1] * inner
    for node in range(inner - 1, -1, -1):
        size[node] = sum(size[child] if child >= 0 else 1 for child in children[node])
    first, stop, place = [0] * inner, [0] * inner, [0] * (inner + 1)
    for node, (left, right) in enumerate(children):
        stop[node] = first[node] + (size[left] if left >= 0 else 1)
        for child, start in ((left, first[node]), (right, stop[node])):
            if child >= 0:
                first[child] = start
            else:
                place[-1 - child] = start
    return _Layout(np.array(first, np.int64), np.array(stop, np.int64), np.array(place))


class _Steps(NamedTuple):
    """One node in one group of leaves."""

    node: Integers
    group: Integers
    mask: Integers


def _steps(nodes: _Nodes, layouts: Sequence[_Layout], groups: Integers, base: Integers) -> _Steps:
    """Every node, once for each group in which it clears leaves."""
    none = np.zeros(0, np.int64)
    first = np.concatenate([none, *(layout.first for layout in layouts)])
    stop = np.concatenate([none, *(layout.stop for layout in layouts)])
    width = ((stop - 1) >> 3) - (first >> 3) + 1
    node = np.repeat(np.arange(len(first)), width)
    turn = np.arange(len(node)) - np.repeat(np.cumsum(width) - width, width)
    local = (first[node] >> 3) + turn
    begin = np.maximum(first[node] - 8 * local, 0)
    end = np.minimum(stop[node] - 8 * local, 8)
    cleared = (1 << end) - (1 << begin)
    tree = nodes.tree[node]
    return _Steps(node, base[tree] + groups[tree] - 1 - local, 255 - cleared)
