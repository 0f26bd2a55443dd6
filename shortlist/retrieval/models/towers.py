"""The two towers at serving: a user becomes a vector, and the index finds the items near it. Needs no torch.

Embeddings are looked up here; what is dense goes through ONNX on one thread. A directory holds `user.onnx`, the tables
as npy, the vocabularies as npz without pickle, `towers.json` and the index: nothing in there can execute code.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.features.entities import EVERYTHING_KNOWN, Entities, Ragged
from shortlist.features.hashing import Hashes, hash_strings
from shortlist.features.index import KeyIndex
from shortlist.onnx_session import session_of
from shortlist.retrieval.vectors.index import Index, Rows, Vectors
from shortlist.retrieval.vectors.products import Kept, taken

AttributeColumn = NDArray[np.float64] | Ragged
"""Numbers (NaN = missing), or any number of hashed values per row."""
CHUNK = 1024
USER_MODEL, FACTS, VOCABULARY, USERS, HISTORY, INDEX = (
    "user.onnx",
    "towers.json",
    "vocabulary.npz",
    "users.npy",
    "history.npy",
    "index",
)
EMPTY_WEIGHT = -6e4
"""The attention logit of an empty place in a history; half a float holds it."""


def places_in(vocabulary: Hashes, hashes: Hashes) -> NDArray[np.int64]:
    """The place (from 1) of each hash in a sorted vocabulary, any shape; 0 where it is unknown."""
    if not len(vocabulary):
        return np.zeros(hashes.shape, np.int64)
    found = np.minimum(np.searchsorted(vocabulary, hashes), len(vocabulary) - 1)
    return np.where(vocabulary[found] == hashes, found + 1, 0)


def attributes_of(
    entities: Entities, names: Sequence[str], hashes: Hashes, positions: NDArray[np.int64] | None = None
) -> dict[str, AttributeColumn]:
    """The attributes of the given entities, one row each; as of log `positions`, or now. An unknown entity has none."""
    rows = entities.rows(hashes)
    known = np.full(len(rows), EVERYTHING_KNOWN) if positions is None else positions
    columns: dict[str, AttributeColumn] = {}
    for name in names:
        attribute = entities.attributes[name]
        versions = attribute.versions(rows, known)
        if attribute.numeric:
            columns[name] = attribute.numbers_of(versions)
        else:
            lengths, words = attribute.words_of(versions)
            columns[name] = Ragged(words, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    return columns


@dataclass(frozen=True)
class Scaling:
    """How a number becomes a model's input: (value - mean) / deviation, and a flag where it is missing."""

    mean: float
    deviation: float

    def apply(self, values: NDArray[np.float64]) -> Vectors:
        """Two columns, shape (n, 2): the scaled value (0 where missing), and 1 where it is missing."""
        missing = ~np.isfinite(values)
        scaled = np.where(missing, 0.0, (values - self.mean) / self.deviation)
        return np.stack([np.clip(scaled, -10, 10), missing], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Category:
    """The embeddings of an attribute's values, shape (v + 1, d); row 0 stands for values that were never seen."""

    vocabulary: Hashes
    table: Vectors

    def mean(self, column: Ragged) -> Vectors:
        """The mean embedding of each row's values, shape (n, d); that of row 0 where it has none."""
        lengths = np.diff(column.offsets)
        out = np.repeat(self.table[:1], len(lengths), axis=0)
        held = np.flatnonzero(lengths)
        if len(held):
            vectors = self.table[places_in(self.vocabulary, column.values)]
            out[held] = np.add.reduceat(vectors, column.offsets[held], axis=0) / lengths[held, None]
        return out


class Towers:
    """A trained pair of towers: user vectors by ONNX, item vectors in the index; rows are items in order of hash."""

    def __init__(
        self,
        session: Any,
        facts: Mapping[str, Any],
        users: tuple[Hashes, Vectors],
        items: tuple[Hashes, Vectors],
        categories: Mapping[str, Category],
        index: Index,
    ) -> None:
        self._session, self.facts, self.categories, self.index = session, facts, categories, index
        self.users, self._user_table = users
        self.items, self._history_table = items
        self._user_places, self._item_places = KeyIndex(), KeyIndex()
        self._user_places.insert(self.users)
        self._item_places.insert(self.items)
        self.scalings = {name: Scaling(*values) for name, values in facts["numbers"].items()}

    @property
    def history(self) -> str:
        """The name of the feature that lists a user's last items."""
        return str(self.facts["history"])

    @property
    def columns(self) -> tuple[str, ...]:
        """The user attributes and context values that the user tower looks at."""
        return (*self.scalings, *self.categories)

    @property
    def item_vectors(self) -> Kept:
        """Every item's vector, shape (items, dimensions), in the order of `items`, as the index keeps them."""
        return self.index.vectors

    def rows_of(self, hashes: Hashes) -> Rows:
        """The row of each item, -1 where the release does not know it."""
        return self._item_places.find(hashes) - np.int32(1)

    def user_vectors(self, users: Hashes, history: NDArray[Any], columns: Mapping[str, AttributeColumn]) -> Vectors:
        """Vectors of length 1, shape (n, dimensions).

        `users` are hashes (0 = nobody), `history` hashes of items, newest first, shape (n, h), 0 where it is shorter;
        `columns` hold n rows of each of `self.columns`. What is unknown or missing has a default that was learned.
        """
        items = np.ascontiguousarray(history).view(np.uint64)[:, : self.facts["history_length"]]
        parts = [
            self._chunk(
                users[start : start + CHUNK],
                items[start : start + CHUNK],
                {name: _rows(columns[name], start, min(start + CHUNK, len(users))) for name in self.columns},
            )
            for start in range(0, len(users), CHUNK)
        ]
        empty = np.empty((0, self.facts["dimensions"]), np.float32)
        return np.concatenate([empty, *parts]) if len(parts) != 1 else parts[0]

    def id_vectors(self, rows: Rows) -> Vectors:
        """The id embeddings of some rows, shape (n, dimensions), as histories have them."""
        vectors: Vectors = self._history_table[rows + 1, :-1].astype(np.float32)
        return vectors

    def _chunk(self, users: Hashes, items: Hashes, columns: Mapping[str, AttributeColumn]) -> Vectors:
        user = self._user_table[self._user_places.find(users)]
        for name, category in self.categories.items():
            column = columns[name]
            assert isinstance(column, Ragged)
            user = user + category.mean(column)
        table = taken(self._history_table, self._item_places.find(items.reshape(-1))).reshape(*items.shape, -1)
        inputs = {"user": user, "history": table[:, :, :-1], "weight": table[:, :, -1]}
        if self.scalings:
            numbers = [scaling.apply(numbers_in(columns[name])) for name, scaling in self.scalings.items()]
            inputs["numbers"] = np.concatenate(numbers, axis=1)
        vectors: Vectors = self._session.run(["vector"], {name: np.ascontiguousarray(v) for name, v in inputs.items()})[
            0
        ]
        return vectors

    @classmethod
    def load(cls, directory: Path) -> Towers:
        """What training wrote. Raises ValueError, saying which part, when something is missing or damaged."""
        try:
            facts = json.loads((directory / FACTS).read_text(encoding="utf-8"))
            with (directory / VOCABULARY).open("rb") as file, np.load(file, allow_pickle=False) as held:
                vocabulary = {name: held[name] for name in held.files}
            categories = {
                name: Category(vocabulary[f"values_{name}"], vocabulary[f"table_{name}"])
                for name in facts["categories"]
            }
            users, items = vocabulary["users"], vocabulary["items"]
            mapped = [mapped_array(directory / name) for name in (USERS, HISTORY)]
            tables = [np.asarray(table) for table in mapped]  # the same memory, without what numpy adds to each access
            session = session_of(directory / USER_MODEL)
            index = Index.load(directory / INDEX)
        except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, RuntimeError) as error:
            raise ValueError(f"the towers in {directory} cannot be read ({error}); train again") from error
        sizes = (len(users) + 1, len(items) + 1, len(items))
        if (len(tables[0]), len(tables[1]), len(index)) != sizes:
            raise ValueError(f"the towers in {directory} do not fit together: files of different trainings?")
        return cls(session, facts, (users, tables[0]), (items, tables[1]), categories, index)


