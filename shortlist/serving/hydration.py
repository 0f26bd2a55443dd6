"""The stage that reads the features of candidates from the live table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shortlist.features.hashing import NOBODY, Hashes, hash_of, hash_strings
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Query
from shortlist.retrieval.catalogue import Catalogue
from shortlist.serving.impressions import POSITION, SAMPLED


class LiveFeatures:
    """The hydrator that reads features of the user, of each candidate and of the pair, as of the query's `now`.

    It reads the columns that the ranker needs; all there are where the query is to be explained or its vectors are
    sampled. The column `log_position` says up to where the log was known.
    """

    name = "features"

    def __init__(self, catalogue: Catalogue, user: str, needed: Sequence[str]) -> None:
        self.catalogue, self.user = catalogue, user
        self.all = catalogue.table.features.columns
        self.needed = tuple(name for name in self.all if name in set(needed))

    def describe(self, query: Query, candidates: Candidates) -> Candidates:
        """The candidates with the feature block. An item that is unknown has missing features."""
        columns = self.all if query.explain or SAMPLED in query.known else self.needed
        user = NOBODY if query.user is None else hash_of(query.user)
        ids = {self.user: user, self.catalogue.item: self._hashes(query, candidates)}
        read = self.catalogue.table.read(ids, query.now, query.context, columns)
        position = np.full(len(candidates), float(read.position))
        return candidates.with_matrix(columns, read.values).describe({POSITION: position})

    def _hashes(self, query: Query, candidates: Candidates) -> Hashes:
        if candidates.own is None or query.items is None:
            return self.catalogue.hashes_of(candidates.items)
        if len(candidates) == len(query.items):
            return hash_strings(query.items)
        return hash_strings([query.items[place] for place in candidates.own.tolist()])
