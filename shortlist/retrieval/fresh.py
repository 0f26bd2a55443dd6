"""The newest items: a source that needs no model, so that what has just arrived can be shown at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Query
from shortlist.pipeline.stages import Filter
from shortlist.retrieval.catalogue import Catalogue
from shortlist.retrieval.eligibility import allowed, eligible

AT_ONCE = 256
"""Items that are looked at beyond those still missing, so that few looks are needed when many are not eligible."""


class FreshSource:
    """The eligible items that entered the catalogue last, newest first.

    The catalogue is in order of first appearance in the log, so an item is proposed by the first request after its
    event, and nothing has to be kept or renewed.
    """

    def __init__(self, name: str, catalogue: Catalogue, quota: int, filters: Sequence[Filter] = ()) -> None:
        self.name, self.catalogue, self.quota, self.filters = name, catalogue, quota, tuple(filters)

    def propose(self, query: Query) -> Candidates:
        """At most `quota` eligible items, newest first; fewer only where fewer are eligible."""
        mask = allowed(query)
        few = None if mask is None else np.flatnonzero(mask)
        found, stop = Candidates(np.empty(0, np.int32)), len(self.catalogue) if few is None else len(few)
        while len(found) < self.quota and stop > 0:
            start = max(0, stop - (self.quota - len(found)) - AT_ONCE)
            places = np.arange(stop - 1, start - 1, -1)
            newest = Candidates((places if few is None else few[places]).astype(np.int32))
            found, stop = found.followed_by(eligible(self.filters, query, newest)), start
        return found.take(np.arange(min(self.quota, len(found))))
