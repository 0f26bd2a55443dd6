"""What happened in the world so far: a log of any size, in the order of time.

Time goes in blocks of six hours. A block has a random generator of its own, so that the history does not depend on
how it is cut into chunks, and memory holds one block and one chunk. At a block's beginning the policy learns which
items exist by then and which items each user has opened; those it does not show again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shortlist.simulation.behaviour import DAY_MS, respond
from shortlist.simulation.policy import Shelves
from shortlist.simulation.world import World

SLATE = 10
BLOCK_HOURS = 6
HOUR_MS = DAY_MS // 24
MOST_PAGES = 8

KINDS = ("user", "item", "impression", "click", "watch", "like", "hide")
USER, ITEM, IMPRESSION, CLICK, WATCH, LIKE, HIDE = range(len(KINDS))

ROW = np.dtype(
    [
        ("at", "i8"), ("kind", "i1"), ("position", "i1"), ("user", "i4"), ("item", "i4"), ("request", "i8"),
        ("propensity", "f8"), ("seconds", "f4"),
    ]
)  # fmt: skip
"""One event: what its kind lacks is -1 (numbers of users, items and requests) or NaN."""

Rows = NDArray[np.void]
HOURS = np.array([3, 2, 1, 1, 1, 2, 4, 6, 7, 6, 6, 7, 9, 8, 7, 7, 8, 10, 13, 16, 18, 17, 12, 7]) / 178.0
"""The share of a day's visits in each hour UTC: low at night, highest in the evening."""
WEEKDAYS = np.array([0.9, 0.9, 0.95, 0.95, 1.05, 1.15, 1.1]) / 7.0
"""The share of a week's visits on each day, Monday first."""


