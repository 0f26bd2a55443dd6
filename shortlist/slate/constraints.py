"""Constraints: what may stand on a place, given what stands on the others."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.features.entities import Entities
from shortlist.pipeline.candidates import Column
from shortlist.slate.draft import Draft
from shortlist.slate.values import Mask, values_of

TOLERANCE = 1e-9
"""Exposure that is owed to nothing but the rounding of sums."""


def exposures(places: int) -> Column:
    """The exposure of each place from the top, 1 / log2(1 + place): what NDCG takes for the attention that it gets."""
    return np.asarray(1.0 / np.log2(np.arange(2.0, places + 2.0)), np.float64)


class Capped:
    """At most `at_most` items of each value of an attribute."""

    def __init__(self, draft: Draft, entities: Entities, attribute: str, at_most: int) -> None:
        self.values = values_of(entities, attribute, draft.candidates.items)
        self.at_most = at_most
        self.counts = Counter[Any]()
        self.below: Mask = np.ones(len(draft.free), np.bool_)

    def allows(self, place: int) -> Mask:  # noqa: ARG002
        """True for candidates none of whose values is on the slate often enough."""
        return self.below

    def placed(self, candidate: int, place: int) -> None:  # noqa: ARG002
        """Count its values."""
        for value in self.values.of(candidate):
            self.counts[value] += 1
            if self.counts[value] == self.at_most:
                self.below[self.values.owners[self.values.words == value]] = False

    def room(self, candidate: int) -> dict[Any, int]:
        """How many more items each of a candidate's values may have."""
        return {value: self.at_most - self.counts[value] for value in self.values.of(candidate)}


class Fair:
    """Each group's exposure is at least its share of the slate's, and not far from that at any place from the top down.

    Where a group would be owed as much as a place gives, or more, nobody else may stand there; of several such groups
    the one that is owed most does. Any other place is free as long as the shares of the whole slate can still be
    reached by giving each open place to the group that lacks most; where they cannot, a group that lacks stands there.
    A draw may bring anything, so its places are taken to give a group nothing.

    `words` are the values of the groups as `values_of` has them, in the order of their `shares`.
    """

    def __init__(
        self, draft: Draft, entities: Entities, attribute: str, words: NDArray[Any], shares: Mapping[Any, float]
    ) -> None:
        values = values_of(entities, attribute, draft.candidates.items)
        self.members = np.array([values.any(values.words == word) for word in words])
        self.anybody: Mask = np.ones(self.members.shape[1], np.bool_)
        self.left: list[int] = self.members.sum(axis=1).tolist()
        self.shares = shares
        self.exposure = [0.0] * len(self.shares)
        gives = exposures(len(draft.slate))
        self.gives: list[float] = gives.tolist()
        self.total: list[float] = np.cumsum(gives).tolist()
        self.open = draft.open()
        self.open_gives = [self.gives[place] for place in self.open]
        self.open_total: list[float] = [0.0, *np.cumsum(self.open_gives).tolist()]

    def allows(self, place: int) -> Mask:
        """True for everything, or for the members of the groups one of which has to stand here."""
        given = self.gives[place]
        owed = [lack if left else -math.inf for lack, left in zip(self._owed(place), self.left, strict=True)]
        if max(owed) >= given - TOLERANCE:
            return np.asarray(self.members[owed.index(max(owed))])
        first = bisect_left(self.open, place)
        # of what it lacks of the whole slate as much as the members that are left can get
        lacks = [min(lack, self._most(group, first)) for group, lack in enumerate(self._owed(-1))]
        if self._reachable(lacks, first + 1):
            return self.anybody
        enough = [
            group
            for group, lack in enumerate(lacks)
            if self.left[group] and self._reachable([*lacks[:group], lack - given, *lacks[group + 1 :]], first + 1)
        ]
        return np.asarray(self.members[enough or [lacks.index(max(lacks))]].any(axis=0))

    def placed(self, candidate: int, place: int) -> None:
        """Give its groups the exposure of the place."""
        for group, member in enumerate(self.members[:, candidate]):
            if member:
                self.exposure[group] += self.gives[place]
                self.left[group] -= 1

    def short(self) -> dict[str, float]:
        """By how much of the slate's exposure each group misses its share; those that do not are left out."""
        missing = zip(self.shares, self._owed(-1), strict=True) if self.total else ()
        return {str(name): lack / self.total[-1] for name, lack in missing if lack > TOLERANCE}

    def _owed(self, place: int) -> list[float]:
        """What each group lacks of its share of the places down to this one."""
        pairs = zip(self.shares.values(), self.exposure, strict=True)
        return [share * self.total[place] - exposure for share, exposure in pairs]

    def _most(self, group: int, first: int) -> float:
        """What a group gets where each open place from the `first` on goes to its members, while there are any."""
        start, stop = (min(number, len(self.open)) for number in (first, first + self.left[group]))
        return self.open_total[stop] - self.open_total[start]

    def _reachable(self, lacks: Sequence[float], first: int) -> bool:
        """Whether each group gets what it lacks where each open place from the `first` on goes to who lacks most."""
        lacking = [group for group, lack in enumerate(lacks) if lack > TOLERANCE]
        if len(lacking) < 2:
            return all(lacks[group] <= self._most(group, first) + TOLERANCE for group in lacking)
        lack, left = list(lacks), list(self.left)
        for given in self.open_gives[first:]:
            worst = max(lacking, key=lambda group: lack[group] if left[group] else -math.inf)
            if max(lack) <= TOLERANCE or not left[worst]:
                break
            lack[worst] -= given
            left[worst] -= 1
        return max(lack) <= TOLERANCE
