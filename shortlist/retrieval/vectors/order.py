"""The greatest of some products, in order: by counting, since a processor can predict no comparison of such numbers.

A product becomes a whole number that falls as it rises. Its upper eleven bits say which products can be among the
greatest; these are sorted by eleven bits after the other, from below, each pass keeping the order of the last (a radix
sort: Knuth, The Art of Computer Programming 3, 5.2.5).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

DIGIT, DIGITS = 11, 3
"""Bits of a digit, and how many digits 32 bits have."""
VALUES = 1 << DIGIT
OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
INNER: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


@njit(**INNER)
def digit_of(key, number):  # type: ignore[no-untyped-def]
    """The digit with this number, 0 the lowest."""
    return np.int64(key >> np.uint32(number * DIGIT)) & (VALUES - 1)


@njit(**INNER)
def falling(products):  # type: ignore[no-untyped-def]
    """Whole numbers that are the smaller, the greater a product is; equal where products are, as -0 and 0."""
    bits = (products + np.float32(0)).view(np.uint32)
    for i in range(len(bits)):
        negative = np.uint32(0) - (bits[i] >> np.uint32(31))  # all bits, or none
        bits[i] ^= ~negative & np.uint32(0x7FFFFFFF)
    return bits


@njit("int64[::1](float32[::1], int64)", **OPTIONS)
def greatest(products, k):  # type: ignore[no-untyped-def]
    """The places of the `k` greatest products, greatest first; ties in order of place."""
    every = falling(products)
    counts = np.zeros(VALUES, np.int64)
    for i in range(len(every)):
        counts[digit_of(every[i], DIGITS - 1)] += 1
    least, enough = -1, 0
    while enough < min(k, len(every)):
        least += 1
        enough += counts[least]
    keys, sorted_keys = np.empty(enough + 1, np.uint32), np.empty(enough, np.uint32)
    places, sorted_places = np.empty(enough + 1, np.int64), np.empty(enough, np.int64)
    kept = 0
    for i in range(len(every)):
        keys[kept], places[kept] = every[i], i
        kept += 1 if digit_of(every[i], DIGITS - 1) <= least else 0
    for number in range(DIGITS):
        counts[:] = 0
        for i in range(enough):
            counts[digit_of(keys[i], number)] += 1
        start = 0
        for value in range(VALUES):
            start, counts[value] = start + counts[value], start
        for i in range(enough):
            value = digit_of(keys[i], number)
            sorted_keys[counts[value]], sorted_places[counts[value]] = keys[i], places[i]
            counts[value] += 1
        keys, sorted_keys = sorted_keys, keys
        places, sorted_places = sorted_places, places
    return places[: min(k, enough)].copy()
