"""One list out of several sources' proposals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import njit

from shortlist.pipeline.candidates import NOTHING, Candidates, passed_by_all
from shortlist.pipeline.query import Query
from shortlist.retrieval.specs import MOST_CANDIDATES

OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}


@njit("int64(int32[::1], int64[::1], float64[::1], int32[:,::1], int32[::1], float64[:,::1])", **OPTIONS)
def interleave(items, stops, quotas, slots, merged, ranks):  # type: ignore[no-untyped-def]
    """How many items were `merged`; `ranks[s, i]` is the rank that source s gave the i-th of them, NaN where none.

    `items` are the sources' proposals, one source after the other up to its stop. `slots`, (a power of two, 2), hold
    each item that came up and its place, -1 where there is none; nothing needs to be in them yet.
    """
    count, mask = 0, len(slots) - 1
    for slot in range(len(slots)):
        slots[slot, 0] = -1
    for source in range(len(stops)):
        for row in range(len(merged)):
            ranks[source, row] = np.nan
    heads, places = np.empty(len(stops), np.int64), np.empty(len(stops))
    for source in range(len(stops)):
        heads[source], places[source] = stops[source - 1] if source > 0 else 0, 1.0 / quotas[source]
    for _ in range(len(items)):
        best = -1
        for source in range(len(stops)):
            if heads[source] < stops[source] and (best < 0 or places[source] < places[best]):
                best = source
        item, rank = items[heads[best]], heads[best] - (stops[best - 1] if best > 0 else 0) + 1
        heads[best] += 1
        places[best] = (rank + 1) / quotas[best]
        slot = (item * 0x9E3779B1 >> 7) & mask
        while slots[slot, 0] != item and slots[slot, 0] >= 0:
            slot = (slot + 1) & mask
        if slots[slot, 0] < 0:
            slots[slot, 0], slots[slot, 1] = item, -1
            if count < len(merged):
                slots[slot, 1] = count
                merged[count] = item
                count += 1
        row = slots[slot, 1]
        if row >= 0 and np.isnan(ranks[best, row]):
            ranks[best, row] = rank
    return count


class Interleaved:
    """The merger: every source gets places in proportion to its quota, best first; an item keeps its best place.

    The item at rank r of a source with quota q stands at r / q of the way through the merged list, so that a list
    that is cut anywhere holds the sources' shares. Where one source has little to say the others fill its places.
    Each source's rank (1 is its best) becomes the column `<source>_rank`, NaN for what it did not propose.
    """

    name = "interleaved"

    def __init__(self, quotas: Mapping[str, int], limit: int = MOST_CANDIDATES) -> None:
        self.quotas, self.limit = dict(quotas), limit

    def merge(self, query: Query, proposals: Mapping[str, Candidates]) -> Candidates:  # noqa: ARG002
        """At most `limit` items, each once; columns of the sources themselves are not kept."""
        items = np.concatenate([NOTHING.items, *(found.items for found in proposals.values())])
        if not len(items):
            return NOTHING.describe({f"{source}_rank": np.empty(0) for source in proposals})
        stops = np.cumsum([len(found) for found in proposals.values()])
        quotas = np.array([self.quotas.get(source, 1) for source in proposals], np.float64)
        slots = np.empty((1 << (2 * len(items)).bit_length(), 2), np.int32)
        merged = np.empty(min(self.limit, len(items)), np.int32)
        ranks = np.empty((len(proposals), len(merged)))
        count = interleave(items, stops, quotas, slots, merged, ranks)
        columns = {f"{source}_rank": ranks[number, :count] for number, source in enumerate(proposals)}
        return Candidates(merged[:count], columns, passed=passed_by_all(proposals.values()))
