"""The source that proposes the items whose vectors are nearest to the user's, and the column that says how near."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shortlist.features.hashing import Hashes
from shortlist.giving_way import Behind
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Query
from shortlist.pipeline.stages import Filter
from shortlist.retrieval.asker import Asker
from shortlist.retrieval.catalogue import Catalogue, Items
from shortlist.retrieval.eligibility import Mask, allowed, eligible, within
from shortlist.retrieval.models.towers import AttributeColumn, Scaling, attributes_of, context_columns
from shortlist.retrieval.vectors.index import Among, Rows, Vectors
from shortlist.retrieval.vectors.live_items import Describer, IndexedModel, LiveItems

ENOUGH = 0.9
"""The share of the quota that is not worth another, wider search."""


NOTHING_READ = np.empty((1, 0), np.int64)
"""The history that a model sees which looks at none."""


class VectorModel(IndexedModel, Protocol):
    """A model that makes a vector of a user, to be searched for in an index of items."""

    @property
    def history(self) -> str:
        """The feature that lists the user's items; "" where it looks at none."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The user attributes and context values that it looks at."""

    @property
    def scalings(self) -> Mapping[str, Scaling]:
        """Which of them are numbers."""

    def user_vectors(self, users: Hashes, history: NDArray[Any], columns: Mapping[str, AttributeColumn]) -> Vectors:
        """Shape (n, dimensions); a zero vector is near nothing."""


class TowerSource:
    """A query hydrator, a source and a hydrator: learns the user's vector, proposes, and describes with `<name>_score`.

    The score is the product of the two vectors, NaN for items that have none. What the query's `where` leaves
    out is not looked at; of the rest more than `quota` are fetched until about so many (`ENOUGH` of it) pass the
    filters, or nothing is left. Items that come or change, after log position `since` if it is given, are followed
    (`live_items`), `behind` the requests or not.
    """

    def __init__(
        self,
        name: str,
        towers: VectorModel,
        catalogue: Catalogue,
        asker: Asker,
        quota: int,
        filters: Sequence[Filter] = (),
        item_tower: Describer | None = None,
        behind: Behind | None = None,
        since: int | None = None,
    ) -> None:
        self.name, self.towers, self.catalogue, self.asker, self.quota = name, towers, catalogue, asker, quota
        self.filters, self.columns = tuple(filters), (f"{name}_score",)
        self.items = LiveItems(towers, catalogue, item_tower, behind, since)
        asker.needs([towers.history] if towers.history else ())
        known = asker.entities.attributes
        self._attributes = tuple(column for column in towers.columns if column in known)
        self._context = tuple(column for column in towers.columns if column not in known)

    def learn(self, query: Query) -> Mapping[str, Any]:
        """The user's vector, shape (dimensions,), as `<name>_vector`."""
        self.items.follow()
        return {f"{self.name}_vector": self.vector(query)}

    def vector(self, query: Query) -> Vectors:
        """The vector of the query's user as of its `now`; what was learned about the query is not computed again."""
        known: Vectors | None = query.known.get(f"{self.name}_vector")
        if known is not None:
            return known
        users, history = self.asker.hash(query), self.towers.history
        read = self.asker.columns(query)[history] if history else NOTHING_READ
        columns = attributes_of(self.asker.entities, self._attributes, users)
        columns |= context_columns(self.towers.scalings, self._context, query.context)
        vector: Vectors = self.towers.user_vectors(users, read, columns)[0]
        return vector

    def propose(self, query: Query) -> Candidates:
        """At most `quota` eligible items, nearest first."""
        self.items.follow()
        vector, wanted, enough, mask = self.vector(query), self.quota, ENOUGH * self.quota, allowed(query)
        among = None if mask is None else self._among(mask)
        total = len(self.items.index) if among is None else among.count
        while vector.any():
            rows, _ = self.items.index.search(vector, wanted, among)
            items = self.items.alignment.items_of(rows)
            found = eligible(self.filters, query, Candidates(items[items >= 0]))
            if len(found) >= enough or wanted >= total:
                return found.take(np.arange(min(self.quota, len(found))))
            wanted *= 4
        return Candidates(np.empty(0, np.int32))

    def _among(self, mask: Mask) -> Among:
        """The rows of the items that a mask over the catalogue is true for; an item that has no row counts too."""
        alignment = self.items.alignment

        def rows() -> Rows:
            found = alignment.rows_of(np.flatnonzero(mask).astype(np.int32))
            return found[found >= 0]

        return Among(int(np.count_nonzero(mask)), rows, lambda rows: within(mask, alignment.items_of(rows)))

    def item_vectors(self, items: Items) -> Vectors:
        """The vector of each item by catalogue index, shape (items, dimensions); zeros for what has none."""
        rows = self.items.alignment.rows_of(items)
        vectors: Vectors = np.zeros((len(items), self.items.index.dimensions), np.float32)
        vectors[rows >= 0] = self.items.index.vectors_of(rows[rows >= 0])
        return vectors

    def describe(self, query: Query, candidates: Candidates) -> Candidates:
        """The same candidates with the column `<name>_score`; NaN where the user's vector is zero, too."""
        rows, vector = self.items.alignment.rows_of(candidates.items), self.vector(query)
        scores = np.full(len(rows), np.nan)
        if vector.any():
            scores[rows >= 0] = self.items.index.products(vector, rows[rows >= 0])
        return candidates.describe({f"{self.name}_score": scores})
