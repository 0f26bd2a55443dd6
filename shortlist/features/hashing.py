"""Stable 64-bit hashes of ids and strings: what state, keys and stores hold instead of text. 0 means missing.

The same string has the same hash on every machine and in every release of the law; a collision merges two keys, with
probability n^2 / 2^65 (3e-8 for a million ids).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Ids = Sequence[str] | Hashes

NOTHING = np.uint64(0)
EVERYTHING = np.uint64(0x9E3779B97F4A7C15)
"""The key of the one row that is grouped by nothing."""
NOBODY: Hashes = np.zeros(1, np.uint64)
"""The hash of no one: everything about it is missing."""


@njit(
    [
        "void(Array(uint8, 1, 'C', readonly=True), Array(int32, 1, 'C', readonly=True), uint64[::1])",
    ],
    cache=True,
    nogil=True,
    error_model="numpy",
)
def _hash_utf8(data, offsets, out):  # type: ignore[no-untyped-def]
    """Eight bytes at a time, multiply and fold; then MurmurHash3's finaliser. Never 0."""
    for i in range(len(out)):
        start, stop = np.int64(offsets[i]), np.int64(offsets[i + 1])
        h = np.uint64(stop - start) * np.uint64(0x9E3779B97F4A7C15)
        while start < stop:
            word = np.uint64(0)
            if stop - start >= 8:
                for k in range(8):
                    word |= np.uint64(data[start + k]) << np.uint64(8 * k)
            else:
                for k in range(stop - start):
                    word |= np.uint64(data[start + k]) << np.uint64(8 * k)
            h = (h ^ word) * np.uint64(0xBF58476D1CE4E5B9)
            h ^= h >> np.uint64(32)
            start += 8
        h ^= h >> np.uint64(33)
        h *= np.uint64(0xFF51AFD7ED558CCD)
        h ^= h >> np.uint64(33)
        h *= np.uint64(0xC4CEB9FE1A85EC53)
        h ^= h >> np.uint64(33)
        out[i] = h if h != np.uint64(0) else np.uint64(1)


def hash_strings(strings: pa.Array | Sequence[str | None]) -> Hashes:
    """The hash of each string, shape (n,); 0 for null."""
    array = strings if isinstance(strings, pa.Array) else pa.array(strings, pa.string())
    if pa.types.is_dictionary(array.type):
        chosen = array.indices.fill_null(0).to_numpy(zero_copy_only=False)
        out = hash_strings(array.dictionary)[chosen] if len(array.dictionary) else np.zeros(len(array), np.uint64)
    else:
        array = array if array.type == pa.string() else array.cast(pa.string())
        out = np.empty(len(array), np.uint64)
        _, offsets, data = array.buffers()
        if len(array) and offsets is not None:
            bounds = np.frombuffer(offsets, np.int32, len(array) + 1, 4 * array.offset)
            _hash_utf8(np.frombuffer(data or b"\0", np.uint8), bounds, out)
    if array.null_count:
        out[array.is_null().to_numpy(zero_copy_only=False)] = 0
    return out


@lru_cache(maxsize=8_192)
def hash_of(string: str) -> Hashes:
    """The hash of one string, shape (1,), not to be written to; remembered, because a request asks for it often."""
    text, hashed = string.encode(), np.empty(1, np.uint64)
    _hash_utf8(np.frombuffer(text or b"\0", np.uint8), np.array([0, len(text)], np.int32), hashed)
    hashed.setflags(write=False)
    return hashed


def hashes_of(ids: Ids) -> Hashes:
    """Ids as hashes: strings are hashed, an array of uint64 is taken as it is."""
    if isinstance(ids, np.ndarray) and ids.dtype == np.uint64:
        return ids
    return hash_strings(ids.tolist() if isinstance(ids, np.ndarray) else ids)


def combined(first: Hashes, second: Hashes) -> Hashes:
    """The key of a pair, (n,) from (n,) and (n,), or one of them for all; missing where either is."""
    out = np.empty(max(len(first), len(second)) if len(first) and len(second) else 0, np.uint64)
    _combine(np.ascontiguousarray(first), np.ascontiguousarray(second), out)
    return out


@njit(
    "void(Array(uint64, 1, 'C', readonly=True), Array(uint64, 1, 'C', readonly=True), uint64[::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def _combine(first, second, out):  # type: ignore[no-untyped-def]
    one, other = np.uint64(len(first) > 1), np.uint64(len(second) > 1)
    for i in range(np.uint64(len(out))):
        a, b = first[i * one], second[i * other]
        h = a * np.uint64(0x9E3779B97F4A7C15) + b
        h ^= h >> np.uint64(32)
        h *= np.uint64(0xD6E8FEB86659FD93)
        h ^= h >> np.uint64(32)
        h *= np.uint64(0xD6E8FEB86659FD93)
        h ^= h >> np.uint64(32)
        out[i] = h if a != np.uint64(0) and b != np.uint64(0) else np.uint64(0)
