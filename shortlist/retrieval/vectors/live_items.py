"""A model's items as the catalogue has them now: new ones get a vector, changed ones another, those taken out are gone.

What an event says shows in the next search where it is little; where it is much, as when a catalogue is imported, a
thread works it off beside the searches, some thousand items a second.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from copy import copy
from functools import partial
from threading import Lock
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shortlist.features.entities import Entities
from shortlist.features.hashing import Hashes
from shortlist.giving_way import Behind, give_way
from shortlist.retrieval.alignment import Alignment, Model
from shortlist.retrieval.catalogue import Catalogue, Items
from shortlist.retrieval.changes import Mark
from shortlist.retrieval.vectors.index import Index, Rows, Vectors
from shortlist.retrieval.vectors.live_index import LiveIndex

logger = logging.getLogger(__name__)

AT_ONCE, BLOCK = 16, 256
"""Items that a request works off itself, and that are worked off at a time beside the requests."""
LEISURE = 50
"""Times as long as looking for changes took that nobody looks again: it is to take a fiftieth of the time at most."""
MOST = 50_000
"""Vectors beside the index, from which on no further ones are taken in: each of them is compared with every query."""
AS_BEFORE = 0.002
"""The squared distance from its old vector, by its squared length, up to which a vector is left as it was."""
AVAILABLE = "available"


class IndexedModel(Model, Protocol):
    """A model of item vectors."""

    @property
    def index(self) -> Index:
        """The items' vectors, in the order of its rows."""


class Describer(Protocol):
    """What makes vectors of items by what is known of them: the item tower, or a model that does so itself."""

    @property
    def looks_at(self) -> tuple[str, ...]:
        """The attributes that it looks at."""

    def vectors(self, items: Entities, hashes: Hashes, positions: NDArray[np.int64] | None = None) -> Vectors:
        """The vectors of items, new or not, as they are described now, or were at log `positions`."""


