"""Constraints: what may stand on a place, given what stands on the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shortlist.features.entities import Entities
from shortlist.pipeline.candidates import Column
from shortlist.slate.draft import Draft
from shortlist.slate.values import Mask, values_of, words_for

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
    """

    def __init__(self, draft: Draft, entities: Entities, attribute: str, at_least: Mapping[Any, float]) -> None:
        values = values_of(entities, attribute, draft.candidates.items)
        words = words_for(entities, attribute, list(at_least))
        self.members = np.array([values.any(values.words == word) for word in words])
        self.shares = np.array(list(at_least.values()), np.float64)
        self.names = list(at_least)
        self.gives = exposures(len(draft.slate))
        self.total = np.cumsum(self.gives)
        self.open: Mask = np.zeros(len(self.gives), np.bool_)
        self.open[draft.open()] = True
        self.exposure = np.zeros(len(self.shares))
        self.left = self.members.sum(axis=1)

    def allows(self, place: int) -> Mask:
        """True for everything, or for the members of the groups one of which has to stand here."""
        given = self.gives[place]
        owed = np.where(self.left > 0, self.shares * self.total[place] - self.exposure, -np.inf)
        if owed.max() >= given - TOLERANCE:
            return np.asarray(self.members[owed.argmax()])
        lacks = self._lacks(place)
        if self._reachable(lacks, place + 1):
            return np.ones(self.members.shape[1], np.bool_)
        enough = [
            group
            for group in range(len(lacks))
            if self.left[group]
            and self._reachable([*lacks[:group], lacks[group] - given, *lacks[group + 1 :]], place + 1)
        ]
        return np.asarray(self.members[enough or [int(np.argmax(lacks))]].any(axis=0))

    def placed(self, candidate: int, place: int) -> None:
        """Give its groups the exposure of the place."""
        self.exposure += self.gives[place] * self.members[:, candidate]
        self.left -= self.members[:, candidate]

    def short(self) -> dict[str, float]:
        """By how much of the slate's exposure each group misses its share; those that do not are left out."""
        missing = self.shares - self.exposure / self.total[-1]
        return {str(name): float(lack) for name, lack in zip(self.names, missing, strict=True) if lack > TOLERANCE}

    def _lacks(self, place: int) -> list[float]:
        """What each group lacks of its share, or as much of it as its members can get from `place` on."""
        gives = self.gives[place:][self.open[place:]].tolist()
        owed = (self.shares * self.total[-1] - self.exposure).tolist()
        return [min(lack, sum(gives[:left])) for lack, left in zip(owed, self.left.tolist(), strict=True)]

    def _reachable(self, lacks: Sequence[float], place: int) -> bool:
        """Whether each group gets what it lacks where each open place from `place` on goes to who lacks most."""
        lack, left = list(lacks), self.left.tolist()
        for given in self.gives[place:][self.open[place:]].tolist():
            worst = max(range(len(lack)), key=lambda group: lack[group] if left[group] else -math.inf)
            if max(lack) <= TOLERANCE or not left[worst]:
                break
            lack[worst] -= given
            left[worst] -= 1
        return max(lack) <= TOLERANCE
