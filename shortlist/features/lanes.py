"""The lanes of a tile: what each does with a value, and how what it holds is read.

Parts of `kernels.walk`: touch kernels.py after a change here (see descriptors.py). `a` is the lane's place in state; a
fold over tiles starts at `a`, goes on by `width`, and wraps round the `ring` at `end`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from shortlist.features.descriptors import (
    DECAYED,
    DEST,
    EARLIEST,
    EMPTY,
    FREQUENT,
    LATEST,
    LENGTH,
    NEVER,
    NEWEST,
    PRESENT,
    READ,
    READ_RECENT,
    READ_WORD,
    RECENT,
    REGISTERS,
    SECOND,
    WELFORD,
)

options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
inner: Any = njit(**options, no_cpython_wrapper=True, no_cfunc_wrapper=True)  # type: ignore[call-overload]


@inner
def mixed(word):  # type: ignore[no-untyped-def]
    """The 64-bit finaliser of MurmurHash3: every input bit moves every output bit."""
    h = np.uint64(word)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> np.uint64(33))


@inner
def recent_inserted(state, a, size, at, word):  # type: ignore[no-untyped-def]
    """Insert into the newest `size` values at `a`: used, newest slot, (at, value) in a circle; ties: later first."""
    used, newest = state[a], state[a + 1]
    entries = a + 2
    rank = 0
    while rank < used:
        slot = newest - rank if newest >= rank else newest - rank + size
        if state[entries + 2 * slot] <= at:
            break
        rank += 1
    if rank == size:
        return
    newest = newest + 1 if newest + 1 < size else 0
    for k in range(rank):
        slot = newest - k if newest >= k else newest - k + size
        older = slot - 1 if slot >= 1 else size - 1
        state[entries + 2 * slot] = state[entries + 2 * older]
        state[entries + 2 * slot + 1] = state[entries + 2 * older + 1]
    slot = newest - rank if newest >= rank else newest - rank + size
    state[entries + 2 * slot] = at
    state[entries + 2 * slot + 1] = word
    state[a + 1] = newest
    state[a] = min(used + 1, size)


@inner
def frequent_counted(state, a, size, word):  # type: ignore[no-untyped-def]
    """Space-Saving (Metwally et al. 2005): `size` (value, count) pairs; the unseen take over the least counted."""
    least = 0
    for k in range(size):
        count = state[a + 2 * k + 1]
        if count == 0 or state[a + 2 * k] == word:
            state[a + 2 * k] = word
            state[a + 2 * k + 1] = count + 1
            return
        if count < state[a + 2 * least + 1]:
            least = k
    state[a + 2 * least] = word
    state[a + 2 * least + 1] += 1


@inner
def register_raised(octets, a, size, word):  # type: ignore[no-untyped-def]
    """HyperLogLog (Flajolet et al. 2007): the first bits of the hash choose a register, the rest its rank."""
    h = mixed(word)
    bits = 0
    while (1 << bits) < size:
        bits += 1
    place = np.int64(h >> np.uint64(64 - bits))
    rest = (h << np.uint64(bits)) | (np.uint64(1) << np.uint64(bits - 1))
    rank = 1
    while rest >> np.uint64(63) == np.uint64(0):
        rest <<= np.uint64(1)
        rank += 1
    if rank > octets[8 * a + place]:
        octets[8 * a + place] = rank


@inner
def welford_added(real, a, x):  # type: ignore[no-untyped-def]
    """Welford's update of (n, mean, sum of squared differences)."""
    n = real[a] + 1.0
    difference = x - real[a + 1]
    real[a] = n
    real[a + 1] += difference / n
    real[a + 2] += difference * (x - real[a + 1])


@inner
def decayed_added(state, real, a, half_life, at, x):  # type: ignore[no-untyped-def]
    """Add `x` to a sum kept as of its latest event: (latest at, sum)."""
    latest = state[a]
    if latest == NEVER:
        state[a] = at
        real[a + 1] = x
    elif at >= latest:
        state[a] = at
        real[a + 1] = real[a + 1] * np.exp2((latest - at) / half_life) + x
    else:
        real[a + 1] += x * np.exp2((at - latest) / half_life)


