"""What goes with what? Items weighted by items: a user's own history, summed up, says which items to propose.

Co-visitation, the linear autoencoder and the graph filter differ in how the weights come about; here they are one
sparse matrix, so that all of them answer from the history as it is at this moment, in a fraction of a millisecond.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from shortlist.features.hashing import NOBODY, Hashes, hash_of
from shortlist.features.index import KeyIndex
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Query
from shortlist.pipeline.stages import Filter
from shortlist.retrieval.alignment import Alignment
from shortlist.retrieval.catalogue import Catalogue, Items
from shortlist.retrieval.eligibility import allowed, first_eligible, within
from shortlist.retrieval.index import Rows

WEIGHTS = "weights.npz"
Sums = NDArray[np.float32]


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

    def sums(self, history: Hashes) -> Sums:
        """What a history (hashes, each item once, 0 = none) says of every item, shape (items,); 0 where nothing."""
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
    and describes candidates with `<name>_score`: the sum; NaN for items that the release does not know, and for
    everything where the history says nothing.
    """

    def __init__(
        self,
        name: str,
        model: ItemWeights,
        catalogue: Catalogue,
        user: str,
        history: str,
        quota: int,
        filters: Sequence[Filter] = (),
    ) -> None:
        self.name, self.model, self.catalogue, self.user, self.history = name, model, catalogue, user, history
        self.quota, self.filters = quota, tuple(filters)
        self.alignment = Alignment(model, catalogue)

    def learn(self, query: Query) -> Mapping[str, Any]:
        """What the history says of every item of the release, as `<name>_sums`."""
        return {f"{self.name}_sums": self.sums(query)}

    def sums(self, query: Query) -> Sums:
        """The sums of the query's user as of its `now`; what was learned about the query is not computed again."""
        known: Sums | None = query.known.get(f"{self.name}_sums")
        if known is not None:
            return known
        user = NOBODY if query.user is None else hash_of(query.user)
        read = self.catalogue.table.read({self.user: user}, query.now, query.context, [self.history])
        return self.model.sums(distinct(read[self.history][0]))

    def propose(self, query: Query) -> Candidates:
        """At most `quota` eligible items, greatest sum first; ties in order of hash."""
        sums = self.sums(query)
        positive = np.flatnonzero(sums > 0)
        mask = allowed(query)
        if mask is not None:
            positive = positive[within(mask, self.alignment.items_of(positive.astype(np.int32)))]

        def top(n: int) -> Items:
            items = self.alignment.items_of(greatest(sums, positive, n))
            return items[items >= 0]

        return first_eligible(self.filters, query, self.quota, len(positive), top)

    def describe(self, query: Query, candidates: Candidates) -> Candidates:
        """The same candidates with the column `<name>_score`."""
        rows, sums = self.alignment.rows_of(candidates.items), self.sums(query)
        scores = np.full(len(rows), np.nan)
        if sums.any():
            scores[rows >= 0] = sums[rows[rows >= 0]]
        return candidates.describe({f"{self.name}_score": scores})


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
