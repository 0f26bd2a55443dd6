"""What the factorisation machine learns from: what became of what was shown, and attributes as shares of values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shortlist.features.entities import Entities, Ragged
from shortlist.retrieval.models.machine import steps_of
from shortlist.retrieval.models.towers import AttributeColumn, attributes_of, places_in
from shortlist.training.rows import Judged, Known

Floats = NDArray[np.float64]

SPREAD = 0.3
"""The standard deviation that vectors begin with."""
STEPS = 8
"""Steps that a number is cut into, each with as many owners."""
SHARED_BY = 2
"""Owners that a value of an attribute must have: one that a single item has says no more than its id does."""


class Outcomes(NamedTuple):
    """What became of what was shown, by pair of a user and an item; kernels read it.

    The impressions of pair p are the rows `starts[p]:starts[p + 1]`: the `place` on the screen, the `group` (the step
    of the item's age), `acted`, and `rejected` where users did what the objective weighs below zero. What followed the
    acted on are the rows `further_starts[p]:further_starts[p + 1]`: for each gain but the greatest a group of those
    that came so far, and whether they went on (0.5 or -0.5); for each amount a group, which is `measured`, of its
    logarithms. `against` is the group of rejections, -1 where nobody rejected anything.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    starts: NDArray[np.int64]
    place: NDArray[np.int32]
    group: NDArray[np.int32]
    acted: NDArray[np.bool_]
    rejected: NDArray[np.bool_]
    further_starts: NDArray[np.int64]
    further_group: NDArray[np.int32]
    further: Floats
    measured: NDArray[np.bool_]
    ages: int
    against: int

    @classmethod
    def of(cls, rows: Judged, known: Known, against: Sequence[str] = ()) -> Outcomes:
        """The rows of users and items that have an id; `against` are the kinds of actions that reject an item."""
        users, items = known.users.index_of(rows.user), known.items.index_of(rows.item)
        kept = np.flatnonzero((users >= 0) & (items >= 0))
        kept = kept[np.lexsort((items[kept], users[kept]))]
        users, items, gain = users[kept], items[kept], rows.gain[kept]
        _, place = np.unique(np.where(np.isfinite(rows.rank), rows.rank, 0.0)[kept], return_inverse=True)
        age = ages_of(items, rows.position[kept], rows.now[kept], known.items)
        ages = int(age.max(initial=0)) + 1
        new = (np.diff(users, prepend=-1) != 0) | (np.diff(items, prepend=-1) != 0)
        first, pair = np.flatnonzero(new), np.cumsum(new) - 1
        rejected = np.zeros(len(kept), np.bool_)
        for kind in against:
            rejected |= rows.actions[kind][kept]
        rejected &= gain <= 0
        steps, amounts = steps_up(gain), [logarithms(amount[kept]) for amount in rows.amounts.values()]
        followed = [*steps, *(found for found in amounts if len(found[0]))]
        groups = np.repeat(np.arange(ages, ages + len(followed)), [len(which) for which, _ in followed])
        further = pair[np.concatenate([np.empty(0, np.int64), *(which for which, _ in followed)])]
        order = np.argsort(further, kind="stable")
        measured = np.zeros(ages + len(followed) + int(rejected.any()), np.bool_)
        measured[ages + len(steps) : ages + len(followed)] = True
        return cls(
            users[first].astype(np.int32),
            items[first].astype(np.int32),
            np.append(first, len(kept)),
            place.astype(np.int32),
            age,
            gain > 0,
            rejected,
            np.searchsorted(further[order], np.arange(len(first) + 1)),
            groups[order].astype(np.int32),
            np.concatenate([np.empty(0), *(said for _, said in followed)])[order],
            measured,
            ages,
            ages + len(followed) if rejected.any() else -1,
        )


def steps_up(gain: Floats) -> list[tuple[NDArray[np.int64], Floats]]:
    """For each gain but the greatest: which rows came so far, and 0.5 where they went further, -0.5 where not."""
    found = []
    for least in np.unique(gain[gain > 0])[:-1]:
        which = np.flatnonzero(gain >= least)
        found.append((which, np.where(gain[which] > least, 0.5, -0.5)))
    return found


def logarithms(amount: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Which rows have an amount above zero, and its logarithm."""
    which = np.flatnonzero(np.isfinite(amount) & (amount > 0))
    return which, np.log(amount[which])


def ages_of(
    item: NDArray[np.int32], position: NDArray[np.int64], now: NDArray[np.int64], items: Entities
) -> NDArray[np.int32]:
    """The step of each impression by how long ago its item was first shown, the newest first.

    What was there before anything was shown may be of any age: it is in the last step, with the oldest.
    """
    known = np.zeros(len(items), np.bool_)
    begun = np.full(len(items), position.min() if len(position) else 0)
    for attribute in items.attributes.values():
        known |= attribute.versions(np.arange(1, len(items) + 1, dtype=np.int32), begun) > 0
    before = int(np.flatnonzero(known).max(initial=-1)) + 1  # items stand in the order in which the log named them
    first = np.full(len(items), np.iinfo(np.int64).max)
    np.minimum.at(first, item, now)
    aged = item >= before
    age = np.log1p((now - first[item])[aged])
    edges = np.unique(np.quantile(age, np.arange(1, STEPS) / STEPS)) if len(age) else age
    edges = edges[edges > age.min(initial=0.0)]
    steps = np.full(len(item), len(edges), np.int32)
    steps[aged] = np.searchsorted(edges, age, side="right")
    return steps


@dataclass
class Described:
    """An attribute of one side: which value each owner has with which share, and the values' vectors.

    `keys` are the vocabulary or the edges; row 0 of the written table is what is unknown or missing: nothing.
    """

    keys: NDArray[Any]
    category: bool
    starts: NDArray[np.int64]
    rows: NDArray[np.int32]
    shares: Floats
    table: Floats
    precision: Floats

    @classmethod
    def of(cls, column: AttributeColumn, dimensions: int) -> Described:
        """An attribute as the column of its owners."""
        if isinstance(column, Ragged):
            found, counts = np.unique(column.values, return_counts=True)
            keys: NDArray[Any] = found[(counts >= SHARED_BY) & (found != 0)]
            lengths = np.diff(column.offsets)
            owners, places = np.repeat(np.arange(len(lengths)), lengths), places_in(keys, column.values)
            shares, values = 1.0 / lengths[owners], len(keys)
        else:
            known = column[np.isfinite(column)]
            quantiles = np.quantile(known, np.arange(1, STEPS) / STEPS) if len(known) else np.empty(0)
            keys = np.unique(quantiles)
            owners, places = np.arange(len(column)), steps_of(keys, column)
            shares, values = np.ones(len(column)), len(keys) + 1
        held = np.flatnonzero(places > 0)
        order = held[np.argsort(places[held], kind="stable")]
        starts = np.searchsorted(places[order], np.arange(1, values + 2))
        table, precision = np.zeros((values, dimensions)), np.full(dimensions, 1 / SPREAD**2)
        rows = owners[order].astype(np.int32)
        return cls(keys, isinstance(column, Ragged), starts, rows, shares[order], table, precision)

    @classmethod
    def everyone(cls, owners: int, dimensions: int) -> Described:
        """What all have in common."""
        rows, starts = np.arange(owners, dtype=np.int32), np.array([0, owners])
        table, precision = np.zeros((1, dimensions)), np.full(dimensions, 1 / SPREAD**2)
        return cls(np.empty(0), True, starts, rows, np.ones(owners), table, precision)


def columns_of(entities: Entities, names: Sequence[str]) -> Mapping[str, AttributeColumn]:
    """The attributes of everyone."""
    return attributes_of(entities, names, entities.hashes)
