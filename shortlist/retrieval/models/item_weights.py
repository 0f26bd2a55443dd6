"""What goes with what? Items weighted by items: a user's own history, summed up, says which items to propose.

Co-visitation, the linear autoencoder and the graph filter differ in how the weights come about; here they are one
sparse matrix, so that all of them answer from the history as it is at this moment, in a fraction of a millisecond.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from shortlist.features.hashing import Hashes
from shortlist.features.index import KeyIndex
from shortlist.pipeline.candidates import Candidates, Column
from shortlist.pipeline.query import Query
from shortlist.pipeline.stages import Filter
from shortlist.retrieval.alignment import Alignment
from shortlist.retrieval.asker import Asker
from shortlist.retrieval.catalogue import Catalogue, Items
from shortlist.retrieval.eligibility import allowed, first_eligible, within
from shortlist.retrieval.vectors.index import Rows

WEIGHTS = "weights.npz"
RECENT = 10
"""The newest items of a history, whose sums also stand alone: what somebody is up to now."""
LEADERS = 200
"""The greatest sums, from which all are measured: histories of different lengths have sums of different sizes."""
Sums = NDArray[np.float32]


@dataclass(frozen=True)
class Said:
    """What a history says of every item of the release: the `sums` of all of it and of its `recent` part, (items,)."""

    sums: Sums
    recent: Sums

    def columns(self, name: str, rows: Rows) -> dict[str, Column]:
        """Of items by row: `<name>_score`, their sums; `<name>_recent`; and `<name>_lead`, by how many standard
        deviations of the leaders a sum is above the leaders' mean. NaN for row -1, and where the history says nothing.
        """
        found = {column: np.full(len(rows), np.nan) for column in columns_of(name)}
        if self.sums.any():
            known = rows >= 0
            score, recent, lead = found.values()
            score[known], recent[known] = self.sums[rows[known]], self.recent[rows[known]]
            leaders = np.partition(self.sums, max(len(self.sums) - LEADERS, 0))[-LEADERS:]
            lead[known] = (score[known] - leaders.mean()) / max(float(leaders.std()), 1e-9)
        return found


def columns_of(name: str) -> tuple[str, str, str]:
    """What a source of this name describes candidates with."""
    return f"{name}_score", f"{name}_recent", f"{name}_lead"


@njit(
    "void(int32[::1], Array(int64, 1, 'C', readonly=True), Array(int32, 1, 'C', readonly=True),"
    " Array(float32, 1, 'C', readonly=True), float32[::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def _add(rows, starts, columns, weights, sums):  # type: ignore[no-untyped-def]
    """Add the weights of each row to `sums`; row -1 has none."""
    for row in rows:
        if row >= 0:
            for place in range(starts[row], starts[row + 1]):
                sums[columns[place]] += weights[place]


class ItemWeights:
    """A sparse matrix, shape (items, items): row i holds what having acted on item i says of the others.

    `items` are the hashes of the rows; `starts` (items + 1), `columns` and `weights` are the rows one after the other.
    """

    def __init__(
        self, items: Hashes, starts: NDArray[np.int64], columns: NDArray[np.int32], weights: NDArray[np.float32]
    ) -> None:
        self.items, self.starts, self.columns, self.weights = items, starts, columns, weights
        self._places = KeyIndex()
        self._places.insert(items)

    def rows_of(self, hashes: Hashes) -> Rows:
        """The row of each item, -1 where the release does not know it."""
        return self._places.find(hashes) - np.int32(1)

    def says(self, history: NDArray[Any]) -> Said:
        """What a history says: hashes, newest first, 0 = none. An item that was acted on twice says nothing more."""
        return Said(self.sums(distinct(history)), self.sums(distinct(history[:RECENT])))

    def sums(self, history: Hashes) -> Sums:
        """The sums of the rows of a history (hashes, each item once), shape (items,); 0 where nothing is known."""
        sums = np.zeros(len(self.items), np.float32)
        _add(self.rows_of(history), self.starts, self.columns, self.weights, sums)
        return sums

    def save(self, directory: Path) -> None:
        """Write the matrix; nothing in there can execute code."""
        directory.mkdir(parents=True, exist_ok=True)
        held = {"items": self.items, "starts": self.starts, "columns": self.columns, "weights": self.weights}
        np.savez(directory / WEIGHTS, **held)  # type: ignore[arg-type]  # numpy's stub takes the arrays for a flag

    @classmethod
    def load(cls, directory: Path) -> ItemWeights:
        """What `save` wrote. Raises ValueError when it is missing or damaged."""
        path = directory / WEIGHTS
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
                items, starts, columns, weights = (held[name] for name in ("items", "starts", "columns", "weights"))
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} cannot be read ({error}); train again") from error
        if len(starts) != len(items) + 1 or starts[-1] != len(columns) or len(columns) != len(weights):
            raise ValueError(f"the arrays in {path} do not fit together; train again")
        if len(columns) and not 0 <= columns.min() <= columns.max() < len(items):
            raise ValueError(f"{path} names items that it does not have; train again")
        return cls(items, starts, columns, weights)


class HistorySource:
    """A query hydrator, a source and a hydrator: sums up the history, proposes what has the greatest positive sums,
    and describes candidates with what it says of them (`Said.columns`).
    """

    def __init__(
        self,
        name: str,
        model: ItemWeights,
        catalogue: Catalogue,
        asker: Asker,
        history: str,
        quota: int,
        filters: Sequence[Filter] = (),
    ) -> None:
        self.name, self.model, self.catalogue, self.asker, self.history = name, model, catalogue, asker, history
        asker.needs([history])
        self.quota, self.filters, self.columns = quota, tuple(filters), columns_of(name)
        self.alignment = Alignment(model, catalogue)

    def learn(self, query: Query) -> Mapping[str, Any]:
        """What the history says of every item of the release, as `<name>_says`."""
        return {f"{self.name}_says": self.says(query)}

    def says(self, query: Query) -> Said:
        """What the user's history says as of the query's `now`; what was learned about the query stands."""
        known: Said | None = query.known.get(f"{self.name}_says")
        if known is not None:
            return known
        return self.model.says(self.asker.columns(query)[self.history][0])

    def propose(self, query: Query) -> Candidates:
        """At most `quota` eligible items, greatest sum first; ties in order of hash."""
        sums = self.says(query).sums
        positive = np.flatnonzero(sums > 0)
        mask = allowed(query)
        if mask is not None:
            positive = positive[within(mask, self.alignment.items_of(positive.astype(np.int32)))]

        def top(n: int) -> Items:
            items = self.alignment.items_of(greatest(sums, positive, n))
            return items[items >= 0]

        return first_eligible(self.filters, query, self.quota, len(positive), top)

    def describe(self, query: Query, candidates: Candidates) -> Candidates:
        """The same candidates with what the history says of them."""
        return candidates.describe(self.says(query).columns(self.name, self.alignment.rows_of(candidates.items)))


def distinct(history: NDArray[Any]) -> Hashes:
    """The items of a history as hashes, each once; an item that was acted on twice says nothing more."""
    hashes: Hashes = np.unique(np.ascontiguousarray(history).view(np.uint64))
    return np.asarray(hashes[hashes != 0])


def greatest(sums: Sums, rows: NDArray[np.intp], n: int) -> Rows:
    """The `n` of these rows with the greatest sums, greatest first; ties in order of row."""
    if n < len(rows):
        threshold = np.partition(sums[rows], len(rows) - n)[len(rows) - n]
        rows = rows[sums[rows] >= threshold]
    return rows[np.argsort(-sums[rows], kind="stable")][:n].astype(np.int32)
