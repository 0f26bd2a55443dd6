"""The most popular items: a source, and the last resort when everything else has nothing to say."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock, Thread

import numpy as np
from numpy.typing import NDArray

from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Query
from shortlist.pipeline.stages import Filter
from shortlist.retrieval.catalogue import Catalogue, Items
from shortlist.retrieval.eligibility import LOOKS, Mask, allowed, eligible, first_eligible, within
from shortlist.retrieval.vectors.index import greatest

PORTION, PAUSE_SECONDS = 4_096, 0.0005
"""Items that are counted at once behind the requests, and the pause after them: other readers get their turn."""
LEISURE = 50
"""Times as long as counting took that its result is good for at least: it is to take a fiftieth of the time at most."""


@dataclass
class Counts:
    """Every item's popularity at one moment, and as much of the order as was asked for."""

    values: NDArray[np.float64]
    position: int
    now: int
    took_ms: float
    _tops: dict[int, Items] = field(default_factory=dict)

    @property
    def good_for_ms(self) -> float:
        """How old they may become where counting goes on beside the requests."""
        return LEISURE * self.took_ms

    def top(self, n: int) -> Items:
        """At least the `n` most popular items (more on a tie), best first; ties in order of first appearance."""
        n = min(n, len(self.values))
        if n not in self._tops:
            chosen = np.arange(len(self.values))
            if n < len(chosen):
                threshold = np.partition(self.values, len(chosen) - n)[len(chosen) - n]
                chosen = np.flatnonzero(self.values >= threshold)
            self._tops[n] = chosen[np.argsort(-self.values[chosen], kind="stable")].astype(np.int32)
        return self._tops[n]

    def top_of(self, n: int, mask: Mask, count: int) -> Items:
        """At least the `n` most popular of the `count` items that a mask is true for, best first; all there are."""
        look = 1 << int(2 * n * len(self.values) / max(count, 1)).bit_length()
        if look < count:  # most of the order is known already, and n of them are soon found in it
            found = self.top(look)
            found = found[within(mask, found)]
            if len(found) >= n:
                return found
        items = np.flatnonzero(mask[: len(self.values)])
        return items[greatest(self.values[items], n)].astype(np.int32)


class PopularSource:
    """The eligible items with the greatest sum of gain x decayed count, as of the query's `now`.

    `features` and `gains` come from `specs.popularity_features`. `quota` None proposes everything there is, best
    first: the last resort. Counts of all items are read again once they are `refresh_ms` old. `behind` lets one thread
    do that while requests go on with the old counts, at most twelve times as old: a service's way, because it takes a
    tenth of a second for a million items. Otherwise the request that finds them old reads them, and the same
    questions get the same answers.
    """

    def __init__(
        self,
        name: str,
        catalogue: Catalogue,
        features: Sequence[str],
        gains: Sequence[float],
        quota: int | None,
        filters: Sequence[Filter] = (),
        refresh_ms: int = 5_000,
        behind: bool = False,
    ) -> None:
        self.name, self.catalogue, self.quota = name, catalogue, quota
        self.features, self.gains = tuple(features), np.array(gains)
        self.filters, self.refresh_ms, self.behind = tuple(filters), refresh_ms, behind
        self._counts: Counts | None = None
        self._reading = Lock()

    def propose(self, query: Query) -> Candidates:
        """At most `quota` eligible items, most popular first; fewer only where fewer are eligible."""
        counts = self._fresh(query.now)
        everything = len(counts.values)
        if self.quota is None:
            return eligible(self.filters, query, Candidates(counts.top(everything)))
        mask = allowed(query)
        if mask is not None:
            count = int(np.count_nonzero(mask[:everything]))
            return first_eligible(self.filters, query, self.quota, count, lambda n: counts.top_of(n, mask, count))
        return first_eligible(self.filters, query, self.quota, everything, counts.top)

    def popularity(self, now: int) -> NDArray[np.float64]:
        """Each item's popularity as of `now`, read from the table at this moment."""
        return self._read(now, len(self.catalogue)).values

    def _fresh(self, now: int) -> Counts:
        counts = self._counts
        age = np.inf if counts is None else abs(now - counts.now)
        refresh_ms = self.refresh_ms if counts is None or not self.behind else max(self.refresh_ms, counts.good_for_ms)
        if counts is not None and (age < refresh_ms or counts.position == self.catalogue.table.position):
            return counts
        if counts is None or not self.behind or age > 12 * refresh_ms:
            self._counts = counts = self._read(now, len(self.catalogue))
        elif self._reading.acquire(blocking=False):
            Thread(target=self._reread, args=(now,), name=f"{self.name} refresh", daemon=True).start()
        return counts

    def _reread(self, now: int) -> None:
        try:
            counts = self._read(now, PORTION)
            counts.top(len(counts.values) if self.quota is None else int(LOOKS[0] * self.quota))
            self._counts = counts
        finally:
            self._reading.release()

    def _read(self, now: int, portion: int) -> Counts:
        """Count `portion` items at a time. Of several portions the first one's position is the one that is known."""
        hashes, table = self.catalogue.hashes(), self.catalogue.table
        values, position, begun = np.zeros(len(hashes)), table.position, time.perf_counter()
        for start in range(0, len(hashes), max(portion, 1)):
            if start:
                time.sleep(PAUSE_SECONDS)
            part = slice(start, start + portion)
            read = table.read({self.catalogue.item: hashes[part]}, now, columns=self.features)
            values[part] = self.gains @ np.nan_to_num(read.values)
            position = min(position, read.position)
        return Counts(values, position, now, (time.perf_counter() - begun) * 1000)
