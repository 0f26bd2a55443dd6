"""A world whose truth is known: what each user would do with each item, and so the best slate there is.

A world is a pure function of its parameters: the same parameters make the same users, items and tastes. What is
random afterwards (what was shown, what was clicked) takes a generator of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.events.schema import Event
from shortlist.simulation.behaviour import DAY_MS, Chances, Integers, chances, examination, respond, sigmoid
from shortlist.simulation.population import (
    ADJECTIVES,
    COUNTRIES,
    DEVICES,
    NOUNS,
    Items,
    Topics,
    Users,
    category_names,
    tag_names,
)

BASE_RATE = 0.08
"""The mean probability of a click over examined pairs of a user and an item that have nothing to do with each other."""

MONDAY = 1_767_571_200_000
"""2026-01-05 00:00 UTC in ms: a fixed start, so that a world without one is the same every day."""

NOTHING: frozenset[str] = frozenset()


class World:
    """Users `u0`, `u1` ... in the order in which they join, items `i0`, `i1` ... in the order of their birth.

    `start` is when the history begins (ms UTC), `days` its length; items go on being born for `ahead` days after it.
    At least one category. Raises ValueError on a negative size or a history without length.
    """

    def __init__(
        self,
        seed: int = 0,
        users: int = 1_000,
        items: int = 2_000,
        categories: int = 20,
        start: int = MONDAY,
        days: int = 90,
        ahead: int = 14,
    ) -> None:
        if min(users, items, ahead) < 0 or min(categories, days) < 1:
            raise ValueError(
                f"a world of {users} users, {items} items, {categories} categories, {days} days and {ahead} ahead: "
                "users, items and ahead must be at least 0, categories and days at least 1"
            )
        self.parameters: Mapping[str, int] = {
            "seed": seed, "users": users, "items": items, "categories": categories,
            "start": start, "days": days, "ahead": ahead,
        }  # fmt: skip
        self.start, self.end = start, start + days * DAY_MS
        rng = np.random.default_rng([seed, 1])
        self.topics = Topics.draw(categories, rng)
        self.users = Users.draw(users, self.topics, start, self.end, rng)
        self.items = Items.draw(items, self.topics, start, self.end + ahead * DAY_MS, rng)
        self.categories = category_names(categories)
        self.tags = tag_names(self.categories)
        self.intercept = self._calibrated(rng)

    def _calibrated(self, rng: np.random.Generator) -> float:
        """The intercept at which the mean click probability of 20,000 drawn pairs is `BASE_RATE`, by bisection."""
        if not len(self.users.taste) or not len(self.items.vector):
            return 0.0
        user, item = rng.integers(0, len(self.users.taste), 20_000), rng.integers(0, len(self.items.vector), 20_000)
        interest = self._chances(user, item, np.full(20_000, self.end), 0.0).interest
        low, high = -30.0, 30.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if sigmoid(middle + interest).mean() > BASE_RATE else (middle, high)
        return low

    def _chances(self, user: Integers, item: Integers, at: Integers, intercept: float) -> Chances:
        affinity = np.einsum("nd,nd->n", self.users.taste[user], self.items.vector[item])
        age = np.maximum(at - self.items.born[item], 0)
        return chances(affinity, self.items.quality[item], self.items.bait[item], age, intercept)

    def chances(self, user: Integers, item: Integers, at: Integers) -> Chances:
        """What follows an examined impression of item number `item[i]` to user number `user[i]` at `at[i]` ms."""
        return self._chances(user, item, at, self.intercept)

    def user_number(self, user: str) -> int:
        """The number in the id of a user. Raises KeyError for a user that this world does not have."""
        return _number(user, "u", len(self.users.taste))

    def item_numbers(self, items: Iterable[str]) -> NDArray[np.int64]:
        """The numbers in the ids of items. Raises KeyError for an item that this world does not have."""
        return np.array([_number(item, "i", len(self.items.vector)) for item in items], np.int64)

    def alive(self, now: int) -> int:
        """How many items are born by `now`: the items `i0` to `i{alive - 1}`."""
        return int(np.searchsorted(self.items.born, now, side="right"))

    def values(self, users: Integers, now: int) -> NDArray[np.float64]:
        """The expected gain of an examined impression of every item alive, shape (users, items alive)."""
        n = self.alive(now)
        affinity = self.users.taste[users] @ self.items.vector[:n].T
        age = now - self.items.born[:n]
        return chances(affinity, self.items.quality[:n], self.items.bait[:n], age, self.intercept).value

    def expected_value(self, user: str, items: Sequence[str], now: int) -> NDArray[np.float64]:
        """The expected gain of each item for this user, once examined; 0 for an item that is not born yet.

        A gain is the sum of `behaviour.GAINS` over what the user does with the impression. Raises KeyError on an
        unknown id.
        """
        numbers = self.item_numbers(items)
        users = np.full(len(numbers), self.user_number(user))
        value = self.chances(users, numbers, np.full(len(numbers), now)).value
        return np.where(self.items.born[numbers] <= now, value, 0.0)

    def slate_value(self, user: str, slate: Sequence[str], now: int) -> float:
        """The expected gain of a slate: its items' values, each weighed by the examination of its position."""
        positions = np.arange(1, len(slate) + 1)
        return float(self.expected_value(user, slate, now) @ examination(positions))

    def best_slate(self, user: str, k: int, now: int, exclude: Iterable[str] = NOTHING) -> tuple[str, ...]:
        """The slate of `k` items with the highest `slate_value` of all slates without the excluded items, best first.

        Examination falls with the position and does not depend on the item, so the best slate is the k most valuable
        items in the order of their value (rearrangement inequality); ties go to the older item.
        """
        value = self.values(np.array([self.user_number(user)]), now)[0]
        return self._named(_best(value, k, self.item_numbers(exclude)))

    def popular_slate(self, k: int, now: int, exclude: Iterable[str] = NOTHING) -> tuple[str, ...]:
        """The best slate that is the same for everyone: what no ranking by popularity can exceed on average.

        Measured on a sample of at most 256 users, drawn by their activity.
        """
        return self._named(_best(self._mean_value(now), k, self.item_numbers(exclude)))

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a world lives as long as its program; one pass costs seconds
    def _mean_value(self, now: int) -> NDArray[np.float64]:
        rng = np.random.default_rng([self.parameters["seed"], 2])
        weights = self.users.activity / self.users.activity.sum()
        sample = rng.choice(len(weights), min(256, len(weights)), replace=False, p=weights)
        total = np.zeros(self.alive(now))
        for user in sample:
            total += self.values(np.array([user]), now)[0]
        return total / max(1, len(sample))

    def fair_exposure(
        self, users: Sequence[str], k: int, now: int, seen: Mapping[str, Iterable[str]] | None = None
    ) -> NDArray[np.float64]:
        """The exposure that each item alive gets when each of these users is shown their own best slate.

        Exposure is the examination of the item's position, summed over users. This is the merit that an item has
        earned by the truth: a group of items (the new ones, say) is treated fairly when its exposure under a ranker
        comes near its sum here. `seen` holds what each user must not be shown again.
        """
        exposure = np.zeros(self.alive(now))
        for user in users:
            value = self.values(np.array([self.user_number(user)]), now)[0]
            best = _best(value, k, self.item_numbers((seen or {}).get(user, ())))
            exposure[best] += examination(np.arange(1, len(best) + 1))
        return exposure

    def answer(self, user: str, slate: Sequence[str], now: int, rng: np.random.Generator) -> list[Event]:
        """What the user does with a slate shown at `now`: click, watch, like and hide events in the order of time.

        The impressions themselves are the ranker's to log. Raises KeyError on an id that this world does not have.
        """
        numbers = self.item_numbers(slate)
        users = np.full(len(numbers), self.user_number(user))
        positions = np.arange(1, len(numbers) + 1)
        done = respond(self.chances(users, numbers, np.full(len(numbers), now)), positions, rng)
        events = []
        for place, item in enumerate(slate):
            keys = {"user": user, "item": item}
            if done.click[place]:
                events.append(Event("click", now + int(done.acted_after[place]), keys))
            if done.watch[place]:
                seconds = {"seconds": float(done.seconds[place])}
                events.append(Event("watch", now + int(done.watched_after[place]), keys, seconds))
            if done.like[place]:
                events.append(Event("like", now + int(done.liked_after[place]), keys))
            if done.hide[place]:
                events.append(Event("hide", now + int(done.acted_after[place]), keys))
        return sorted(events, key=lambda event: event.at)

    def births(self, since: int, until: int) -> list[Event]:
        """The entity events of the items born after `since` and not after `until` (ms), oldest first."""
        return [
            Event("item", int(self.items.born[i]), {"item": f"i{i}"}, self.item_attributes(i))
            for i in range(self.alive(since), self.alive(until))
        ]

    def item_attributes(self, item: int) -> dict[str, Any]:
        """What everyone can see of item number `item`."""
        items = self.items
        return {
            "category": self.categories[items.category[item]],
            "creator": f"c{items.creator[item]}",
            "tags": [self.tags[tag] for tag in np.unique(items.tags[item])],
            "title": self.title(item),
            "published": int(items.born[item]),
        }

    def title(self, item: int) -> str:
        """A title, such as "Quiet Journey 17"."""
        return f"{ADJECTIVES[item % len(ADJECTIVES)]} {NOUNS[item // 11 % len(NOUNS)]} {item // 110 + 1}"

    def user_attributes(self, user: int) -> dict[str, Any]:
        """What everyone can see of user number `user`."""
        users = self.users
        return {
            "age": int(users.age[user]),
            "device": DEVICES[users.device[user]],
            "country": COUNTRIES[users.country[user]],
        }

    def _named(self, numbers: Integers) -> tuple[str, ...]:
        return tuple(f"i{number}" for number in numbers)


def _number(name: str, letter: str, count: int) -> int:
    digits = name[1:]
    if name[:1] != letter or not digits.isdecimal() or int(digits) >= count:
        raise KeyError(f"{name!r} is not of this world, which has {letter}0 to {letter}{count - 1}")
    return int(digits)


def _best(value: NDArray[np.float64], k: int, exclude: Integers) -> NDArray[np.intp]:
    """The indexes of the `k` greatest values outside `exclude`, greatest first, ties by index."""
    value = value.copy()
    value[exclude[exclude < len(value)]] = -np.inf
    k = min(k, int(np.isfinite(value).sum()))
    if k <= 0:
        return np.empty(0, np.intp)
    least = np.partition(value, len(value) - k)[len(value) - k]
    chosen = np.flatnonzero(value >= least)
    return chosen[np.argsort(-value[chosen], kind="stable")][:k]
