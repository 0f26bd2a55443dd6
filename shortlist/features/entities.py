"""Who there is, and what is known of them: ids, and attributes point in time by log order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shortlist.events.batch import Batch
from shortlist.events.schema import Entity
from shortlist.features.hashing import Hashes, Ids, hash_strings, hashes_of
from shortlist.features.index import (
    KeyIndex,
    chain,
    lengths_at,
    newest,
    newest_numbers,
    numbers_at,
    values_at,
    version_at,
)
from shortlist.features.windows import attribute_types
from shortlist.framing.problems import nearest

EVERYTHING_KNOWN = 2**62
"""A log position behind every event."""
NEVER_NAMED = -1


@dataclass(frozen=True)
class Ragged:
    """Several values for each of n owners: those of owner i are `values[offsets[i]:offsets[i + 1]]`."""

    values: Hashes
    offsets: NDArray[np.int64]


class Growing:
    """A numpy array that is appended to in amortised constant time."""

    def __init__(self, dtype: type, fill: float = 0) -> None:
        self._block: NDArray[Any] = np.full(64, fill, dtype)
        self._fill = fill
        self.size = 0

    @property
    def values(self) -> NDArray[Any]:
        """What was appended; a view."""
        return self._block[: self.size]

    def resize(self, size: int) -> None:
        """Grow to `size` entries; new ones have the fill value."""
        if size > len(self._block):
            block = np.full(max(size, 2 * len(self._block)), self._fill, self._block.dtype)
            block[: self.size] = self.values
            self._block = block
        self.size = size

    def extend(self, values: NDArray[Any]) -> None:
        """Append."""
        before = self.size
        self.resize(before + len(values))
        self._block[before : self.size] = values


class Names:
    """Strings and their hashes: learns each new string once, in order of first appearance."""

    def __init__(self) -> None:
        self.index = KeyIndex()
        self.strings: list[str] = []

    def learn(self, hashes: Hashes, strings: pa.Array) -> NDArray[np.int32]:
        """The row (1, 2, ...) of each string, 0 for null; `hashes` are theirs."""
        rows, fresh = self.index.insert(hashes)
        if len(fresh):
            self.strings += strings.take(pa.array(fresh)).to_pylist()
        return rows

    def text(self, hashes: Hashes) -> list[str | None]:
        """The string of each hash, None where it is unknown or 0."""
        return [self.strings[row - 1] if row else None for row in self.index.find(hashes).tolist()]


class Attribute:
    """One attribute of every entity, every version of it in log order: numbers, or lists of string hashes."""

    def __init__(self, numeric: bool) -> None:
        self.numeric = numeric
        self.latest = Growing(np.int32)
        self.previous, self.offsets = Growing(np.int32), Growing(np.int64)
        self.numbers = Growing(np.float64)
        self.stops, self.pool = Growing(np.int64), Growing(np.uint64)

    def append(self, owners: NDArray[np.int32], offsets: NDArray[np.int64]) -> None:
        """Link one more version for each owner; the caller has appended the values."""
        first = self.previous.size
        self.previous.resize(first + len(owners))
        self.offsets.extend(offsets)
        chain(self.latest.values, self.previous.values, first, owners)

    def versions(self, owners: NDArray[np.int32], positions: NDArray[np.int64]) -> NDArray[np.int32]:
        """The version of each owner known at each log position, 1-based; 0 where there is none."""
        found = np.empty(len(owners), np.int32)
        version_at(self.latest.values, self.previous.values, self.offsets.values, owners, positions, found)
        return found

    def newest(self, owners: NDArray[np.int32]) -> NDArray[np.int32]:
        """The version of each owner with everything known, 1-based; 0 where there is none."""
        found = np.empty(len(owners), np.int32)
        newest(self.latest.values, owners, found)
        return found

    def fill_newest(self, owners: NDArray[np.int32], out: NDArray[np.float64]) -> None:
        """Write the number of each owner, or of the one for all, with everything known; NaN where there is none."""
        newest_numbers(self.latest.values, self.numbers.values, owners, out)

    def numbers_of(self, versions: NDArray[np.int32]) -> NDArray[np.float64]:
        """The number of each version; NaN for version 0."""
        numbers = np.empty(len(versions))
        numbers_at(self.numbers.values, versions, numbers)
        return numbers

    def words_of(self, versions: NDArray[np.int32]) -> tuple[NDArray[np.int64], Hashes]:
        """How many values each version has, and all of them, one version after the other."""
        lengths = np.empty(len(versions), np.int64)
        values = np.empty(lengths_at(self.stops.values, versions, lengths), np.uint64)
        values_at(self.stops.values, self.pool.values, versions, lengths, values)
        return lengths, values

    def forget_history(self) -> None:
        """Keep only the latest version of each owner."""
        owners = np.flatnonzero(self.latest.values).astype(np.int32)
        kept = self.latest.values[owners].astype(np.int32)
        fresh = Attribute(self.numeric)
        fresh.latest.resize(self.latest.size)
        if self.numeric:
            fresh.numbers.extend(self.numbers_of(kept))
        else:
            lengths, words = self.words_of(kept)
            fresh.stops.extend(np.cumsum(lengths))
            fresh.pool.extend(words)
        fresh.append(owners, self.offsets.values[kept - 1].astype(np.int64))
        self.__dict__.update(fresh.__dict__)


class Entities:
    """Everyone of one entity: ids in order of first appearance in any event, and their attributes.

    An id is known from the first event that names it; its attributes come from the events whose kind is the entity.
    Index i of `ids`, `hashes`, `available` and attributes is the same entity.
    """

    def __init__(self, entity: Entity) -> None:
        self.entity = entity
        self.names = Names()
        self.words = Names()
        self.named = Growing(np.int64, NEVER_NAMED)
        self.types = attribute_types(entity)
        self.attributes = {name: Attribute(known not in ("str", "list[str]")) for name, known in self.types.items()}

    def __len__(self) -> int:
        return self.names.index.rows

    @property
    def ids(self) -> Sequence[str]:
        """Every known id, in order of first appearance."""
        return self.names.strings

    @property
    def hashes(self) -> Hashes:
        """The hash of each id."""
        return self.names.index.keys()

    @property
    def available(self) -> NDArray[np.bool_]:
        """False for each entity that an event took out of the catalogue."""
        numbers = self.attribute("available")
        assert isinstance(numbers, np.ndarray)
        return np.asarray(numbers != 0.0)

    def index_of(self, ids: Ids) -> NDArray[np.int32]:
        """The index of each id (or hash of an id), -1 where it is unknown."""
        return self.rows(hashes_of(ids)) - np.int32(1)

    def rows(self, hashes: Hashes) -> NDArray[np.int32]:
        """Index + 1 of each hash, 0 where it is unknown."""
        return self.names.index.find(hashes)

    def named_since(self, position: int) -> NDArray[np.intp]:
        """The indexes of those that an event at log `position` or behind it has named; restored ones were not."""
        return np.flatnonzero(self.named.values >= position)

    def attribute(self, name: str) -> NDArray[np.float64] | Ragged:
        """The current values of an attribute: numbers (NaN = missing), or hashes of strings (`text` reads them)."""
        if name not in self.attributes:
            raise KeyError(f"{self.entity.name!r} has no attribute {name!r}; {nearest(name, self.attributes)}")
        attribute = self.attributes[name]
        versions = np.zeros(len(self), np.int32)
        latest = attribute.latest.values[1:]
        versions[: len(latest)] = latest
        if attribute.numeric:
            return attribute.numbers_of(versions)
        lengths, words = attribute.words_of(versions)
        return Ragged(words, np.concatenate([[0], np.cumsum(lengths)]))

    def text(self, hashes: Hashes) -> list[str | None]:
        """The strings of attribute values, None where one is unknown."""
        return self.words.text(hashes)

    def update(self, batch: Batch) -> None:
        """Learn the ids that a batch names and the attributes that it sets; batches come in offset order."""
        name = self.entity.name
        if name not in batch.schema.names:
            return
        strings = batch.strings(name)
        rows = self.names.learn(hash_strings(strings), strings)
        self.named.resize(len(self))
        self.named.values[rows[rows > 0] - 1] = batch.offset[rows > 0]
        for attribute in self.attributes.values():
            attribute.latest.resize(len(self) + 1)
        told = batch.of_kind(name)
        if told.any():
            for known in self.attributes:
                self._set(batch, known, rows, told)

    def forget_history(self) -> None:
        """Drop superseded versions of attributes where they are most of what is kept; reads of the past need them."""
        for attribute in self.attributes.values():
            if attribute.previous.size > 2 * len(self) + 1024:
                attribute.forget_history()

    def _set(self, batch: Batch, name: str, rows: NDArray[np.int32], told: NDArray[np.bool_]) -> None:
        column, attribute = f"{self.entity.name}.{name}", self.attributes[name]
        if column not in batch.schema.names or not batch.has(column):
            return
        if attribute.numeric:
            numbers = batch.numbers(column)
            chosen = np.flatnonzero(told & ~np.isnan(numbers))
            attribute.numbers.extend(numbers[chosen])
        else:
            array = batch.strings(column)
            chosen = np.flatnonzero(told & pc.is_valid(array).to_numpy(zero_copy_only=False))
            array = array.take(pa.array(chosen))
            listed = pa.types.is_list(array.type)
            flat = array.flatten() if listed else array
            lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False) if listed else np.ones(len(array))
            hashes = hash_strings(flat)
            self.words.learn(hashes, flat)
            owners = np.repeat(np.arange(len(array)), lengths.astype(np.int64))
            kept = _first_of_each(owners, hashes)
            counts = np.bincount(owners[kept], minlength=len(array))
            attribute.stops.extend(attribute.pool.size + np.cumsum(counts))
            attribute.pool.extend(hashes[kept])
        attribute.append(rows[chosen], batch.offset[chosen])


def _first_of_each(owners: NDArray[np.int64], hashes: Hashes) -> NDArray[np.bool_]:
    """True for the first of each value that an owner has; False for its repetitions and for nulls."""
    order = np.lexsort((hashes, owners))
    again = (np.diff(owners[order]) == 0) & (hashes[order][1:] == hashes[order][:-1])
    kept: NDArray[np.bool_] = np.asarray(hashes != 0)
    kept[order[1:][again]] = False
    return kept
