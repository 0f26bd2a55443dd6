"""What a read is asked and what it answers: rows in, columns out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.features.hashing import Ids
from shortlist.framing.problems import nearest


@dataclass(frozen=True)
class Columns:
    """Feature values: `values[f, r]` is feature `names[f]` of row r, NaN where it is missing.

    `lists[name]` has shape (rows, n): hashes of strings (int64, 0 = none), or numbers (float64, NaN = none); best or
    newest first. `position` is the log position that was known, `late` how many events came too late for each
    windowed feature (filled by replay).
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    lists: Mapping[str, NDArray[Any]]
    position: int
    late: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.values.shape[1])

    def __getitem__(self, name: str) -> NDArray[Any]:
        """One column, or one list."""
        if name in self.lists:
            return self.lists[name]
        if name not in self.names:
            raise KeyError(f"no column {name!r}; {nearest(name, [*self.names, *self.lists])}")
        column: NDArray[np.float64] = self.values[self.names.index(name)]
        return column


@dataclass(frozen=True)
class Rows:
    """Rows of a training set: ids per entity, and for each row the log position it may know and the time it asks.

    A row knows exactly the events with offset < `position`; `now` is ms UTC. `context` holds the request's values:
    one for all rows, or one per row.
    """

    ids: Mapping[str, Ids]
    position: NDArray[np.int64] | Sequence[int]
    now: NDArray[np.int64] | Sequence[int]
    context: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.position)
