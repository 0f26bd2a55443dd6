"""Which row of a release's model is which item of the live catalogue?"""

from __future__ import annotations

from threading import Lock
from typing import Protocol

import numpy as np

from shortlist.features.entities import Growing
from shortlist.features.hashing import Hashes
from shortlist.retrieval.catalogue import Catalogue, Items, look_up
from shortlist.retrieval.vectors.index import Rows


class Model(Protocol):
    """A model that knows some items, by row."""

    @property
    def items(self) -> Hashes:
        """The hash of each row."""

    def rows_of(self, hashes: Hashes) -> Rows:
        """The row of each item, -1 where it is unknown."""


class Alignment:
    """Which row of a model is which item of the catalogue, as the catalogue grows, and rows are added."""

    def __init__(self, model: Model, catalogue: Catalogue) -> None:
        self.model, self.catalogue = model, catalogue
        self._items, self._rows = Growing(np.int32, -1), Growing(np.int32, -1)
        self._items.resize(len(model.items))
        self._lock = Lock()

    def items_of(self, rows: Rows) -> Items:
        """The catalogue index of each row, -1 for items that the catalogue does not know."""
        self._follow()
        items = np.empty(len(rows), np.int32)
        look_up(self._items.values, rows, -1, items)  # rows are added before it is noted here whose they are
        return items

    def rows_of(self, items: Items) -> Rows:
        """The row of each catalogue index, -1 for items that the release does not know, and for -1."""
        self._follow()
        rows = np.empty(len(items), np.int32)
        look_up(self._rows.values, items, -1, rows)
        return rows

    def add(self, items: Items, rows: Rows) -> None:
        """Take note of the rows of items that the model did not know."""
        self._follow()
        with self._lock:
            self._items.resize(max(self._items.size, int(rows.max(initial=-1)) + 1))
            self._items.values[rows] = items
            self._rows.values[items] = rows

    def _follow(self) -> None:
        if self._rows.size == len(self.catalogue):
            return
        with self._lock:
            start = self._rows.size
            rows = self.model.rows_of(self.catalogue.hashes()[start:])
            known = np.flatnonzero(rows >= 0)
            self._items.values[rows[known]] = start + known
            self._rows.extend(rows)
