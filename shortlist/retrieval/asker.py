"""Who asks: what stages want to know of the user, read once for all of them."""

from __future__ import annotations

from collections.abc import Iterable

from shortlist.features.columns import Columns
from shortlist.features.hashing import NOBODY, Hashes, hash_of
from shortlist.features.table import FeatureTable
from shortlist.pipeline.query import Query

KNOWN = "asker"
"""In `query.known`: the columns and lists of the user, one row."""


class Asker:
    """Reads every column and list of the user that a stage said it needs, when the first of them asks.

    Stages ask it, and not the table, because each read costs more than what it reads.
    """

    def __init__(self, table: FeatureTable, user: str) -> None:
        self.table, self.user = table, user
        self.entities = table.entities[user]
        self._needed: tuple[str, ...] = ()

    def needs(self, names: Iterable[str]) -> None:
        """Read these columns and lists of the user, too; said by a stage when it is made."""
        self._needed = tuple(dict.fromkeys((*self._needed, *names)))

    def columns(self, query: Query) -> Columns:
        """One row of what stages need of the query's user, as of its `now`."""
        known: Columns | None = query.known.get(KNOWN)
        if known is None:
            known = self.table.read({self.user: self.hash(query)}, query.now, query.context, self._needed)
            query.learn(KNOWN, known)
        return known

    def hash(self, query: Query) -> Hashes:
        """The hash of the query's user, shape (1,)."""
        return NOBODY if query.user is None else hash_of(query.user)
