"""A search by codes on two threads, half of the codes each: half the wait, while a processor is free.

Codes come from memory at the speed of one processor; two get nearly twice as much. Where searches follow each other
closely, or others need the processors, one thread for each is faster: which it is at the moment is measured. What is
found is the same.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from shortlist.pipeline.pace import Pace
from shortlist.retrieval.vectors.codes import Asked, Codes, Rows, Vectors

WORTH_BYTES = 4 << 20
"""Codes that take less are looked through before another thread has woken up."""
TURN = 32
"""Every so many searches the slower way is tried again."""
Found = tuple[Rows, Vectors]
"""Rows, and the products of their vectors with the query."""

other_thread = ThreadPoolExecutor(1, "half of a search")


class Search:
    """Candidates by their codes, and their `products`, by one thread or by two. Searches from several are fine."""

    def __init__(self, codes: Codes, products: Callable[[Vectors, Rows], Vectors]) -> None:
        self.codes, self.products = codes, products
        self.halved = codes.held.nbytes >= WORTH_BYTES and len(os.sched_getaffinity(0)) > 1
        self._paces, self._turns = (Pace(), Pace()), itertools.count()

    def near(self, query: Vectors, k: int) -> Found:
        """At least `min(k, count)` rows, the nearest by their codes, in order of row."""
        asked = self.codes.ask(query, k)
        while True:
            rows, products = self._by_the_faster_way(query, asked) if self.halved else self._whole(query, asked)
            if len(rows) >= asked.wanted:
                return rows, products
            asked = asked.lower()

    def _by_the_faster_way(self, query: Vectors, asked: Asked) -> Found:
        one, two = (pace.estimate_ms for pace in self._paces)
        by_two = (two < one) != (next(self._turns) % TURN == 0)
        begun = time.perf_counter()
        found = self._in_halves(query, asked) if by_two else self._whole(query, asked)
        self._paces[by_two].took((time.perf_counter() - begun) * 1000)
        return found

    def _whole(self, query: Vectors, asked: Asked) -> Found:
        return self._part(query, asked, 0, self.codes.blocks)

    def _in_halves(self, query: Vectors, asked: Asked) -> Found:
        middle, end = self.codes.blocks // 2, self.codes.blocks
        other = other_thread.submit(self._part, query, asked, middle, end)
        first = self._part(query, asked, 0, middle)
        # where the other thread is busy, it may not have begun
        second = self._part(query, asked, middle, end) if other.cancel() else other.result()
        return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])

    def _part(self, query: Vectors, asked: Asked, first: int, last: int) -> Found:
        rows = self.codes.found(asked, first, last)
        return rows, self.products(query, rows)
