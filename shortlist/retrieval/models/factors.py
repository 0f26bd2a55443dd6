"""Items as vectors, users as the sum of their history's vectors: matrix factorisation that an index can serve.

The vectors are of two kinds, because what an item says of its user is not how much it is wanted: those that are summed
up, and those that are searched. Needs no training library; nothing in the directory can execute code.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.features.hashing import Hashes
from shortlist.features.index import KeyIndex
from shortlist.retrieval.models.towers import AttributeColumn, Scaling
from shortlist.retrieval.vectors.index import Index, Rows, Vectors

FACTORS, INDEX = "factors.npz", "index"


class Factors:
    """A factorised matrix. `items` are the hashes of the rows, `spoken` (items, dimensions) what each says of a user.

    `history` names the feature that lists the user's items. The vectors of the index are what is looked for.
    """

    columns: tuple[str, ...] = ()
    scalings: Mapping[str, Scaling] = {}

    def __init__(self, history: str, items: Hashes, spoken: Vectors, index: Index) -> None:
        self.history, self.items, self.spoken, self.index = history, items, spoken, index
        self._places = KeyIndex()
        self._places.insert(items)

    def rows_of(self, hashes: Hashes) -> Rows:
        """The row of each item, -1 where the release does not know it."""
        return self._places.find(hashes) - np.int32(1)

    def user_vectors(
        self,
        users: Hashes,  # noqa: ARG002  # whoever has the same history has the same vector
        history: NDArray[Any],
        columns: Mapping[str, AttributeColumn],  # noqa: ARG002
    ) -> Vectors:
        """Vectors of length 1, shape (n, dimensions), of histories (hashes of items, 0 = none), shape (n, h).

        An item counts once. Where nothing in the history is known the vector is zero.
        """
        vectors = np.zeros((len(history), self.spoken.shape[1]), np.float32)
        for vector, row in zip(vectors, np.ascontiguousarray(history).view(np.uint64), strict=True):
            places = np.unique(self._places.find(row))
            vector += self.spoken[places[places > 0] - 1].sum(axis=0)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.where(lengths > 0, lengths, np.float32(1)), np.float32)

    def save(self, directory: Path) -> None:
        """Write everything."""
        directory.mkdir(parents=True, exist_ok=True)
        np.savez(directory / FACTORS, history=np.array(self.history), items=self.items, spoken=self.spoken)
        self.index.save(directory / INDEX)

    @classmethod
    def load(cls, directory: Path) -> Factors:
        """What `save` wrote. Raises ValueError when it is missing or damaged."""
        path = directory / FACTORS
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
                history, items, spoken = (held[name] for name in ("history", "items", "spoken"))
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} cannot be read ({error}); train again") from error
        index = Index.load(directory / INDEX)
        if not len(items) == len(spoken) == len(index) or spoken.shape[1] != index.dimensions:
            raise ValueError(f"the factors in {directory} do not fit together; train again")
        return cls(str(history), items, spoken, index)
