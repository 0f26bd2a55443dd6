"""A factorisation machine at serving: a user and an item are each a sum of vectors, and their product is a log-odds.

Both sides are a start, what the id adds, and the mean of what each attribute's values add. Whoever is unknown is the
start and the attributes, so that newcomers and new items have a vector at once. Nothing in the directory can execute
code.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.features.entities import Entities, Ragged
from shortlist.features.hashing import Hashes
from shortlist.features.index import KeyIndex
from shortlist.retrieval.models.towers import AttributeColumn, Category, Scaling, attributes_of
from shortlist.retrieval.vectors.index import Index, Rows, Vectors

FACTS, TABLES, INDEX = "machine.json", "machine.npz", "index"
SIDES = ("user", "item")


@dataclass(frozen=True)
class Steps:
    """The vectors of a number's steps, shape (s + 1, d): row i + 1 for what lies between edge i - 1 and edge i.

    Row 0 stands for a number that is missing.
    """

    edges: NDArray[np.float64]
    table: Vectors

    def mean(self, column: AttributeColumn) -> Vectors:
        """The vector of each number, shape (n, d)."""
        assert not isinstance(column, Ragged)
        return self.table[steps_of(self.edges, column)]


def steps_of(edges: NDArray[np.float64], numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """The step (from 1) of each number, 0 where it is missing."""
    found = np.searchsorted(edges, numbers, side="right") + 1
    return np.where(np.isfinite(numbers), found, 0).astype(np.int64)


@dataclass(frozen=True)
class Side:
    """One side: the `start`, shape (d,), what each of `ids` adds, shape (n + 1, d), row 0 nothing, and attributes."""

    start: Vectors
    ids: Hashes
    table: Vectors
    attributes: Mapping[str, Category | Steps]

    def vectors(self, places: NDArray[np.int32], columns: Mapping[str, AttributeColumn]) -> Vectors:
        """The vectors of ids by place (from 1; 0 is unknown), shape (n, d)."""
        total = self.start + self.table[places]
        for name, attribute in self.attributes.items():
            total = total + attribute.mean(columns[name])  # type: ignore[arg-type]  # each kind gets its own columns
        return np.asarray(total, np.float32)


class Machine:
    """A fitted machine: user and item vectors, and the index of the items, in the order of `items`."""

    history = ""
    scalings: Mapping[str, Scaling] = {}

    def __init__(self, user: Side, item: Side, index: Index) -> None:
        self.user, self.item, self.index = user, item, index
        self._users, self._items = KeyIndex(), KeyIndex()
        self._users.insert(user.ids)
        self._items.insert(item.ids)

    @property
    def items(self) -> Hashes:
        """The hashes of the items, one per row of the index."""
        return self.item.ids

    @property
    def columns(self) -> tuple[str, ...]:
        """The user attributes that it looks at."""
        return tuple(self.user.attributes)

    @property
    def looks_at(self) -> tuple[str, ...]:
        """The item attributes that it looks at."""
        return tuple(self.item.attributes)

    def rows_of(self, hashes: Hashes) -> Rows:
        """The row of each item, -1 where the release does not know it."""
        return self._items.find(hashes) - np.int32(1)

    def user_vectors(
        self,
        users: Hashes,
        history: NDArray[Any],  # noqa: ARG002  # what the user did is in the vector of the id
        columns: Mapping[str, AttributeColumn],
    ) -> Vectors:
        """The vectors of users, known to the release or not, shape (n, d)."""
        return self.user.vectors(self._users.find(users), columns)

    def vectors(self, items: Entities, hashes: Hashes, positions: NDArray[np.int64] | None = None) -> Vectors:
        """The vectors of items as they are described now, or were at log `positions`; known to the release or not."""
        return self.item.vectors(self._items.find(hashes), attributes_of(items, self.looks_at, hashes, positions))

    def save(self, directory: Path) -> None:
        """Write everything."""
        directory.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, NDArray[Any]] = {}
        for name, side in zip(SIDES, (self.user, self.item), strict=True):
            arrays |= {f"{name}_start": side.start, f"{name}_ids": side.ids, f"{name}_table": side.table}
            for attribute, held in side.attributes.items():
                kind, keys = ("category", held.vocabulary) if isinstance(held, Category) else ("steps", held.edges)
                arrays |= {f"{name}_{kind}_{attribute}": keys, f"{name}_values_{attribute}": held.table}
        np.savez(directory / TABLES, **arrays)  # type: ignore[arg-type]  # the stub takes the names for its own flag
        facts = {
            name: {attribute: isinstance(held, Category) for attribute, held in side.attributes.items()}
            for name, side in zip(SIDES, (self.user, self.item), strict=True)
        }
        (directory / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        self.index.save(directory / INDEX)

    @classmethod
    def load(cls, directory: Path) -> Machine:
        """What `save` wrote. Raises ValueError when something is missing or damaged."""
        try:
            facts = json.loads((directory / FACTS).read_text(encoding="utf-8"))
            with (directory / TABLES).open("rb") as file, np.load(file, allow_pickle=False) as held:
                arrays = {name: held[name] for name in held.files}
            sides = [side_of(name, facts[name], arrays) for name in SIDES]
            index = Index.load(directory / INDEX)
        except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, RuntimeError) as error:
            raise ValueError(f"the machine in {directory} cannot be read ({error}); train again") from error
        together = all(len(side.table) == len(side.ids) + 1 for side in sides) and len(sides[1].ids) == len(index)
        if not together or any(len(side.start) != index.dimensions for side in sides):
            raise ValueError(f"the machine in {directory} does not fit together: files of different trainings?")
        return cls(sides[0], sides[1], index)


def side_of(name: str, facts: Mapping[str, bool], arrays: Mapping[str, NDArray[Any]]) -> Side:
    """One side of what `Machine.save` wrote; `facts` says which attributes are categories."""
    attributes: dict[str, Category | Steps] = {}
    for attribute, category in facts.items():
        table = arrays[f"{name}_values_{attribute}"]
        if category:
            attributes[attribute] = Category(arrays[f"{name}_category_{attribute}"], table)
        else:
            attributes[attribute] = Steps(arrays[f"{name}_steps_{attribute}"], table)
    return Side(arrays[f"{name}_start"], arrays[f"{name}_ids"], arrays[f"{name}_table"], attributes)
