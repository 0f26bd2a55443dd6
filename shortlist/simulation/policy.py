"""The policy that showed the history: popular, personal, new and random items, with known propensities.

One slate is drawn item by item without replacement from a mixture over the items that the policy knows, so the
propensity of an item is `q(item) / (1 - q(items above it) - q(items the user has seen))`: the probability of this item
at this position, given those above it. The parts of the mixture:

    35 %  popular    in proportion to reach
    35 %  personal   a category by the user's taste, softmax(5 <taste, category>), then in proportion to reach within it
    15 %  new        evenly among the items of the last seven days
    15 %  random     evenly among all items

Where nothing is new, the random part takes that share.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shortlist.simulation.behaviour import DAY_MS, Integers
from shortlist.simulation.world import World

POPULAR, PERSONAL, NEW, RANDOM = 0.35, 0.35, 0.15, 0.15
NEW_MS = 7 * DAY_MS
SHARPNESS = 5.0
REDRAWS = 20


class Shelves:
    """The catalogue in the orders that the policy draws from; made once per world."""

    def __init__(self, world: World) -> None:
        items = world.items
        self.world = world
        self.order = np.argsort(items.category, kind="stable")
        count = len(items.category)
        self.keys = items.category[self.order].astype(np.int64) * count + self.order
        self.reach = np.concatenate([[0.0], np.cumsum(items.reach)])
        self.reach_by_category = np.concatenate([[0.0], np.cumsum(items.reach[self.order])])
        self.first = np.searchsorted(self.keys, np.arange(len(world.categories)) * count)

    def at(self, now: int) -> LoggingPolicy:
        """The policy as of `now`: it knows the items born by then."""
        return LoggingPolicy(self, now)


class LoggingPolicy:
    """The mixture as of one moment. `known` items are those born by then."""

    def __init__(self, shelves: Shelves, now: int) -> None:
        world = shelves.world
        self.shelves, self.world = shelves, world
        self.known = world.alive(now)
        self.new_from = world.alive(now - NEW_MS)
        count = len(world.items.category)
        self.last = np.searchsorted(shelves.keys, np.arange(len(world.categories)) * count + self.known)
        self.category_reach = shelves.reach_by_category[self.last] - shelves.reach_by_category[shelves.first]
        new = NEW if self.new_from < self.known else 0.0
        self.parts = np.cumsum([POPULAR, PERSONAL, new])

    def tastes(self, users: Integers) -> NDArray[np.float64]:
        """The probability of each category for the personal part, shape (users, categories); empty categories get 0."""
        logits = SHARPNESS * (self.world.users.taste[users] @ self.world.topics.centers.T).astype(np.float64)
        weights = np.exp(logits) * (self.category_reach > 0)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float64)

    def mixture(self, tastes: NDArray[np.float64], rows: Integers, items: Integers) -> NDArray[np.float64]:
        """`q(items[j])` for the user of `tastes[rows[j]]`: sums to 1 over the known items of each row."""
        catalogue = self.world.items
        category = catalogue.category[items]
        reach = catalogue.reach[items]
        popular = POPULAR * reach / self.shelves.reach[self.known]
        personal = PERSONAL * tastes[rows, category] * reach / self.category_reach[category]
        is_new = items >= self.new_from
        new = (self.parts[2] - self.parts[1]) * is_new / max(1, self.known - self.new_from)
        return np.asarray(popular + personal + new + (1 - self.parts[2]) / self.known, np.float64)

    def draw(self, tastes: NDArray[np.float64], rows: Integers, rng: np.random.Generator) -> NDArray[np.int64]:
        """One item per row from the mixture, with replacement."""
        shelves, n = self.shelves, len(rows)
        which = np.searchsorted(self.parts, rng.random(n), side="right")
        place, pick = rng.random(n), rng.random(n)
        items = (place * self.known).astype(np.int64)
        popular = which == 0
        reach = shelves.reach[: self.known + 1]
        items[popular] = np.searchsorted(reach, place[popular] * reach[-1], side="right") - 1
        personal = np.flatnonzero(which == 1)
        ladder = np.cumsum(tastes[rows[personal]], axis=1)
        category = (ladder[:, :-1] <= pick[personal, None] * ladder[:, -1:]).sum(axis=1)
        low = shelves.reach_by_category[shelves.first[category]]
        target = low + place[personal] * self.category_reach[category]
        found = np.searchsorted(shelves.reach_by_category, target, side="right") - 1
        items[personal] = shelves.order[np.clip(found, shelves.first[category], self.last[category] - 1)]
        new = which == 2
        items[new] = self.new_from + (place[new] * (self.known - self.new_from)).astype(np.int64)
        return np.minimum(items, self.known - 1)

    def slates(
        self, users: Integers, k: int, seen: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """One slate per user: items and propensities, both of shape (users, k); -1 where the user has seen the rest.

        `seen` are sorted keys `user * all items + item`; every seen item must be known.
        """
        count = len(self.world.items.category)
        tastes = self.tastes(users)
        first, last = np.searchsorted(seen, users * count), np.searchsorted(seen, (users + 1) * count)
        left = self.known - (last - first)
        used = self._seen_mass(tastes, seen % count, first, last)
        items = np.full((len(users), k), -1, np.int64)
        propensity = np.full((len(users), k), np.nan)
        for slot in range(min(k, self.known)):
            rows = np.flatnonzero(left > slot)
            chosen = self._draw_unseen(users, tastes, rows, items[:, :slot], seen, rng)
            mass = self.mixture(tastes, rows, chosen)
            items[rows, slot] = chosen
            propensity[rows, slot] = np.minimum(1.0, mass / (1 - used[rows]))
            used[rows] += mass
        return items, propensity

    def _seen_mass(
        self, tastes: NDArray[np.float64], items: NDArray[np.int64], first: NDArray[np.intp], last: NDArray[np.intp]
    ) -> NDArray[np.float64]:
        """The mixture's mass on what each row's user has seen: `items[first:last]`."""
        sizes = last - first
        rows = np.repeat(np.arange(len(first)), sizes)
        places = np.arange(len(rows)) + np.repeat(first - np.cumsum(sizes) + sizes, sizes)
        mass = self.mixture(tastes, rows, items[places])
        return np.bincount(rows, mass, minlength=len(first)).astype(np.float64)  # integers where nothing is seen

    def _draw_unseen(
        self,
        users: Integers,
        tastes: NDArray[np.float64],
        rows: NDArray[np.intp],
        above: NDArray[np.int64],
        seen: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> NDArray[np.int64]:
        """One item for each of `rows`, neither above it nor seen: by rejection, and exactly where that takes long."""
        chosen = np.empty(len(rows), np.int64)
        open_ = np.arange(len(rows))
        for _ in range(REDRAWS):
            drawn = self.draw(tastes, rows[open_], rng)
            chosen[open_] = drawn
            taken = (above[rows[open_]] == drawn[:, None]).any(axis=1) | self._is_seen(users[rows[open_]], drawn, seen)
            open_ = open_[taken]
            if not len(open_):
                return chosen
        everything = np.arange(self.known)
        for place in open_:
            row = rows[place]
            mass = self.mixture(tastes, np.full(self.known, row), everything)
            mass[self._is_seen(np.full(self.known, users[row]), everything, seen)] = 0.0
            mass[above[row]] = 0.0
            chosen[place] = rng.choice(self.known, p=mass / mass.sum())
        return chosen

    def _is_seen(self, users: Integers, items: Integers, seen: NDArray[np.int64]) -> NDArray[np.bool_]:
        if not len(seen):
            return np.zeros(len(items), np.bool_)
        keys = users * len(self.world.items.category) + items
        return np.asarray(seen[np.minimum(np.searchsorted(seen, keys), len(seen) - 1)] == keys, np.bool_)