@inner
def folded(op, state, real, octets, a, size, half_life, at, x, word):  # type: ignore[no-untyped-def]
    """Fold a value that is not missing (`x` as a number, `word` as its bits) into a lane of the larger kind at `a`."""
    if op == PRESENT:
        real[a] += 1.0
    elif op == NEWEST:
        state[a] = max(state[a], at)
    elif op == WELFORD:
        welford_added(real, a, x)
    elif op == LATEST:
        if at >= state[a]:
            state[a] = at
            state[a + 1] = word
    elif op == EARLIEST:
        if state[a] == NEVER or at < state[a]:
            state[a] = at
            state[a + 1] = word
    elif op == RECENT:
        recent_inserted(state, a, size, at, word)
    elif op == REGISTERS:
        register_raised(octets, a, size, word)
    elif op == FREQUENT:
        frequent_counted(state, a, size, word)
    elif op == DECAYED:
        decayed_added(state, real, a, half_life, at, x)
    else:
        decayed_added(state, real, a, half_life, at, 1.0)


@inner
def total(real, a, end, width, ring, count):  # type: ignore[no-untyped-def]
    """The sum of one lane over `count` tiles from `a` on, oldest first; `end` is the lane's place behind the ring."""
    result = 0.0
    for _ in range(count):
        result += real[a]
        a += width
        if a == end:
            a -= ring
    return result


@inner
def deviation(real, a, end, width, ring, count):  # type: ignore[no-untyped-def]
    """The population standard deviation over tiles by Chan's merge of (n, mean, squares); NaN where there is none."""
    n, mean, squares = 0.0, 0.0, 0.0
    for _ in range(count):
        if real[a] > 0.0:
            merged = n + real[a]
            difference = real[a + 1] - mean
            mean += difference * (real[a] / merged)
            squares += real[a + 2] + difference * difference * (n * real[a] / merged)
            n = merged
        a += width
        if a == end:
            a -= ring
    return np.sqrt(squares / n) if n > 0.0 else np.nan


@inner
def distinct(octets, a, end, width, ring, count, size, merged):  # type: ignore[no-untyped-def]
    """How many different values the merged registers saw: Ertl's improved estimator (2017), unbiased from 0 on."""
    for k in range(size):
        merged[k] = 0
    for _ in range(count):
        place = 8 * a
        for k in range(size):
            merged[k] = max(merged[k], octets[place + k])
        a += width
        if a == end:
            a -= ring
    counts = np.zeros(66, np.int64)
    for k in range(size):
        counts[merged[k]] += 1
    if counts[0] == size:
        return 0.0
    bits = 0
    while (1 << bits) < size:
        bits += 1
    top = 64 - bits
    z = 0.0
    share = 1.0 - counts[top + 1] / size
    if 0.0 < share < 1.0:
        y, z, before = 1.0, 1.0 - share, 2.0
        while z != before:
            share = np.sqrt(share)
            before = z
            y *= 0.5
            z -= (1.0 - share) * (1.0 - share) * y
        z = size * z / 3.0
    for k in range(top, 0, -1):
        z = 0.5 * (z + counts[k])
    share = counts[0] / size
    y, before, empty = 1.0, -1.0, share
    while empty != before:
        share *= share
        before = empty
        empty += share * y
        y += y
    return size / (2.0 * np.log(2.0)) * (size / (z + size * empty))


@inner
def listed(outputs, o, state, a, lists, place):  # type: ignore[no-untyped-def]
    """Write a list feature from `lists[place]` on, best first, and EMPTY behind its end."""
    dest, size, wanted = place + outputs[o + DEST], outputs[o + SECOND], outputs[o + LENGTH]
    written = 0
    if outputs[o + READ] == READ_WORD:
        if state[a] != NEVER:
            lists[dest] = state[a + 1]
            written = 1
    elif outputs[o + READ] == READ_RECENT:
        newest = state[a + 1]
        while written < state[a]:
            slot = newest - written if newest >= written else newest - written + size
            lists[dest + written] = state[a + 2 + 2 * slot + 1]
            written += 1
    else:
        bound, after = np.int64(2**62), np.int64(-1)
        while written < wanted:
            best = np.int64(-1)
            for k in range(size):
                count = state[a + 2 * k + 1]
                below = count < bound or (count == bound and k > after)
                if count > 0 and below and (best < 0 or count > state[a + 2 * best + 1]):
                    best = np.int64(k)
            if best < 0:
                break
            lists[dest + written] = state[a + 2 * best]
            bound, after = state[a + 2 * best + 1], np.int64(best)
            written += 1
    for k in range(written, wanted):
        lists[dest + k] = outputs[o + EMPTY]
