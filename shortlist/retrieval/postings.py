"""Which items have a value? Postings of an attribute: the items of each value, as events change them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.features.entities import EVERYTHING_KNOWN, Attribute, Entities
from shortlist.features.hashing import hash_strings
from shortlist.retrieval.changes import Mark
from shortlist.retrieval.vectors.index import Mask, Rows

WORTH_SORTING = 16
"""Postings are made anew once one item in so many has changed."""


@dataclass(frozen=True)
class Sorted:
    """Every value and its item, in order of value, as of a mark."""

    values: NDArray[Any]
    items: Rows
    mark: Mark

    def of(self, value: Any) -> Rows:
        """The items of a value."""
        start, stop = np.searchsorted(self.values, value, "left"), np.searchsorted(self.values, value, "right")
        return self.items[start:stop]


class Postings:
    """The items of each value of an attribute. What changed since they were sorted is looked at item by item.

    Several threads may ask.
    """

    def __init__(self, entities: Entities, name: str) -> None:
        self.entities, self.name = entities, name
        self._sorted = Sorted(np.empty(0), np.empty(0, np.int32), Mark())

    def values_for(self, values: Sequence[Any]) -> NDArray[Any]:
        """Values as a request has them, as the attribute's own: numbers, or hashes of strings."""
        if self.entities.attributes[self.name].numeric:
            return np.array([float(value) for value in values])
        return hash_strings([str(value) for value in values])

    def mask(self, values: NDArray[Any], size: int, position: int) -> Mask:
        """True for each of the first `size` items that has one of the values now; the table is at `position`."""
        attribute = copy(self.entities.attributes[self.name])  # whole, while another thread replaces its arrays
        held, changed = self._followed(attribute, position)
        mask = np.zeros(max(size, attribute.latest.size), np.bool_)
        for value in values:
            mask[held.of(value)] = True
        if len(changed):
            mask[changed] = holds(attribute, changed, values)
        return mask[:size]

    def holds(self, items: Rows, values: NDArray[Any]) -> Mask:
        """True for each item, by index, that has one of the values now; -1, an item that nobody knows, has none."""
        return holds(copy(self.entities.attributes[self.name]), items, values)

    def _followed(self, attribute: Attribute, position: int) -> tuple[Sorted, Rows]:
        """The values in their order, and the items that have changed since."""
        held = self._sorted
        if held.mark.is_here(attribute):
            return held, np.empty(0, np.int32)
        changed = held.mark.changed(attribute)
        if len(changed) * WORTH_SORTING < attribute.latest.size:
            return held, changed
        mark = Mark.of(attribute, position)
        known = np.flatnonzero(attribute.latest.values[1:]).astype(np.int32)
        values, owners = values_of(attribute, known)
        order = np.argsort(values, kind="stable")
        self._sorted = held = Sorted(values[order], known[owners[order]], mark)
        return held, mark.changed(attribute)


def values_of(attribute: Attribute, items: Rows) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Every current value of some items, and the place of the item that has it; a missing value is none."""
    rows = np.where(items + 1 < attribute.latest.size, items + 1, 0).astype(np.int32)
    if not attribute.latest.size:  # no event ever named an item
        rows = rows[:0]
    versions = attribute.versions(rows, np.full(len(rows), EVERYTHING_KNOWN))
    if attribute.numeric:
        numbers = attribute.numbers_of(versions)
        owners = np.flatnonzero(~np.isnan(numbers))
        return numbers[owners], owners
    lengths, words = attribute.words_of(versions)
    return words, np.repeat(np.arange(len(rows)), lengths)


def holds(attribute: Attribute, items: Rows, values: NDArray[Any]) -> Mask:
    """True for each item of whose values one is among these."""
    found, owners = values_of(attribute, items)
    mask = np.zeros(len(items), np.bool_)
    mask[owners[np.isin(found, values)]] = True
    return mask
