"""LightGBM's model text, read as data: nothing in it is executed, and LightGBM itself is not needed.

The format is the one that `Booster.save_model` writes: a header of `key=value` lines, one section per tree, the line
`end of trees`. What the scorer cannot reproduce to the last bit is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CATEGORICAL, DEFAULT_LEFT, MISSING_TYPE = 1, 2, 12
"""The bits of LightGBM's `decision_type`; the two of `MISSING_TYPE` hold 0 none, 4 zero, 8 NaN."""

NO_INTEGERS = np.zeros(0, np.int64)
NO_NUMBERS = np.zeros(0)


class ModelTextError(ValueError):
    """The text is no model that can be scored: where, what was found, and what was expected."""


@dataclass(frozen=True)
class Tree:
    """One tree: arrays over its inner nodes (root first, parents before children) and over its leaves.

    `left` and `right` hold a node's index, or `-1 - leaf`. A categorical node's `threshold` is the number of its set
    in `sets`: 32 categories per word, the least significant bit first.
    """

    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    decision: NDArray[np.int64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    leaf_value: NDArray[np.float64]
    leaf_count: NDArray[np.int64]
    sets: tuple[NDArray[np.uint32], ...] = ()


@dataclass(frozen=True)
class Model:
    """Trees whose outputs add up, the names of the features they split on, and what they were trained for.

    `objective` is LightGBM's own description, such as `lambdarank` or `binary sigmoid:1`.
    """

    names: tuple[str, ...]
    objective: str
    averaged: bool
    trees: tuple[Tree, ...]


def read_model(path: Path) -> Model:
    """The model in a file. Raises ModelTextError with file and line, OSError where the file cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelTextError(f"{path}: not UTF-8 at byte {error.start}; expected a LightGBM model text") from None
    return parse_model(text, str(path))


def parse_model(text: str, place: str = "model text") -> Model:
    """The model that `text` describes. Raises ModelTextError, which begins with `place` and the line."""
    lines = text.split("\n")
    if lines[0].strip() != "tree":
        raise ModelTextError(f"{place}, line 1: found {lines[0][:40]!r}; a LightGBM model text begins with 'tree'")
    starts = [number for number, line in enumerate(lines) if line.startswith(("Tree=", "end of trees"))]
    if not starts or not lines[starts[-1]].startswith("end of trees"):
        raise ModelTextError(f"{place}: no line 'end of trees'; the file is cut off, write it again")
    header = _Section(place, lines, 1, starts[0])
    names = tuple(header.text("feature_names").split(" "))
    if len(names) != header.integer("max_feature_idx") + 1:
        expected = header.integer("max_feature_idx") + 1
        raise header.error("feature_names", f"found {len(names)} names; max_feature_idx says {expected}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise header.error("feature_names", f"found {twice!r} twice; expected a name of its own for every feature")
    if header.integer("num_tree_per_iteration") != 1:
        raise header.error("num_tree_per_iteration", "a multiclass model has no single score; train with one class")
    sizes = header.optional("tree_sizes").split()
    if len(sizes) != len(starts) - 1:
        raise header.error("tree_sizes", f"announces {len(sizes)} trees, found {len(starts) - 1}; write the file again")
    trees = tuple(_tree(_Section(place, lines, start, stop), len(names)) for start, stop in pairwise(starts))
    return Model(names, header.optional("objective"), "average_output" in header, trees)


def _tree(section: _Section, features: int) -> Tree:
    leaves = section.integer("num_leaves")
    if section.optional("is_linear", "0") != "0":
        raise section.error("is_linear", "linear trees are not supported; train with linear_tree=false")
    if leaves < 1:
        raise section.error("num_leaves", f"found {leaves}; expected at least 1")
    leaf_value = section.numbers("leaf_value", leaves)
    if not np.isfinite(leaf_value).all():
        raise section.error("leaf_value", "found a value that is not finite")
    if leaves == 1:
        return Tree(NO_INTEGERS, NO_NUMBERS, NO_INTEGERS, NO_INTEGERS, NO_INTEGERS, leaf_value, np.ones(1, np.int64))
    tree = Tree(
        section.integers("split_feature", leaves - 1, 0, features - 1),
        section.numbers("threshold", leaves - 1),
        section.integers("decision_type", leaves - 1, 0, 11),
        section.integers("left_child", leaves - 1, -leaves, leaves - 2),
        section.integers("right_child", leaves - 1, -leaves, leaves - 2),
        leaf_value,
        section.integers("leaf_count", leaves, 0, 2**31),
        tuple(_sets(section)),
    )
    _check_shape(section, tree)
    return tree


def _sets(section: _Section) -> Iterator[NDArray[np.uint32]]:
    count = section.integer("num_cat")
    if count == 0:
        return
    if count < 0:
        raise section.error("num_cat", f"found {count}; expected 0 or more")
    bounds = section.integers("cat_boundaries", count + 1, 0, 2**31)
    if bounds[0] != 0 or (np.diff(bounds) < 1).any():
        raise section.error("cat_boundaries", "found bounds that do not start at 0 and rise")
    words = section.integers("cat_threshold", int(bounds[-1]), 0, 2**32 - 1).astype(np.uint32)
    for start, stop in pairwise(bounds.tolist()):
        yield words[start:stop]


def _check_shape(section: _Section, tree: Tree) -> None:
    """Refuse what is no binary tree, or what names a set that does not exist."""
    nodes = np.arange(len(tree.left))
    for key, children in (("left_child", tree.left), ("right_child", tree.right)):
        if ((children >= 0) & (children <= nodes)).any():
            raise section.error(key, "found a child that does not come after its parent")
    children = np.concatenate([tree.left, tree.right])
    if len(np.unique(children)) != len(children):
        raise section.error("left_child", "found a node or leaf with two parents (here or in right_child)")
    if np.isnan(tree.threshold).any():
        raise section.error("threshold", "found a threshold that is not a number")
    chosen = tree.threshold[(tree.decision & CATEGORICAL) != 0]
    if not np.isin(chosen, np.arange(len(tree.sets))).all():
        raise section.error("threshold", f"found a category set outside 0..{len(tree.sets) - 1}")


class _Section:
    """The `key=value` lines of one part of the file; every complaint names the line."""

    def __init__(self, place: str, lines: list[str], start: int, stop: int) -> None:
        self._title = f"{place}, line {start + 1}"
        self._place = place
        self._lines: dict[str, int] = {}
        self._values: dict[str, str] = {}
        for number in range(start, stop):
            key, _, value = lines[number].strip("\r\n").partition("=")
            if key:
                self._lines[key], self._values[key] = number + 1, value

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def error(self, key: str, what: str) -> ModelTextError:
        """The complaint about `key`, with its line."""
        place = f"{self._place}, line {self._lines[key]}" if key in self._lines else self._title
        return ModelTextError(f"{place}: {key}: {what}")

    def optional(self, key: str, default: str = "") -> str:
        return self._values.get(key, default)

    def text(self, key: str) -> str:
        if key not in self._values:
            raise self.error(key, "missing from this section")
        return self._values[key]

    def integer(self, key: str) -> int:
        try:
            return int(self.text(key))
        except ValueError:
            if key not in self._values:
                raise
            raise self.error(key, f"found {self._values[key][:40]!r}; expected a whole number") from None

    def numbers(self, key: str, count: int) -> NDArray[np.float64]:
        try:
            values = np.array([float(word) for word in self.text(key).split()])
        except ValueError as error:
            if isinstance(error, ModelTextError):
                raise
            raise self.error(key, f"{error}; expected numbers") from None
        return self._counted(key, values, count)

    def integers(self, key: str, count: int, least: int, most: int) -> NDArray[np.int64]:
        values = self.numbers(key, count)
        wrong = (values < least) | (values > most) | (values != np.floor(values))
        if wrong.any():
            raise self.error(key, f"found {values[wrong][0]:g}; expected whole numbers from {least} to {most}")
        return values.astype(np.int64)

    def _counted(self, key: str, values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
        if len(values) != count:
            raise self.error(key, f"found {len(values)} values; expected {count}")
        return values
