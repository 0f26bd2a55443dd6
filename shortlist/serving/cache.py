"""Answers that are given again: kept per user for a while, until an event or another release makes them wrong.

An event that names a user drops the answers of that user; one of the catalogue, or the first that names an item, drops
all of them; and a release has its own. An event invalidates before its append is answered, so whoever was told that it
is stored gets an answer that knows it; an answer that was being computed meanwhile is not kept. Impressions count as no
event here: each answer makes some, and what they change shows when the answer is too old. What is cached is a slate and
the candidates it shows, because every answer is logged as impressions of its own request. A draw is logged with its
propensity once, where it was made: how often it is shown again depends on what the user does with it, so that
propensities of repeats would lie.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sized
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np

from shortlist.events.batch import Batch
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Clock, Query, Slate

MOST = 20_000
"""Answers that are kept, those used last; ten items each take about 3 KB."""
TICKET = "cache_ticket"
"""In `query.known`: what an answer that is being computed will be kept as."""
IMPRESSION = "impression"

Key = tuple[str | None, Hashable]


@dataclass(frozen=True)
class Kept:
    """An answer as it is given again, and until when (seconds of the cache's clock)."""

    slate: Slate
    shown: Candidates
    until: float


@dataclass(eq=False)
class Ticket:
    """An answer on its way: `spoiled` when an event came that it may not know."""

    key: Key
    until: float
    spoiled: bool = False


class AnswerCache:
    """At most `most` answers, each given again for `seconds`. Safe to use from several threads.

    It is an observer of the pipeline, which hands it the answers, and a listener of the log. `count` is told "hit" or
    "miss" for every answer that was looked for.
    """

    name = "cache"

    def __init__(
        self,
        user: str,
        item: str,
        seconds: float,
        count: Callable[[str], None],
        most: int = MOST,
        clock: Clock = time.monotonic,
    ) -> None:
        self.user, self.item, self.seconds, self.count, self.most, self.clock = user, item, seconds, count, most, clock
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._of_user: dict[str | None, set[Key]] = {}
        self._tickets: dict[str | None, set[Ticket]] = {}
        self._lock = Lock()
        self._catalogue: Sized = ()
        self._items = 0  # in the catalogue, as of the last batch

    def __len__(self) -> int:
        return len(self._kept)

    def follow(self, catalogue: Sized) -> None:
        """Drop everything whenever a batch has added an item to the catalogue, whichever event named it first."""
        self._catalogue, self._items = catalogue, len(catalogue)

    def find(self, release: str, query: Query) -> tuple[Slate, Candidates] | None:
        """The answer that is kept for such a query, as one to this request; else None, and the query gets a ticket.

        Explanations and orders of the caller's own items are always computed.
        """
        if query.explain or query.items is not None:
            return None
        key = key_of(release, query)
        now = self.clock()
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and now < kept.until:
                self._kept.move_to_end(key)
            else:
                kept = None
                ticket = Ticket(key, now + self.seconds)
                self._tickets.setdefault(query.user, set()).add(ticket)
                query.learn(TICKET, ticket)
        self.count("miss" if kept is None else "hit")
        return None if kept is None else (replace(kept.slate, request=query.request), kept.shown)

    def observe(self, query: Query, slate: Slate, shown: Candidates) -> None:
        """Keep an answer that somebody waits to see again, unless it is spoiled or a stage was left out of it."""
        ticket: Ticket | None = query.known.get(TICKET)
        if ticket is None:
            return
        shown = Candidates(shown.items, shown.columns)  # feature vectors are logged where they were read, once
        with self._lock:
            self._hand_in(ticket)
            if ticket.spoiled or slate.degraded:
                return
            self._drop(ticket.key)
            self._kept[ticket.key] = Kept(again(slate), shown, ticket.until)
            self._of_user.setdefault(ticket.key[0], set()).add(ticket.key)
            while len(self._kept) > self.most:
                self._drop(next(iter(self._kept)))

    def learn(self, batch: Batch) -> None:
        """Drop what the events of a batch make wrong."""
        told, items = ~batch.of_kind(IMPRESSION), len(self._catalogue)
        grown, self._items = items != self._items, items
        if not told.any() and not grown:
            return
        with self._lock:
            if grown or batch.of_kind(self.item).any():
                self._forget_all()
                return
            if not self._kept and not self._tickets:
                return
        users = batch.strings(self.user).take(np.flatnonzero(told)).drop_null().unique().to_pylist()
        with self._lock:
            for user in users:
                for key in self._of_user.pop(user, ()):
                    del self._kept[key]
                for ticket in self._tickets.get(user, ()):
                    ticket.spoiled = True

    def _forget_all(self) -> None:
        self._kept.clear()
        self._of_user.clear()
        for tickets in self._tickets.values():
            for ticket in tickets:
                ticket.spoiled = True

    def _hand_in(self, ticket: Ticket) -> None:
        user = ticket.key[0]
        tickets = self._tickets.get(user, set())
        tickets.discard(ticket)
        if not tickets:
            self._tickets.pop(user, None)

    def _drop(self, key: Key) -> None:
        if self._kept.pop(key, None) is None:
            return
        keys = self._of_user[key[0]]
        keys.discard(key)
        if not keys:
            del self._of_user[key[0]]


def again(slate: Slate) -> Slate:
    """A slate as another request gets it: nothing was drawn for that one, and what was has no propensity."""
    said = tuple(propensity if propensity == 1.0 else None for propensity in slate.propensities)
    return replace(slate, propensities=said)


def key_of(release: str, query: Query) -> Key:
    """What two queries must agree on to get the same answer."""
    context = tuple(sorted((name, repr(value)) for name, value in query.context.items()))
    where = tuple(sorted((name, repr(sorted(values, key=repr))) for name, values in query.where.items()))
    return query.user, (release, query.k, query.exclude, where, context)
