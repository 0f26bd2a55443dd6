"""One list out of several sources' proposals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shortlist.pipeline.candidates import NOTHING, Candidates, Column
from shortlist.pipeline.query import Query


class Interleaved:
    """The merger: every source gets places in proportion to its quota, best first; an item keeps its best place.

    The item at rank r of a source with quota q stands at r / q of the way through the merged list, so that a list
    that is cut anywhere holds the sources' shares. Where one source has little to say the others fill its places.
    Each source's rank (1 is its best) becomes the column `<source>_rank`, NaN for what it did not propose.
    """

    name = "interleaved"

    def __init__(self, quotas: Mapping[str, int], limit: int = 500) -> None:
        self.quotas, self.limit = dict(quotas), limit

    def merge(self, query: Query, proposals: Mapping[str, Candidates]) -> Candidates:  # noqa: ARG002
        """At most `limit` items, each once; columns of the sources themselves are not kept."""
        given = {source: found.items for source, found in proposals.items()}
        everything = np.concatenate([NOTHING.items, *given.values()])
        if not len(everything):
            return NOTHING.describe({f"{source}_rank": np.empty(0) for source in given})
        places = [np.arange(1, len(items) + 1) / self.quotas.get(source, 1) for source, items in given.items()]
        order = np.argsort(np.concatenate(places), kind="stable")
        distinct, first = np.unique(everything[order], return_index=True)
        chosen = np.sort(first)[: self.limit]
        items = everything[order[chosen]]
        row = np.full(len(distinct), -1)
        row[np.searchsorted(distinct, items)] = np.arange(len(items))
        columns: dict[str, Column] = {}
        for source, proposed in given.items():
            ranks = np.full(len(items), np.nan)
            rows = row[np.searchsorted(distinct, proposed)]
            kept = rows >= 0
            # from the last to the first, so that a source that repeats itself keeps the better rank
            ranks[rows[kept][::-1]] = np.flatnonzero(kept)[::-1] + 1.0
            columns[f"{source}_rank"] = ranks
        return Candidates(items, columns)
