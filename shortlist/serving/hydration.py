"""The catalogue as the pipelines see it, and the stage that reads the features of candidates from the live table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shortlist.features.entities import Entities
from shortlist.features.hashing import Hashes, hash_strings
from shortlist.features.table import FeatureTable
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Query
from shortlist.serving.impressions import POSITION

NOBODY: Hashes = np.zeros(1, np.uint64)
"""The hash of no user: everything about it is missing."""


class LiveCatalogue:
    """The items that the table knows, with the hash of each index kept at hand."""

    def __init__(self, entities: Entities) -> None:
        self.entities = entities
        self._hashes: Hashes = entities.hashes

    @property
    def ids(self) -> Sequence[str]:
        """The id of each index."""
        return self.entities.ids

    def index_of(self, ids: Sequence[str]) -> NDArray[np.int32]:
        """The index of each id; -1 where it is unknown."""
        return self.entities.index_of(ids)

    def hashes_of(self, items: NDArray[np.int32]) -> Hashes:
        """The hash of each index."""
        known = self._hashes
        if len(items) and int(items.max()) >= len(known):
            fresh = hash_strings(list(self.ids[len(known) :]))
            self._hashes = known = np.concatenate([known, fresh])
        return known[items]


class LiveFeatures:
    """The hydrator that reads every feature of the user, of each candidate and of the pair, as of the query's `now`.

    The column `log_position` says up to where the log was known.
    """

    name = "features"

    def __init__(self, table: FeatureTable, catalogue: LiveCatalogue, user: str, item: str) -> None:
        self.table, self.catalogue, self.user, self.item = table, catalogue, user, item
        self.columns = table.features.columns

    def describe(self, query: Query, candidates: Candidates) -> Candidates:
        """The candidates with the feature block. An item that is unknown has missing features."""
        user = NOBODY if query.user is None else hash_strings([query.user])
        read = self.table.read(
            {self.user: user, self.item: self._hashes(query, candidates)}, query.now, query.context, self.columns
        )
        position = np.full(len(candidates), float(read.position))
        return candidates.with_matrix(self.columns, read.values).describe({POSITION: position})

    def _hashes(self, query: Query, candidates: Candidates) -> Hashes:
        if candidates.own is None or query.items is None:
            return self.catalogue.hashes_of(candidates.items)
        if len(candidates) == len(query.items):
            return hash_strings(query.items)
        return hash_strings([query.items[place] for place in candidates.own.tolist()])
