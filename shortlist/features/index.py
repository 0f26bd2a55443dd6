"""Where things are: keys to dense row numbers, rows in log order sorted by key, versions of attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from shortlist.features.hashing import Hashes
from shortlist.features.pointers import integers, prefetch, words_of

AHEAD = 16
"""While one key or version is looked up, what says where the one so many places later lies is fetched."""
options: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}


@njit("int64(Array(uint64, 1, 'C', readonly=True), uint64[:,::1], int64, boolean, int32[::1], int64[::1])", **options)
def _probe(keys, slots, rows, insert, found, fresh):  # type: ignore[no-untyped-def]
    """Look up keys by linear probing in (key, row) slots; `insert` gives unseen ones the next row and notes them."""
    mask, slot_p = np.uint64(len(slots) - 1), words_of(slots)
    first = rows
    for i in range(len(keys)):
        if i + AHEAD < len(keys):
            prefetch(slot_p, np.int64(keys[i + AHEAD] & mask) * 2)
        key = keys[i]
        found[i] = 0
        if key == np.uint64(0):
            continue
        place = key & mask
        while slots[place, 0] != key and slots[place, 0] != np.uint64(0):
            place = (place + np.uint64(1)) & mask
        if slots[place, 0] == key:
            found[i] = np.int32(slots[place, 1])
        elif insert:
            rows += 1
            slots[place, 0] = key
            slots[place, 1] = np.uint64(rows)
            found[i] = rows
            fresh[rows - first - 1] = i
    return rows


@njit("void(int32[::1], int64[::1])", **options)
def tally(rows, counts):  # type: ignore[no-untyped-def]
    """Count the occurrences of each row number, into `counts`."""
    for i in range(len(rows)):
        counts[rows[i]] += 1


@njit("void(int32[::1], int64[:,::1], int64[::1], int32[::1], int64[:,::1])", **options)
def scatter(rows, columns, cursor, sorted_rows, records):  # type: ignore[no-untyped-def]
    """One pass of a stable counting sort: move each event (a column of `columns`) behind the earlier ones of its row.

    `cursor` holds where the next event of each row goes; `records` are rows of events.
    """
    width, length = np.uint64(len(columns)), np.uint64(len(rows))
    flat, out = columns.reshape(-1), records.reshape(-1)
    for i in range(length):
        place = cursor[rows[i]]
        cursor[rows[i]] = place + 1
        sorted_rows[place] = rows[i]
        for c in range(width):
            out[np.uint64(place) * width + c] = flat[c * length + i]


@njit("void(int32[::1], int32[::1], int64, int32[::1])", **options)
def chain(latest, previous, first, owners):  # type: ignore[no-untyped-def]
    """Link new versions (numbered from `first`, 1-based in `latest`) in front of their owners' earlier ones."""
    for i in range(len(owners)):
        previous[first + i] = latest[owners[i]]
        latest[owners[i]] = first + i + 1


@njit("void(int32[::1], Array(int32, 1, 'A', readonly=True), int32[::1])", **options)
def newest(latest, owners, found):  # type: ignore[no-untyped-def]
    """The newest version of each owner, 1-based; 0 where there is none."""
    for i in range(len(owners)):
        found[i] = latest[owners[i]] if owners[i] < len(latest) else 0


@njit(
    "void(int32[::1], int32[::1], int64[::1], Array(int32, 1, 'C', readonly=True),"
    " Array(int64, 1, 'C', readonly=True), int32[::1])",
    **options,
)
def version_at(latest, previous, offsets, owners, positions, found):  # type: ignore[no-untyped-def]
    """The version of each owner known at a log position (offset < position), 1-based; 0 where there is none."""
    for i in range(len(owners)):
        version = latest[owners[i]]
        while version > 0 and offsets[version - 1] >= positions[i]:
            version = previous[version - 1]
        found[i] = version


@njit("void(float64[::1], int32[::1], float64[::1])", **options)
def numbers_at(numbers, versions, out):  # type: ignore[no-untyped-def]
    """The number of each version (1-based); NaN for version 0."""
    for i in range(len(versions)):
        out[i] = numbers[versions[i] - 1] if versions[i] > 0 else np.nan


