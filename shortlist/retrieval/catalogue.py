"""The items that a live table knows, by index."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from shortlist.features.entities import EVERYTHING_KNOWN
from shortlist.features.hashing import Hashes, Ids, hash_strings
from shortlist.features.table import FeatureTable
from shortlist.retrieval.postings import Postings

Items = NDArray[np.int32]


@njit(
    [f"void({kind}[::1], Array(int32, 1, 'A', readonly=True), {kind}, {kind}[::1])" for kind in ("uint64", "int32")],
    nogil=True,
    cache=True,
    error_model="numpy",
)
def look_up(values, places, missing, out):  # type: ignore[no-untyped-def]
    """`out[i]` = the value at `places[i]`; `missing` where no value lies, as at -1."""
    for i in range(len(out)):
        place = np.int64(places[i])
        out[i] = values[place] if 0 <= place < len(values) else missing


class Catalogue:
    """Items by index, as stages look them up: hashes and availability cost by the candidate, not by the catalogue."""

    def __init__(self, table: FeatureTable, item: str) -> None:
        self.table, self.item = table, item
        self.entities = table.entities[item]
        self._hashes: Hashes = self.entities.hashes
        self._postings = {name: Postings(self.entities, name) for name in self.entities.attributes}

    def __len__(self) -> int:
        return len(self.entities)

    def index_of(self, ids: Ids) -> Items:
        """The index of each id (or hash of an id), -1 where it is unknown."""
        return self.entities.index_of(ids)

    def hashes_of(self, items: Items) -> Hashes:
        """The hash of each index, 0 (no item) for -1."""
        hashes = np.empty(len(items), np.uint64)
        look_up(self.hashes(), items, 0, hashes)
        return hashes

    def hashes(self) -> Hashes:
        """The hash of every index."""
        known = self._hashes
        if len(known) < len(self.entities):
            fresh = hash_strings(list(self.entities.ids[len(known) :]))
            self._hashes = known = np.concatenate([known, fresh])
        return known

    def postings(self, attribute: str) -> Postings:
        """The items of each value of an attribute."""
        return self._postings[attribute]

    def available(self, items: Items) -> NDArray[np.bool_]:
        """False for each item that an event took out of the catalogue; -1, an item that nobody knows, is available."""
        attribute = self.entities.attributes["available"]
        if not attribute.numbers.size:  # no event ever said anything about it
            return np.ones(len(items), np.bool_)
        versions = attribute.versions((items + 1).astype(np.int32), np.full(len(items), EVERYTHING_KNOWN))
        kept: NDArray[np.bool_] = attribute.numbers_of(versions) != 0.0
        return kept
