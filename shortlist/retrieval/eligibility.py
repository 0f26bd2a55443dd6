"""Who may be shown at all? Filters that hold always, also for users who have seen thousands of items."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.features.hashing import hash_of
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Query
from shortlist.pipeline.stages import Filter
from shortlist.retrieval.catalogue import Catalogue, Items
from shortlist.retrieval.postings import Postings

Mask = NDArray[np.bool_]
ALLOWED = "where"
"""In `query.known`: the items that the query's `where` means."""
LOOKS = (1.25, 4.0)
"""Times its quota that a source looks at, one after the other; then at everything."""


class Available:
    """Drops items that an event took out of the catalogue."""

    name = "available"

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def keep(self, query: Query, candidates: Candidates) -> Mask:  # noqa: ARG002
        """True for what is available; an item that the catalogue does not know is."""
        return self.catalogue.available(candidates.items)


class Excluded:
    """Drops the items that the query excludes by id."""

    name = "excluded"

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def keep(self, query: Query, candidates: Candidates) -> Mask:
        """True for what the query does not exclude; the caller's own items are compared by id."""
        if not query.exclude:
            return np.ones(len(candidates), np.bool_)
        if candidates.own is not None and query.items is not None:
            return np.array([query.items[place] not in query.exclude for place in candidates.own.tolist()], np.bool_)
        return ~np.isin(candidates.items, self.catalogue.index_of(sorted(query.exclude)))


class Where:
    """Keeps the items whose attributes have one of the values that the query asks for: a category, a region, in stock.

    Sources look among these items only, however few they are, so that what is found is the best of them. A value that
    is missing is none that was asked for.
    """

    name = "where"

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def learn(self, query: Query) -> Mapping[str, Any]:
        """The items that are meant, as `where`: a mask over the catalogue. Nothing where the query asks for all."""
        return {ALLOWED: self.allowed(query)} if query.where else {}

    def allowed(self, query: Query) -> Mask:
        """True for each item of the catalogue that is meant."""
        position, size = self.catalogue.table.position, len(self.catalogue)
        return self._all_of(query, size, lambda postings, values: postings.mask(values, size, position))

    def keep(self, query: Query, candidates: Candidates) -> Mask:
        """True for what is meant, as of now."""
        return self._all_of(query, len(candidates), lambda postings, values: postings.holds(candidates.items, values))

    def _all_of(self, query: Query, size: int, meant: Callable[[Postings, NDArray[Any]], Mask]) -> Mask:
        """True where every attribute that the query names has one of the values that it names."""
        mask = np.ones(size, np.bool_)
        for name, values in query.where.items():
            postings = self.catalogue.postings(name)
            mask &= meant(postings, postings.values_for(values))
        return mask


class NotSeen:
    """Drops what the user has acted on before.

    `features` are those of `specs.seen_features` by name, each with how long an item counts as seen (ms): counts by
    user and item where that is for good (None), else seconds since the latest event. They are state of the feature
    table, so they are exact for any number of items, known as of the same log position as every other feature, and
    recovered with them.
    """

    name = "not_seen"

    def __init__(self, catalogue: Catalogue, user: str, features: Mapping[str, int | None]) -> None:
        self.catalogue, self.user, self.features = catalogue, user, tuple(features)
        limits = [math.inf if limit is None else limit / 1000 for limit in features.values()]
        self._above = np.array([[0.0 if limit == math.inf else -1.0] for limit in limits])  # 0 s ago is seen, too
        self._below = np.array([[limit] for limit in limits])

    def keep(self, query: Query, candidates: Candidates) -> Mask:
        """True for what the user never acted on, or not lately enough; everything, for an unknown user."""
        if query.user is None or not self.features or not len(candidates):
            return np.ones(len(candidates), np.bool_)
        ids = {
            self.user: hash_of(query.user),
            self.catalogue.item: self.catalogue.hashes_of(candidates.items),
        }
        read = self.catalogue.table.read(ids, query.now, columns=self.features)
        seen = (read.values > self._above) & (read.values < self._below)  # never is NaN seconds ago: neither
        return np.asarray(~seen.any(axis=0), np.bool_)


def allowed(query: Query) -> Mask | None:
    """True for each item of the catalogue that the query's `where` means; None where it means all, or nobody knows."""
    mask: Mask | None = query.known.get(ALLOWED)
    return mask


def within(mask: Mask, items: Items) -> Mask:
    """Which of some items, by index, a mask over the catalogue is true for; what is younger than the mask is none."""
    known: Mask = (items >= 0) & (items < len(mask))
    known[known] = mask[items[known]]
    return known


def first_eligible(
    filters: Sequence[Filter], query: Query, quota: int, total: int, top: Callable[[int], Items]
) -> Candidates:
    """The first `quota` eligible items of an order of `total`, of which `top(n)` is about the first n.

    Little is looked at first, because an order is sorted only as far as it is looked at, and a filter reads features.
    """
    found = Candidates(np.empty(0, np.int32))
    for look in (*(int(look * quota) for look in LOOKS), total):
        found = eligible(filters, query, Candidates(top(min(look, total))))
        if len(found) >= quota or look >= total:
            break
    return found.take(np.arange(quota)) if len(found) > quota else found


def eligible(filters: Sequence[Filter], query: Query, candidates: Candidates) -> Candidates:
    """What every filter lets through, in the same order."""
    for stage in filters:
        if len(candidates):
            mask = stage.keep(query, candidates)
            candidates = candidates if mask.all() else candidates.take(mask)
    return candidates.having_passed(filters)
