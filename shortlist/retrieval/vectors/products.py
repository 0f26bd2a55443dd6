"""Inner products of a query with some rows of many vectors, wherever these lie: half floats or single ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from shortlist.features.pointers import pointer, prefetch

Kept = NDArray[np.float16] | NDArray[np.float32]
"""Vectors as an index keeps them."""

AHEAD = 32
"""Rows that are asked for before their turn: they come from memory, one by one."""
LEAST, MOST = 2.0**-6, 2.0**14
"""What the greatest number may be for halves to hold all that matters: their smallest steps are 2^-24, and sums fit."""
OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": True}

halves, singles = pointer(types.uint16), pointer(types.float32)


@intrinsic
def widened(_context, _half):  # type: ignore[no-untyped-def]
    """The number whose bits as a half float these are."""

    def codegen(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), codegen


@njit("void(uint16[:,::1], int32[::1], float32[::1], float32[::1])", **OPTIONS)
def of_halves(vectors, rows, query, out):  # type: ignore[no-untyped-def]
    """`out[i]` = the product of the query with row `rows[i]`."""
    width, data, asked = vectors.shape[1], halves(vectors), singles(query)
    for i in range(len(rows)):
        if i + AHEAD < len(rows):
            ahead = np.int64(rows[i + AHEAD]) * width
            for place in range(ahead, ahead + width, 32):
                prefetch(data, place)
        start, total = np.int64(rows[i]) * width, np.float32(0)
        for place in range(width):
            total += widened(data[start + place]) * asked[place]  # type: ignore[call-arg]
        out[i] = total


@njit("void(float32[:,::1], int32[::1], float32[::1], float32[::1])", **OPTIONS)
def of_singles(vectors, rows, query, out):  # type: ignore[no-untyped-def]
    """The same of vectors in single precision."""
    width, data, asked = vectors.shape[1], singles(vectors), singles(query)
    for i in range(len(rows)):
        if i + AHEAD < len(rows):
            ahead = np.int64(rows[i + AHEAD]) * width
            for place in range(ahead, ahead + width, 16):
                prefetch(data, place)
        start, total = np.int64(rows[i]) * width, np.float32(0)
        for place in range(width):
            total += data[start + place] * asked[place]
        out[i] = total


@njit("void(Array(uint16, 2, 'C', readonly=True), int32[::1], float32[:,::1])", **OPTIONS)
def widen(vectors, rows, out):  # type: ignore[no-untyped-def]
    """`out[i]` = row `rows[i]` of half floats, in single precision."""
    width, data, wide = vectors.shape[1], halves(vectors), singles(out)
    for i in range(len(rows)):
        start = np.int64(rows[i]) * width
        for place in range(width):
            wide[i * width + place] = widened(data[start + place])  # type: ignore[call-arg]


def taken(vectors: Kept, rows: NDArray[np.int32]) -> NDArray[np.float32]:
    """Some rows, in single precision, shape (n, d)."""
    if vectors.dtype != np.float16:
        return vectors[rows].astype(np.float32, copy=False)
    out = np.empty((len(rows), vectors.shape[1]), np.float32)
    widen(vectors.view(np.uint16), rows, out)
    return out


def products(vectors: Kept, rows: NDArray[np.int32], query: NDArray[np.float32]) -> NDArray[np.float32]:
    """The product of the query, shape (d,), with each of some rows, in single precision."""
    out = np.empty(len(rows), np.float32)
    rows, query = np.ascontiguousarray(rows), np.ascontiguousarray(query)
    if vectors.dtype == np.float16:
        of_halves(vectors.view(np.uint16), rows, query, out)
    else:
        of_singles(vectors, rows, query, out)
    return out


def halved(vectors: NDArray[np.float32]) -> Kept:
    """The vectors as half floats, in half the memory; as they are where halves would not hold them."""
    greatest = float(np.abs(vectors).max(initial=0.0)) if len(vectors) else 0.0
    return vectors.astype(np.float16) if LEAST <= greatest <= MOST else vectors
