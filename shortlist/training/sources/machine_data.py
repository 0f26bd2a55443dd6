"""What the factorisation machine learns from: what became of what was shown, and attributes as shares of values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Outcomes:
    """What became of what was shown, one row each: users and items by index, the place on the screen, `acted`.

    First the impressions, `group` is the step of the item's age. Then, where actions differ in gain, what became of the
    acted on: for each gain but the greatest a group of those that came so far, and whether they went further.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    place: NDArray[np.int32]
    group: NDArray[np.int32]
    acted: NDArray[np.bool_]
    impressions: int
    places: int
    ages: int

    def __len__(self) -> int:
        return len(self.acted)

    @classmethod
    def of(cls, rows: Judged, known: Known) -> Outcomes:
        """The rows of users and items that have an id."""
        users, items = known.users.index_of(rows.user), known.items.index_of(rows.item)
        kept = np.flatnonzero((users >= 0) & (items >= 0))
        users, items, gain = users[kept], items[kept], rows.gain[kept]
        _, place = np.unique(np.where(np.isfinite(rows.rank), rows.rank, 0.0)[kept], return_inverse=True)
        places = int(place.max(initial=-1)) + 1
        age = ages_of(items, rows.position[kept], rows.now[kept], known.items)
        ages = int(age.max(initial=0)) + 1
        came = [np.flatnonzero(gain >= least) for least in np.unique(gain[gain > 0])[:-1]]
        which = np.concatenate([np.arange(len(kept)), *came])
        further = [np.full(len(part), ages + number) for number, part in enumerate(came)]
        least = np.concatenate([np.zeros(len(kept)), *(np.full(len(part), gain[part].min()) for part in came)])
        looked = np.full(len(which) - len(kept), places)  # whoever acted has looked
        return cls(
            users[which],
            items[which],
            np.concatenate([place, looked]).astype(np.int32),
            np.concatenate([age, *further]).astype(np.int32),
            gain[which] > least,
            len(kept),
            places,
            ages,
        )


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
