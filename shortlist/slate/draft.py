"""A slate that is being made: candidates by relevance, places, and what stands on them so far."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shortlist.pipeline.candidates import Candidates, Column
from shortlist.pipeline.query import Query
from shortlist.slate.values import Mask

Indexes = NDArray[np.intp]
SHAPED = 1_000
"""Places that rules look at; of longer answers, orders of the caller's own items, the rest is by relevance."""


class Draft:
    """The candidates of one request, the most relevant first, and the places of its slate, the top at 0.

    `relevance` falls along the candidates; `rated` are those with a finite score. `slate` holds the candidate of each
    place, -1 where it is open; `free` are the candidates that stand on none. The last `drawn` open places are kept for
    exploration.
    """

    def __init__(self, query: Query, candidates: Candidates, relevance: Column, rated: Mask) -> None:
        self.query, self.candidates, self.relevance, self.rated = query, candidates, relevance, rated
        self.slate: Indexes = np.full(min(query.k, len(candidates), SHAPED), -1)
        self.free: Mask = np.ones(len(candidates), np.bool_)
        self.drawn = 0

    def put(self, candidate: int, place: int) -> None:
        """Let a free candidate stand on an open place."""
        self.slate[place], self.free[candidate] = candidate, False

    def open(self) -> list[int]:
        """The open places that no draw will fill, from the top."""
        places = np.flatnonzero(self.slate < 0).tolist()
        return places[: len(places) - self.drawn]


def scaled(values: Column, ends: Mask) -> Column:
    """Values on a scale from 0 to 1; its ends are the least and the greatest of those chosen, or of all where none is.

    What lies beyond gets the nearer end. Where both ends are the same, they are 1.
    """
    chosen = values[ends] if ends.any() else values
    low, high = (chosen.min(), chosen.max()) if len(chosen) else (0.0, 0.0)
    within: Column = (values.clip(low, high) - low) / (high - low) if high > low else (values >= low).astype(np.float64)
    return within


class Objective(Protocol):
    """What each place is given to."""

    def best(self, allowed: Mask) -> int:
        """The best of the candidates that are allowed; there is one."""

    def placed(self, candidate: int, place: int) -> None:
        """Take note of a candidate that stands on a place now."""


class Constraint(Protocol):
    """What may stand on a place."""

    def allows(self, place: int) -> Mask:
        """True for each candidate that may stand there, free or not."""

    def placed(self, candidate: int, place: int) -> None:
        """Take note of a candidate that stands on a place now."""


class MostRelevant:
    """The objective without diversity."""

    def best(self, allowed: Mask) -> int:
        """The first that is allowed."""
        return int(allowed.argmax())

    def placed(self, candidate: int, place: int) -> None:
        """Nothing changes."""
