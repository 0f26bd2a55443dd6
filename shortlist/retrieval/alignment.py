"""Which row of a release's model is which item of the live catalogue?"""

from __future__ import annotations

from threading import Lock
from typing import Protocol

import numpy as np

from shortlist.features.hashing import Hashes
from shortlist.retrieval.catalogue import Catalogue, Items
from shortlist.retrieval.index import Rows


class Model(Protocol):
    """A model that knows some items, by row."""

    @property
    def items(self) -> Hashes:
        """The hash of each row."""

    def rows_of(self, hashes: Hashes) -> Rows:
        """The row of each item, -1 where it is unknown."""


class Alignment:
    """Which row of a model is which item of the catalogue, as the catalogue grows."""

    def __init__(self, model: Model, catalogue: Catalogue) -> None:
        self.model, self.catalogue = model, catalogue
        self._items: Items = np.full(len(model.items), -1, np.int32)
        self._rows: Rows = np.empty(0, np.int32)
        self._lock = Lock()

    def items_of(self, rows: Rows) -> Items:
        """The catalogue index of each row, -1 for items that the catalogue does not know."""
        self._follow()
        return self._items[rows]

    def rows_of(self, items: Items) -> Rows:
        """The row of each catalogue index, -1 for items that the release does not know, and for -1."""
        self._follow()
        return np.where(items >= 0, self._rows[items], np.int32(-1)) if len(self._rows) else np.full_like(items, -1)

    def _follow(self) -> None:
        if len(self._rows) == len(self.catalogue):
            return
        with self._lock:
            start = len(self._rows)
            rows = self.model.rows_of(self.catalogue.hashes()[start:])
            known = np.flatnonzero(rows >= 0)
            self._items[rows[known]] = start + known
            self._rows = np.concatenate([self._rows, rows])