@njit("void(int32[::1], float64[::1], int32[::1], float64[::1])", **options)
def newest_numbers(latest, numbers, owners, out):  # type: ignore[no-untyped-def]
    """The number of each owner's newest version, NaN where there is none; one owner is that of all `out`."""
    each = np.int64(len(owners) > 1)
    for i in range(len(out)):
        owner = owners[i * each]
        version = latest[owner] if owner < len(latest) else 0
        out[i] = numbers[version - 1] if version > 0 else np.nan


@njit("int64(int64[::1], int32[::1], int64[::1])", **options)
def lengths_at(stops, versions, lengths):  # type: ignore[no-untyped-def]
    """How many values each version (1-based) has, none for version 0; and all together."""
    total, stop_p = 0, integers(stops)
    for i in range(len(versions)):
        if i + AHEAD < len(versions):
            prefetch(stop_p, np.int64(versions[i + AHEAD]))
        version = versions[i]
        lengths[i] = 0
        if version > 0:
            lengths[i] = stops[version - 1] - (stops[version - 2] if version > 1 else 0)
            total += lengths[i]
    return total


@njit("void(int64[::1], uint64[::1], int32[::1], int64[::1], uint64[::1])", **options)
def values_at(stops, pool, versions, lengths, out):  # type: ignore[no-untyped-def]
    """The values of all versions, one after the other; `lengths` are what `lengths_at` found."""
    place, pool_p = 0, words_of(pool)
    for i in range(len(versions)):
        if i + AHEAD < len(versions) and versions[i + AHEAD] > 0:
            prefetch(pool_p, stops[versions[i + AHEAD] - 1])
        start = stops[versions[i] - 1] - lengths[i] if lengths[i] > 0 else 0
        for number in range(lengths[i]):
            out[place] = pool[start + number]
            place += 1


@njit("void(float64[:,::1], int64[::1], int64[::1], float64[:,::1])", **options)
def average(values, starts, columns, out):  # type: ignore[no-untyped-def]
    """`out[columns[c], i]` = the mean of `values[c, starts[i]:starts[i + 1]]`, NaN skipped; NaN where none is left."""
    for c in range(len(columns)):
        for i in range(len(starts) - 1):
            n, mean = 0, 0.0
            for k in range(starts[i], starts[i + 1]):
                if values[c, k] == values[c, k]:
                    n += 1
                    mean += values[c, k]
            out[columns[c], i] = mean / n if n > 0 else np.nan


class KeyIndex:
    """64-bit keys to row numbers 1, 2, ... in order of first appearance; 0 is both the missing key and the unknown row.

    `slots` has shape (a power of two, 2): key and row, at most half full.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.slots: NDArray[np.uint64] = np.zeros((1024, 2), np.uint64)

    def find(self, keys: Hashes) -> NDArray[np.int32]:
        """The row of each key, 0 where it is unknown."""
        found = np.empty(len(keys), np.int32)
        _probe(keys, self.slots, self.rows, False, found, NO_PLACES)
        return found

    def insert(self, keys: Hashes) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The row of each key, and where in `keys` each new row first appears, in order of rows."""
        self._reserve(self.rows + len(keys))
        found, fresh = np.empty(len(keys), np.int32), np.empty(len(keys), np.int64)
        before = self.rows
        self.rows = int(_probe(keys, self.slots, before, True, found, fresh))
        return found, fresh[: self.rows - before]

    def keys(self) -> Hashes:
        """The key of each row, in order of rows, shape (rows,)."""
        used = self.slots[self.slots[:, 0] != 0]
        ordered = np.empty(self.rows, np.uint64)
        ordered[used[:, 1].astype(np.int64) - 1] = used[:, 0]
        return ordered

    def _reserve(self, rows: int) -> None:
        if 2 * rows <= len(self.slots):
            return
        keys = self.keys()
        self.slots = np.zeros((1 << (4 * rows - 1).bit_length() - 1, 2), np.uint64)
        _probe(keys, self.slots, 0, True, np.empty(len(keys), np.int32), np.empty(len(keys), np.int64))


NO_PLACES: NDArray[np.int64] = np.empty(0, np.int64)
