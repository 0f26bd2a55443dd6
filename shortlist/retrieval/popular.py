"""The most popular items: a source, and the last resort when everything else has nothing to say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Query
from shortlist.pipeline.stages import Filter
from shortlist.retrieval.catalogue import Catalogue
from shortlist.retrieval.eligibility import allowed, first_eligible
from shortlist.retrieval.popularity import Popularity

FIRST_PORTION = 256
"""Items of the first portion of the last resort; each further one is twice as large."""


class PopularSource:
    """The eligible items with the greatest popularity as of the query's `now`."""

    def __init__(self, name: str, popularity: Popularity, quota: int, filters: Sequence[Filter] = ()) -> None:
        self.name, self.popularity, self.quota, self.filters = name, popularity, quota, tuple(filters)

    def propose(self, query: Query) -> Candidates:
        """At most `quota` eligible items, most popular first; fewer only where fewer are eligible."""
        counts, mask = self.popularity.counts(query.now), allowed(query)
        if mask is not None:
            count = int(np.count_nonzero(mask[: len(counts)]))
            return first_eligible(self.filters, query, self.quota, count, lambda n: counts.top_of(n, mask, count))
        return first_eligible(self.filters, query, self.quota, len(counts), counts.top)


class LastResort:
    """Everything there is, the most popular first, then what is so new that nobody has counted it yet.

    It is asked when something went wrong or time is up, so the first portions must cost next to nothing.
    """

    name = "last_resort"

    def __init__(self, popularity: Popularity, catalogue: Catalogue) -> None:
        self.popularity, self.catalogue = popularity, catalogue

    def portions(self, query: Query) -> Iterator[Candidates]:
        """The whole catalogue, or what the query's `where` means of it; each item once, nothing filtered."""
        counts, mask, total = self.popularity.counts(query.now), allowed(query), len(self.catalogue)
        start, size = 0, max(FIRST_PORTION, query.k)
        if mask is None:
            while start < len(counts):
                yield Candidates(counts.top(start + size)[start : start + size])
                start, size = start + size, size * 2
            items = np.arange(len(counts), total, dtype=np.int32)
        else:
            items = np.flatnonzero(mask).astype(np.int32)
            known = items[items < len(counts)]
            items[: len(known)] = known[np.argsort(-counts.values[known], kind="stable")]
            start = 0
        for start in range(0, len(items), size):
            yield Candidates(items[start : start + size])
