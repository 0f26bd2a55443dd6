"""How popular is every item? Decayed counts, kept up by what happens.

All counts of one half-life decay alike, so whatever time passes, the order of all items is what it was, but for those
that an event has named since. Counts are kept as of one moment, and only those are read again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from shortlist.framing.durations import duration_ms
from shortlist.giving_way import Behind
from shortlist.retrieval.catalogue import Catalogue, Items
from shortlist.retrieval.eligibility import Mask, within

logger = logging.getLogger(__name__)

PORTION, PAUSE_SECONDS = 512, 0.0005
"""Items that are counted at once, and the pause after them, where others read the table meanwhile."""
KEPT = 16_384
"""Of longer orders none is kept up: to put one together takes longer than it is worth."""
FARTHEST = 64.0
"""Half-lives from the moment as of which counts are kept; behind it they are moved, long before they overflow."""


@dataclass(frozen=True)
class Counts:
    """Every item's popularity, knowing the log up to `position`, and as much of the order as was asked for.

    `values` are as of the moment `since` (ms UTC): at another one each is the same multiple. `now` is when they were
    read.
    """

    values: NDArray[np.float64]
    since: int
    position: int
    now: int
    _tops: dict[int, Items] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def top(self, n: int) -> Items:
        """At least the `n` most popular items (more on a tie), best first; ties in order of first appearance."""
        n = min(n, len(self))
        if n not in self._tops:
            self._tops[n] = self._first(np.arange(len(self)), n)
        return self._tops[n]

    def top_of(self, n: int, mask: Mask, count: int) -> Items:
        """At least the `n` most popular of the `count` items that a mask is true for, best first; all there are."""
        look = 1 << int(2 * n * len(self) / max(count, 1)).bit_length()
        if look < count:  # most of the order is known already, and n of them are soon found in it
            found = self.top(look)
            found = found[within(mask, found)]
            if len(found) >= n:
                return found
        return self._first(np.flatnonzero(mask[: len(self)]), n)

    def renewed(self, values: NDArray[np.float64], changed: NDArray[np.intp], position: int, now: int) -> Counts:
        """These counts where some have `changed`, none of them downwards; `values` may be of more items.

        What was not among the first, and has not changed, is not among them now.
        """
        renewed = Counts(values, self.since, position, now)
        for n, items in dict(self._tops).items():  # others may be asking for more of the order
            if n < min(len(self), KEPT):
                renewed._tops[n] = renewed._first(np.union1d(items, changed), n)
        return renewed

    def _first(self, items: NDArray[np.integer], n: int) -> Items:
        """Of some items, in rising order, at least the first `n`, best first."""
        if n < len(items):
            threshold = np.partition(self.values[items], len(items) - n)[len(items) - n]
            items = items[self.values[items] >= threshold]
        return items[np.argsort(-self.values[items], kind="stable")].astype(np.int32)


class Popularity:
    """Every item's sum of gain x decayed count, as of a query's `now`.

    `features` and `gains` come from `specs.popularity_features`, all of the same `half_life`. Counts are followed once
    they are `refresh_ms` old. `behind` is a service's way: a thread counts, in portions, and requests go on with the
    old counts meanwhile. Otherwise the request that finds them old counts, and the same questions get the same answers.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        features: Sequence[str],
        gains: Sequence[float],
        half_life: str,
        refresh_ms: int = 5_000,
        behind: Behind | None = None,
    ) -> None:
        self.catalogue, self.features, self.gains = catalogue, tuple(features), np.array(gains)
        self.half_life_ms, self.refresh_ms, self.behind = duration_ms(half_life), refresh_ms, behind
        self._counts: Counts | None = None
        self._counting = Lock()

    def counts(self, now: int) -> Counts:
        """The counts as of `now`, or a little older."""
        counts = self._counts
        if counts is None:
            with self._counting:  # the first of several that ask counts for all of them
                counts = self._counts = self._counts or self._all(now)
        elif self._stale(counts, now) and self._counting.acquire(blocking=False):
            if self.behind is not None:
                self.behind.run("popularity", partial(self._follow_behind, counts, now))
            else:
                counts = self._follow(counts, now)
        return counts

    def _stale(self, counts: Counts, now: int) -> bool:
        return abs(now - counts.now) >= self.refresh_ms and counts.position != self.catalogue.table.position

    def _follow(self, counts: Counts, now: int) -> Counts:
        """The counts with what has happened since. Ends the counting."""
        try:
            position, size = self.catalogue.table.position, len(self.catalogue.hashes())
            changed = self.catalogue.entities.named_since(counts.position)
            self._counts = counts = self._with(counts, changed[changed < size], position, size, now)
        finally:
            self._counting.release()
        return counts

    def _follow_behind(self, counts: Counts, now: int) -> None:
        try:
            self._follow(counts, now)
        except Exception:
            logger.exception("popular items were not counted again; they are as popular as before")

    def _with(self, counts: Counts, changed: NDArray[np.intp], position: int, size: int, now: int) -> Counts:
        """Of `size` items, those that have changed counted again; all where time has gone too far."""
        if abs(now - counts.since) > FARTHEST * self.half_life_ms:
            return self._all(now)
        values = np.zeros(size)
        values[: len(counts)] = counts.values
        values[changed] = self._read(changed, now) * 2.0 ** ((now - counts.since) / self.half_life_ms)
        return counts.renewed(values, changed, position, now)

    def _all(self, now: int) -> Counts:
        position, size = self.catalogue.table.position, len(self.catalogue.hashes())
        return Counts(self._read(np.arange(size), now), now, position, now)

    def _read(self, items: NDArray[np.intp], now: int) -> NDArray[np.float64]:
        """The popularity of some items, read from the table at this moment."""
        hashes, values = self.catalogue.hashes()[items], np.zeros(len(items))
        portion = PORTION if self.behind is not None else max(len(items), 1)
        for start in range(0, len(items), portion):
            if start:
                time.sleep(PAUSE_SECONDS)
            part = slice(start, start + portion)
            read = self.catalogue.table.read({self.catalogue.item: hashes[part]}, now, columns=self.features)
            values[part] = self.gains @ np.nan_to_num(read.values)
        return values
