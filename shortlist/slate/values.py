"""What is known of candidates: the values of an attribute, any number per candidate, and where they compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.features.entities import EVERYTHING_KNOWN, Entities
from shortlist.features.hashing import hash_strings
from shortlist.framing.durations import duration_ms
from shortlist.slate.specs import Where

Mask = NDArray[np.bool_]
Items = NDArray[np.int32]

WITHIN = "within"
"""The comparison of a moment, ms UTC, with a duration: it is not as long ago as that."""
COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}


@dataclass(frozen=True)
class Values:
    """All values of `count` candidates, side by side: `words[i]` is one of candidate `owners[i]`; owners ascend.

    Words are hashes of strings, or numbers; a candidate whose value is missing has none.
    """

    words: NDArray[Any]
    owners: NDArray[np.intp]
    count: int

    def any(self, chosen: Mask) -> Mask:
        """True for each candidate of whose values one is chosen."""
        mask = np.zeros(self.count, np.bool_)
        mask[self.owners[chosen]] = True
        return mask

    def of(self, candidate: int) -> NDArray[Any]:
        """The values of one candidate."""
        return self.words[self._starts[candidate] : self._starts[candidate + 1]]

    @cached_property
    def _starts(self) -> NDArray[np.intp]:
        return np.searchsorted(self.owners, np.arange(self.count + 1))


def values_of(entities: Entities, name: str, items: Items) -> Values:
    """The current values of an attribute of items by index; -1, an item that nobody knows, has none."""
    # a copy shares the arrays: what is read stays whole while another thread drops superseded versions
    attribute = copy(entities.attributes[name])
    versions = attribute.versions((items + 1).astype(np.int32), np.full(len(items), EVERYTHING_KNOWN))
    if attribute.numeric:
        numbers = attribute.numbers_of(versions)
        owners = np.flatnonzero(~np.isnan(numbers))
        return Values(numbers[owners], owners, len(items))
    lengths, words = attribute.words_of(versions)
    return Values(words, np.repeat(np.arange(len(items)), lengths), len(items))


def words_for(entities: Entities, name: str, values: Sequence[Any]) -> NDArray[Any]:
    """Constants of a declaration, as the words that the attribute's values are."""
    if entities.attributes[name].numeric:
        return np.array([float(value) for value in values])
    return hash_strings([str(value) for value in values])


class Condition:
    """Whether an attribute of an item compares with a value, or is a moment not long ago. A missing one never does."""

    def __init__(self, entities: Entities, where: Where) -> None:
        self.entities, (self.attribute, self.comparison, value) = entities, where
        self.wanted: NDArray[Any]
        if self.comparison == WITHIN:
            self.wanted = np.array([duration_ms(value)])
        else:
            self.wanted = words_for(entities, self.attribute, list(value) if self.comparison == "in" else [value])

    def holds(self, items: Items, now: int) -> Mask:
        """True for each item of whose values one compares, as of `now` (ms UTC); for != all of them do."""
        found = values_of(self.entities, self.attribute, items)
        if self.comparison == WITHIN:
            return found.any(found.words > now - self.wanted[0])
        if self.comparison == "in":
            return found.any(np.isin(found.words, self.wanted))
        if self.comparison == "!=":
            known = np.ones(len(found.words), np.bool_)
            return found.any(known) & ~found.any(found.words == self.wanted[0])
        return found.any(COMPARISONS[self.comparison](found.words, self.wanted[0]))