class LiveItems:
    """Which row of the model is which item, and the index of the rows; `follow` brings them up to the catalogue.

    `tower` makes vectors; without one an item has only the vector that was learned. `behind` lets a thread work off
    what is much: a service's way. Otherwise who asks does, and the same questions get the same answers. The model
    knows what the log said before position `since`; None where it is as good as what the table says now.
    """

    def __init__(
        self,
        model: IndexedModel,
        catalogue: Catalogue,
        tower: Describer | None = None,
        behind: Behind | None = None,
        since: int | None = None,
    ) -> None:
        self.catalogue, self.behind = catalogue, behind
        self.tower = tower if tower is not None and tower.looks_at else None
        self.alignment, self.index = Alignment(model, catalogue), LiveIndex(model.index)
        self._seen, self._due, self._full, self._unsound = len(catalogue), 0.0, False, False
        looks_at = () if self.tower is None else self.tower.looks_at
        learned = {name: self._here(name) if since is None else Mark(position=since) for name in looks_at}
        self._marks = learned | {AVAILABLE: Mark()}
        self._working = Lock()
        _, described, told = self._news()
        # not behind: a release is served once those who work behind it have done so, and a batch does not wait at all
        self._take_in(np.arange(self._seen, dtype=np.int32), described, told)

    def follow(self) -> None:
        """Take in what is new, unless somebody is at it."""
        if not self._stale() or not self._working.acquire(blocking=False):
            return
        handed_on = False
        try:
            begun = time.perf_counter()
            news = self._news()
            self._due = time.perf_counter() + LEISURE * (time.perf_counter() - begun)
            if self.behind is not None and sum(map(len, news)) > AT_ONCE:
                self.behind.run("live items", partial(self._take_in_behind, *news))
                handed_on = True
            else:
                self._take_in(*news)
        finally:
            if not handed_on:
                self._working.release()

    def _stale(self) -> bool:
        if self._seen != len(self.catalogue):
            return True
        if self.behind is not None and time.perf_counter() < self._due:
            return False
        attributes = self.catalogue.entities.attributes
        return not all(mark.is_here(attributes[name]) for name, mark in self._marks.items())

    def _here(self, name: str) -> Mark:
        return Mark.of(copy(self.catalogue.entities.attributes[name]), self.catalogue.table.position)

    def _news(self) -> tuple[Items, Items, Items]:
        """The items that are new, older ones that events have described, and all that they told to be there or not."""
        position, before = self.catalogue.table.position, self._seen
        changed = {name: np.empty(0, np.int32) for name in self._marks}
        for name, mark in self._marks.items():
            attribute = copy(self.catalogue.entities.attributes[name])
            if not mark.is_here(attribute):
                self._marks[name] = Mark.of(attribute, position)
                changed[name] = mark.changed(attribute)
        self._seen, told = len(self.catalogue.hashes()), changed.pop(AVAILABLE)
        described = np.unique(np.concatenate([told[:0], *changed.values()]))
        return np.arange(before, self._seen, dtype=np.int32), described[described < before], told

    def _take_in_behind(self, fresh: Items, described: Items, told: Items) -> None:
        give_way()
        try:
            self._take_in(fresh, described, told)
        except Exception:
            logger.exception("new or changed items were not taken in; the release knows them as they were")
        finally:
            self._working.release()

    def _take_in(self, fresh: Items, described: Items, told: Items) -> None:
        known = described[self.alignment.rows_of(described) >= 0]
        if self.tower is not None:
            new = np.union1d(fresh, described)  # what had no vector may have one by what is said of it now
            for items in blocks(new[self.alignment.rows_of(new) < 0][::-1]):  # the newest first
                self._add(items, self.tower)
        back = [self._tell(items, self.alignment.rows_of(items)) for items in blocks(told)]
        for items in blocks(np.unique(np.concatenate([known, *back]))):
            self._describe(items, self.alignment.rows_of(items))

    def _add(self, items: Items, tower: Describer) -> None:
        """Give items that the model does not know a vector."""
        if self._has_room(len(items)):
            vectors, sound = self._vectors(items, tower)
            self.alignment.add(items[sound], self.index.add(vectors[sound]))

    def _vectors(self, items: Items, tower: Describer) -> tuple[Vectors, NDArray[np.bool_]]:
        """What the tower makes of items, and whose vector is finite: one that is not is to harm no other item."""
        vectors = tower.vectors(self.catalogue.entities, self.catalogue.hashes_of(items))
        sound: NDArray[np.bool_] = np.asarray(np.isfinite(vectors).all(axis=1))
        if not (sound.all() or self._unsound):
            logger.warning(
                "%d items, as %r, get no vector by what is said of them: its numbers are not finite",
                np.count_nonzero(~sound),
                self.catalogue.entities.ids[items[~sound][0]],
            )
            self._unsound = True
        return vectors, sound

    def _tell(self, items: Items, rows: Rows) -> Items:
        """Remove what is not available; return what is again."""
        items, rows = items[rows >= 0], rows[rows >= 0]
        here, found = self.catalogue.available(items), self.index.finds(rows)
        if (found & ~here).any():
            self.index.remove(rows[found & ~here])
        return items[here & ~found]

    def _describe(self, items: Items, rows: Rows) -> None:
        """Give items the vector of what is known of them now, where that makes a difference."""
        kept = (rows >= 0) & self.catalogue.available(items)
        items, rows = items[kept], rows[kept]
        now = before = self.index.vectors_of(rows)
        if self.tower is not None and len(items):
            made, sound = self._vectors(items, self.tower)
            now = np.where(sound[:, None], made, before)
        alike = ((now - before) ** 2).sum(axis=1) <= AS_BEFORE * (before**2).sum(axis=1)
        moved = ~(alike & self.index.finds(rows))
        if moved.any() and self._has_room(int(np.count_nonzero(moved))):
            self.index.update(rows[moved], now[moved])

    def _has_room(self, more: int) -> bool:
        if self.index.beside + more <= MOST:
            return True
        if not self._full:
            logger.warning(
                "%d items came or changed since the release; it knows no more of them: train again", self.index.beside
            )
        self._full = True
        return False


def blocks(items: Items) -> Iterator[Items]:
    """Some items at a time."""
    return (items[start : start + BLOCK] for start in range(0, len(items), BLOCK))
