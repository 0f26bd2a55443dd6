"""What could be known at best: each user's taste, by whoever knows the items and the law of the world.

A ranker has to learn from a log what items are and what users want. Take the first half away: who knows every item's
vector, quality and bait has only tastes left to learn, from the same impressions and clicks. What their slates are
worth is a bound that says how much of a ranker's loss lies in the data and not in the ranker.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from shortlist.events.log import EventLog
from shortlist.simulation.behaviour import TASTE, chances, examination, freshness, sigmoid
from shortlist.simulation.population import DIMENSIONS
from shortlist.simulation.world import World

Floats = NDArray[np.float64]
STEPS, LONGEST, CLOSE = 50, 2.0, 1e-4
"""Steps of Fisher scoring at most, the length of one at most, and that at which it ends."""


class Knower:
    """Somebody who knows the world's items, and of each user what a log told until it was read."""

    def __init__(self, world: World, log: EventLog) -> None:
        self.world = world
        user, item, position, at, clicked = shown(world, log)
        self.tastes = np.zeros((len(world.users.taste), DIMENSIONS))
        order = np.argsort(user, kind="stable")
        starts = np.searchsorted(user[order], np.arange(len(self.tastes) + 1))
        offset = world.intercept + world.items.quality[item] + world.items.bait[item]
        offset = offset + freshness(np.maximum(at - world.items.born[item], 0))
        for number in range(len(self.tastes)):
            rows = order[starts[number] : starts[number + 1]]
            vectors = np.asarray(world.items.vector[item[rows]], np.float64)
            self.tastes[number] = most_probable(vectors, offset[rows], examination(position[rows]), clicked[rows])

    def slate(self, user: str, k: int, now: int, exclude: Iterable[str]) -> tuple[str, ...]:
        """What is best by the most probable taste, best first."""
        items, alive = self.world.items, self.world.alive(now)
        affinity = items.vector[:alive] @ self.tastes[self.world.user_number(user)] / TASTE
        age = now - items.born[:alive]
        value = chances(affinity, items.quality[:alive], items.bait[:alive], age, self.world.intercept).value
        closed = self.world.item_numbers(exclude)
        value[closed[closed < alive]] = -np.inf
        best = np.argsort(-value, kind="stable")[:k]
        return tuple(f"i{item}" for item in best if np.isfinite(value[item]))


def shown(
    world: World, log: EventLog
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Every impression of the log: user and item by number, place, time, and whether it was clicked.

    A click belongs to the last impression of its user and item before it.
    """
    held: dict[str, list[NDArray[np.int64]]] = {"impression": [], "click": []}
    for batch in log.scan(columns=["user", "item", "impression.position"]):
        for kind, parts in held.items():
            table, at = batch.table.filter(batch.of_kind(kind)), batch.at[batch.of_kind(kind)]
            user, item = (numbers(table[name].to_pylist()) for name in ("user", "item"))
            places = table["impression.position"].to_pylist() if kind == "impression" else [0] * len(user)
            parts.append(np.stack([user, item, np.array(places, np.int64), np.asarray(at, np.int64)]))
    empty = np.empty((4, 0), np.int64)
    impressions, clicks = (np.concatenate([empty, *held[kind]], axis=1) for kind in ("impression", "click"))
    count = len(world.items.category)
    first = min((int(part[3].min()) for part in (impressions, clicks) if part.size), default=0)
    span = 1 + max((int(part[3].max()) for part in (impressions, clicks) if part.size), default=0) - first
    moments, acted = (
        (part[0] * count + part[1]) * span + part[3] - first for part in (impressions, clicks)
    )  # one number that rises with the pair and, within it, with the time
    order = np.argsort(moments, kind="stable")
    clicked = np.zeros(len(moments), np.bool_)
    clicked[order[np.searchsorted(moments[order], acted, side="right") - 1]] = True
    user, item, position, at = impressions
    return user, item, position, at, clicked


def numbers(ids: Iterable[str]) -> NDArray[np.int64]:
    """The numbers in the ids of the world's users or items."""
    return np.array([int(name[1:]) for name in ids], np.int64)


def most_probable(vectors: Floats, offset: Floats, looked: Floats, clicked: NDArray[np.bool_]) -> Floats:
    """The taste, times its weight in interest, that makes what happened most probable (Fisher scoring).

    A click takes a look, with the probability `looked`, and sigmoid(offset + taste * vector). Before anything is seen
    each of its dimensions is believed to be normal, so that its length is `TASTE`.
    """
    prior = DIMENSIONS / TASTE**2
    taste = np.zeros(DIMENSIONS)
    for _ in range(STEPS):
        chance = sigmoid(np.clip(vectors @ taste + offset, -15, 15))
        no_click = np.maximum(1 - looked * chance, 1e-9)
        slope = np.where(clicked, 1 - chance, -looked * chance * (1 - chance) / no_click)
        weight = looked * chance * (1 - chance) ** 2 / no_click
        information = (vectors * weight[:, None]).T @ vectors + prior * np.eye(DIMENSIONS)
        step = np.linalg.solve(information, vectors.T @ slope - prior * taste)
        length = float(np.linalg.norm(step))
        taste = taste + step * min(1.0, LONGEST / max(length, CLOSE))
        if length < CLOSE:
            break
    return np.asarray(taste)