def mapped_array(path: Path) -> NDArray[Any]:
    """An array as it lies in a file, which is being read meanwhile: the first requests are not to wait for a disk."""
    if sys.platform == "linux":
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    held: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return held


def context_columns(
    scalings: Mapping[str, Scaling], names: Sequence[str], context: Mapping[str, Any]
) -> dict[str, AttributeColumn]:
    """One request's context values as columns of one row; what the request does not say is missing."""
    columns: dict[str, AttributeColumn] = {}
    for name in names:
        value = context.get(name)
        if name in scalings:
            columns[name] = np.array([np.nan if value is None else float(value)])
        else:
            columns[name] = words_said([value])
    return columns


def words_said(values: Sequence[str | Sequence[str] | None]) -> Ragged:
    """A text, a list of texts or nothing of each of n rows, as hashes."""
    words = [[] if value is None else [value] if isinstance(value, str) else list(value) for value in values]
    stops = np.cumsum([len(each) for each in words], dtype=np.int64)
    return Ragged(hash_strings([word for each in words for word in each]), np.concatenate([[0], stops]))


def _rows(column: AttributeColumn, start: int, stop: int) -> AttributeColumn:
    if not isinstance(column, Ragged):
        return column[start:stop]
    offsets = column.offsets[start : stop + 1]
    return Ragged(column.values[offsets[0] : offsets[-1]], offsets - offsets[0])


def numbers_in(column: AttributeColumn) -> NDArray[np.float64]:
    """A column of numbers."""
    assert not isinstance(column, Ragged)
    return column
