"""Rows of a model and items of a catalogue that grow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shortlist.events.log import MemoryLog
from shortlist.events.schema import Entity
from shortlist.features.hashing import Hashes, hash_strings
from shortlist.features.program import FeatureSet
from shortlist.features.table import FeatureTable
from shortlist.retrieval.alignment import Alignment
from shortlist.retrieval.catalogue import Catalogue
from shortlist.retrieval.vectors.index import Rows

film = Entity("film", title=str)


@dataclass
class Known:
    """A model that knows some items."""

    items: Hashes

    def rows_of(self, hashes: Hashes) -> Rows:
        return np.array([next(iter(np.flatnonzero(self.items == one)), -1) for one in hashes], np.int32)


def test_rows_and_items_that_do_not_know_each_other_yet_are_nobodys() -> None:
    log = MemoryLog([film.schema])
    table = FeatureTable(FeatureSet([], [film]))
    log.subscribe(table.update)
    log.append([{"kind": "film", "at": 1, "film": name, "title": name} for name in ("a", "b", "new")])
    catalogue = Catalogue(table, "film")
    alignment = Alignment(Known(hash_strings(["b", "gone", "a"])), catalogue)
    ids = table.entities["film"].ids
    a, b = ids.index("a"), ids.index("b")
    rows = np.arange(4, dtype=np.int32)  # row 3 is there, and it is not noted yet whose it is
    assert alignment.items_of(rows).tolist() == [b, -1, a, -1]
    items = np.array([a, b, ids.index("new"), -1], np.int32)
    assert alignment.rows_of(items).tolist() == [2, 0, -1, -1]
    alignment.add(items[2:3], np.array([3], np.int32))
    assert alignment.items_of(np.array([3], np.int32)).tolist() == items[2:3].tolist()
    assert alignment.rows_of(items).tolist() == [2, 0, 3, -1]
    nothing = Alignment(Known(hash_strings([])), Catalogue(FeatureTable(FeatureSet([], [film])), "film"))
    assert nothing.items_of(np.array([0], np.int32)).tolist() == [-1]
    assert nothing.rows_of(np.array([-1], np.int32)).tolist() == [-1]
