"""The past as requests: at some of the moments when a user acted, what should they have been shown?"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shortlist.features.context import Context
from shortlist.training.metrics import Relevant


@dataclass(frozen=True)
class Positives:
    """What users acted on, in log order: entity indexes, the event's log position, its time (ms) and its gain.

    `context` are the declared values of the requests that led to them, by name; empty where nobody knows any.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    position: NDArray[np.int64]
    at: NDArray[np.int64]
    gain: NDArray[np.float64]
    context: Context = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.user)

    def newest(self, most: int) -> Positives:
        """The last `most` of them."""
        start = int(self.position[-most]) if 0 < most < len(self) else 0
        return self.between(start, int(self.position[-1]) + 1) if len(self) else self

    def between(self, start: int, stop: int) -> Positives:
        """Those with log positions from `start` up to, not including, `stop`."""
        first, last = np.searchsorted(self.position, [start, stop])
        return self._take(slice(int(first), int(last)))

    def of_each_user(self, share: float) -> tuple[Positives, Positives]:
        """All but the newest `share` of each user's positives (rounded down), and these; both in log order."""
        order = np.lexsort((self.position, self.user))
        _, user, counts = np.unique(self.user[order], return_inverse=True, return_counts=True)
        place = np.arange(len(order)) - (np.cumsum(counts) - counts)[user]
        newest = np.empty(len(order), np.bool_)
        newest[order] = place >= (counts - np.floor(share * counts))[user]
        return self._take(~newest), self._take(newest)

    def _take(self, part: slice | NDArray[np.bool_]) -> Positives:
        context = {name: values[part] for name, values in self.context.items()}
        return Positives(self.user[part], self.item[part], self.position[part], self.at[part], self.gain[part], context)


@dataclass(frozen=True)
class Requests:
    """Moments to ask at, in log order: each knows the events before `position` and asks as of `now` (ms).

    `relevant` are the items that the user acted on from then to the end of the part that the requests are drawn from;
    `context` is what each says of itself, by name, empty where nobody knows.
    """

    user: NDArray[np.int32]
    position: NDArray[np.int64]
    now: NDArray[np.int64]
    relevant: Relevant
    context: Context = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.user)


def requests_of(positives: Positives, per_user: int, most: int, horizon: int | None = None) -> Requests:
    """Up to `per_user` requests of each user, spread evenly over their positives; at most `most`, the newest.

    A request stands at a positive and says what led to it; its relevant items are those of that one and of the user's
    later ones (of the next `horizon`, where that is given), each item once with its greatest gain.
    """
    order = np.lexsort((positives.position, positives.user))
    user = positives.user[order]
    starts = np.flatnonzero(np.diff(user, prepend=-1)) if len(user) else np.empty(0, np.int64)
    counts = np.diff(starts, append=len(user))
    wanted = np.minimum(counts, per_user)
    which = np.arange(wanted.sum()) - np.repeat(np.cumsum(wanted) - wanted, wanted)
    place = np.repeat(starts, wanted) + which * np.repeat(counts, wanted) // np.repeat(np.maximum(wanted, 1), wanted)
    stop = np.repeat(starts + counts, wanted)
    newest = np.argsort(positives.position[order[place]], kind="stable")[-most:] if most else np.empty(0, np.int64)
    place, stop = place[newest], stop[newest]
    if horizon is not None:
        stop = np.minimum(stop, place + horizon)
    at = order[place]
    relevant = _relevant(positives.item[order], positives.gain[order], place, stop)
    context = {name: values[at] for name, values in positives.context.items()}
    return Requests(positives.user[at], positives.position[at], positives.at[at], relevant, context)


def _relevant(
    item: NDArray[np.int32], gain: NDArray[np.float64], start: NDArray[np.int64], stop: NDArray[np.int64]
) -> Relevant:
    """The distinct items of each range `[start, stop)`, with the greatest gain of each."""
    counts = stop - start
    request = np.repeat(np.arange(len(start)), counts)
    place = np.arange(counts.sum()) + np.repeat(start - (np.cumsum(counts) - counts), counts)
    order = np.lexsort((-gain[place], item[place], request))
    request, place = request[order], place[order]
    first = np.ones(len(place), np.bool_)
    first[1:] = (request[1:] != request[:-1]) | (item[place[1:]] != item[place[:-1]])
    offsets = np.concatenate([[0], np.cumsum(np.bincount(request[first], minlength=len(start)))]).astype(np.int64)
    return Relevant(item[place[first]], gain[place[first]], offsets)
