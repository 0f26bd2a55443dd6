"""Codes in two halves, so that two threads look through them at once: half the wait, while a processor is free.

The halves are dealt block by block, so that whatever order the vectors have, either half holds about half of what a
query is near to. Where searches follow each other closely, or others need the processors, a thread of its own for each
and the codes in one piece are faster; which it is at the moment is measured.
"""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from shortlist.pipeline.pace import Pace

BLOCK = 32
"""Vectors whose codes lie together, as fast scan has them."""
WORTH_BYTES = 4 << 20
"""Codes that take less are looked through before another thread has woken up."""
TURN = 16
"""Every so many searches the slower way is tried again."""
DEVIATIONS = 6.0
"""Standard deviations more than a half of what is wanted that either half looks for: they do not hold just as much."""

Rows = NDArray[np.int32]

other_thread = ThreadPoolExecutor(1, "half of a search")


class Half:
    """Every second block of some codes, from the first or the second on."""

    def __init__(self, codes: Any, number: int) -> None:
        self.number, self._whole = number, codes  # the halves share its transformation
        outer, inner = unwrapped(codes)
        part: Any = faiss.IndexPQFastScan(inner.d, inner.pq.M, inner.pq.nbits, inner.metric_type)
        part.pq, part.is_trained = inner.pq, True
        packed = faiss.rev_swig_ptr(inner.codes.get(), inner.codes.size()).reshape(inner.ntotal2 // BLOCK, -1)
        mine = np.ascontiguousarray(packed[number::2])
        rows = np.arange(inner.ntotal)
        part.ntotal = int(np.count_nonzero(rows // BLOCK % 2 == number))
        part.ntotal2 = len(mine) * BLOCK
        part.codes.resize(mine.size)
        faiss.rev_swig_ptr(part.codes.get(), mine.size)[:] = mine.reshape(-1)
        self.codes: Any = part if outer is None else faiss.IndexPreTransform(outer.chain.at(0), part)

    def search(self, query: NDArray[np.float32], wanted: int) -> Rows:
        """The rows of this half that are among about the best `wanted` of both."""
        look = int(wanted / 2 + DEVIATIONS * wanted**0.5 / 2) + 1
        found = self.codes.search(query[None, :], min(look, self.codes.ntotal))[1][0].astype(np.int32)
        found = found[found >= 0]  # codes that all tie can leave places empty
        rows: Rows = (2 * (found // BLOCK) + self.number) * BLOCK + found % BLOCK
        return rows


class Ways:
    """Which of two ways is faster at the moment: their moving 0.9-quantiles say so."""

    def __init__(self) -> None:
        self._paces, self._turns = (Pace(), Pace()), itertools.count()

    def faster(self) -> int:
        """The way to take, 0 or 1; both are tried in the beginning, and the slower one now and then."""
        first, second = (pace.estimate_ms for pace in self._paces)
        return int(second < first) ^ int(next(self._turns) % TURN == 0)

    def took(self, way: int, seconds: float) -> None:
        """Learn how long one way took."""
        self._paces[way].took(seconds * 1000)


def unwrapped(codes: Any) -> tuple[Any, Any]:
    """The transformation of codes, or None, and the codes themselves."""
    held = faiss.downcast_index(codes)
    return (held, faiss.downcast_index(held.index)) if isinstance(held, faiss.IndexPreTransform) else (None, held)


def halves_of(codes: Any) -> tuple[Half, Half] | None:
    """Both halves, where there are so many codes, and processors, that it is worth it."""
    inner = None if codes is None else unwrapped(codes)[1]
    if inner is None or inner.codes.size() < WORTH_BYTES or len(os.sched_getaffinity(0)) < 2:
        return None
    return Half(codes, 0), Half(codes, 1)
