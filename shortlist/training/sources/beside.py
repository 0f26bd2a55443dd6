"""What a positive came of: the impression that led to it, and what was shown beside it and not chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shortlist.events.labels import Labels
from shortlist.events.log import EventLog
from shortlist.features.context import taken
from shortlist.features.hashing import Hashes, combined
from shortlist.framing.durations import duration_ms
from shortlist.project import Project
from shortlist.training.requests import Positives
from shortlist.training.rows import Judged, Known, shown

MOST_BESIDE = 4
"""Items kept of each slate: drawn ones, because a slate's rows stand in drawn order."""


def led_to(
    rows: Judged,
    users: Hashes,
    items: Hashes,
    position: NDArray[np.int64],
    at: NDArray[np.int64],
    within: int,
) -> NDArray[np.int64]:
    """For each positive the row of the impression that led to it, shape (n,); -1 where none did.

    `users`, `items`, log `position` and time `at` are those of all positives. It is the latest one before the action in
    which the item was shown and acted on, at most `within` ms ago: who comes back later was led by something else.
    """
    shown, acted = combined(rows.user, rows.item), combined(users, items)
    found = np.full(len(users), -1)
    won = np.flatnonzero(rows.gain > 0)
    # sorted by pair and position, the latest impression before an action is the last one seen
    pair, when = np.concatenate([shown[won], acted]), np.concatenate([rows.position[won], position])
    order = np.lexsort((when, pair))
    seen = np.where(order < len(won), np.arange(len(order)), -1)
    latest = np.maximum.accumulate(seen) if len(seen) else seen
    action = np.flatnonzero((order >= len(won)) & (latest >= 0))
    action = action[pair[order[action]] == pair[order[latest[action]]]]
    led, by = order[action] - len(won), won[order[latest[action]]]
    recent = at[led] - rows.now[by] <= within
    found[led[recent]] = by[recent]
    return found


def shown_beside(rows: Judged, users: Hashes, items: Hashes, led: NDArray[np.int64]) -> NDArray[np.uint64]:
    """For each positive up to `MOST_BESIDE` items of the slate that led to it, shape (n, MOST_BESIDE); else 0.

    `led` is what `led_to` found. What the user acted on at any other time is left out.
    """
    shown, acted = combined(rows.user, rows.item), combined(users, items)
    kept = np.flatnonzero((rows.gain == 0) & ~np.isin(shown, acted))
    request = rows.request[kept]
    place = np.arange(len(kept)) - np.searchsorted(request, request)
    kept, place = kept[place < MOST_BESIDE], place[place < MOST_BESIDE]
    slates = np.zeros((int(rows.request.max(initial=-1)) + 1, MOST_BESIDE), np.uint64)
    slates[rows.request[kept], place] = rows.item[kept]
    beside = np.zeros((len(users), MOST_BESIDE), np.uint64)
    beside[led >= 0] = slates[rows.request[led[led >= 0]]]
    return beside


def with_context(
    positives: Positives, log: EventLog, project: Project, known: Known, stop: int, seed: int
) -> Positives:
    """The same positives and what the requests said that led to them, so that the past can be asked as it was.

    As they are where no context is declared, or nobody knows what was shown.
    """
    labels = project.labels
    if not project.context or not isinstance(labels, Labels):
        return positives
    rows = shown(log, project, labels, 0, stop, seed)
    users, items = known.users.hashes[positives.user], known.items.hashes[positives.item]
    led = led_to(rows, users, items, positives.position, positives.at, duration_ms(labels.within))
    return replace(positives, context=taken(rows.context, led))