def rhythm(at: NDArray[np.int64]) -> NDArray[np.float64]:
    """How many visits begin in the hour that holds each `at` (ms), relative to other hours."""
    day = at // DAY_MS
    return np.asarray(HOURS[at % DAY_MS // HOUR_MS] * WEEKDAYS[(day + 3) % 7], np.float64)  # 1970-01-01: a Thursday


@dataclass
class Visits:
    """The slates of one block's visits: whom each is shown to, and when (ms)."""

    user: NDArray[np.int64]
    at: NDArray[np.int64]


class History:
    """Makes the events of a world, about `events` of them, block by block; iterate once.

    `seen` are the keys `user * all items + item` of what users have opened (clicked) so far, sorted.
    Raises ValueError where `events` is not more than the items to announce.
    """

    def __init__(self, world: World, events: int, seed: int = 0) -> None:
        self.world, self.events, self.seed = world, events, seed
        self.seen: NDArray[np.int64] = np.empty(0, np.int64)
        self.shelves = Shelves(world)
        self.known_users = np.zeros(len(world.users.taste), np.bool_)
        self.slates, self.made, self.visited = 0, 0, 0
        self.items_to_announce = world.alive(world.end - 1)
        if events <= self.items_to_announce:
            raise ValueError(
                f"{events:,} events are too few: announcing the items takes {self.items_to_announce:,} of them; "
                "ask for more events or for a world with fewer items"
            )

    def blocks(self) -> Iterator[Rows]:
        """Events in the order of time; the sizes vary. What overhangs a block waits for the next."""
        block_ms = BLOCK_HOURS * HOUR_MS
        starts = np.arange(self.world.start, self.world.end, block_ms)
        hours = starts[:, None] + np.arange(BLOCK_HOURS) * HOUR_MS
        weights = rhythm(hours)
        left = np.cumsum(weights.sum(axis=1)[::-1])[::-1]
        waiting = np.empty(0, ROW)
        owed = 0.0
        for number, start in enumerate(starts):
            rng = np.random.default_rng([self.world.parameters["seed"], 3, self.seed, number])
            owed += self._visits_left() * weights[number].sum() / left[number]
            count = int(owed)
            owed -= count
            rows = self._block(int(start), weights[number], count, rng)
            rows = np.concatenate([waiting, self._born(number, int(start)), rows])
            rows = rows[np.argsort(rows["at"], kind="stable")]
            cut = int(np.searchsorted(rows["at"], start + block_ms))
            waiting = rows[cut:]
            yield rows[:cut]
        yield waiting

    def _visits_left(self) -> float:
        """Visits that still fit: what is left of the events, by the mean size of the visits so far."""
        size = (12.0 * SLATE * 20 + self.made) / (200 + self.visited)
        return max(0.0, (self.events - self.items_to_announce - self.made) / size)

    def _born(self, number: int, start: int) -> Rows:
        """The announcements of the block's new items; before the first block come those of everything older."""
        world = self.world
        first = 0 if number == 0 else world.alive(start - 1)
        return _rows(ITEM, world.items.born[first : world.alive(start + BLOCK_HOURS * HOUR_MS - 1)], first=first)

    def _block(self, start: int, weights: NDArray[np.float64], count: int, rng: np.random.Generator) -> Rows:
        """What the visits of one block bring: impressions and actions, not sorted."""
        visits = self._visits(start, weights, count, rng)
        policy = self.shelves.at(start)
        if not len(visits.user) or not policy.known:
            return np.empty(0, ROW)
        items, propensity = policy.slates(visits.user, SLATE, self.seen, rng)
        shown = items >= 0
        row, slot = np.nonzero(shown)
        impressions = _rows(IMPRESSION, visits.at[row])
        impressions["user"], impressions["item"] = visits.user[row], items[shown]
        impressions["position"], impressions["propensity"] = slot + 1, propensity[shown]
        impressions["request"] = self.slates + row
        actions = self._actions(impressions, rng)
        newcomers = self._newcomers(visits)
        self.slates += len(visits.user)
        self.visited += count
        self.made += len(newcomers) + len(impressions) + len(actions)
        self._remember(actions)
        return np.concatenate([newcomers, impressions, actions])

    def _visits(self, start: int, weights: NDArray[np.float64], count: int, rng: np.random.Generator) -> Visits:
        """`count` visits: users by activity among those who have joined, hours by rhythm, slates by patience."""
        users = self.world.users
        joined = int(np.searchsorted(users.joined, start, side="right"))
        if joined == 0:
            return Visits(np.empty(0, np.int64), np.empty(0, np.int64))
        activity = np.cumsum(users.activity[:joined])
        user = np.minimum(np.searchsorted(activity, rng.random(count) * activity[-1], side="right"), joined - 1)
        hour = rng.choice(len(weights), count, p=weights / weights.sum())
        began = start + ((hour + rng.random(count)) * HOUR_MS).astype(np.int64)
        pages = np.minimum(rng.geometric(1.0 / users.patience[user]), MOST_PAGES)
        visit = np.repeat(np.arange(count), pages)
        pauses = 5_000 + (45_000 * rng.standard_exponential(len(visit))).astype(np.int64)
        elapsed = np.cumsum(pauses)
        first = np.cumsum(pages) - pages
        return Visits(user[visit], began[visit] + elapsed - elapsed[first][visit])

    def _newcomers(self, visits: Visits) -> Rows:
        """One announcement for each user who is seen for the first time, at their first slate."""
        order = np.argsort(visits.at, kind="stable")
        user, first = np.unique(visits.user[order], return_index=True)
        new = ~self.known_users[user]
        self.known_users[user] = True
        rows = _rows(USER, visits.at[order][first[new]])
        rows["user"] = user[new]
        return rows

    def _actions(self, shown: Rows, rng: np.random.Generator) -> Rows:
        chance = self.world.chances(shown["user"], shown["item"], shown["at"])
        done = respond(chance, shown["position"].astype(np.int64), rng)
        parts = []
        for kind, mask, after in (
            (CLICK, done.click, done.acted_after),
            (HIDE, done.hide, done.acted_after),
            (WATCH, done.watch, done.watched_after),
            (LIKE, done.like, done.liked_after),
        ):
            rows = _rows(kind, shown["at"][mask] + after[mask])
            rows["user"], rows["item"] = shown["user"][mask], shown["item"][mask]
            if kind == WATCH:
                rows["seconds"] = done.seconds[mask]
            parts.append(rows)
        return np.concatenate(parts)

    def _remember(self, actions: Rows) -> None:
        opened = actions[actions["kind"] == CLICK]
        keys = np.unique(opened["user"].astype(np.int64) * len(self.world.items.category) + opened["item"])
        places = np.searchsorted(self.seen, keys)
        known = (
            self.seen[np.minimum(places, len(self.seen) - 1)] == keys if len(self.seen) else np.zeros(len(keys), bool)
        )
        self.seen = np.insert(self.seen, places[~known], keys[~known])


def _rows(kind: int, at: NDArray[np.int64], first: int = -1) -> Rows:
    """Blank events of one kind at these times; `first` numbers their items from there."""
    rows = np.zeros(len(at), ROW)
    rows["at"], rows["kind"] = at, kind
    rows["user"] = rows["request"] = -1
    rows["item"] = -1 if first < 0 else first + np.arange(len(at))
    rows["propensity"] = rows["seconds"] = np.nan
    return rows
