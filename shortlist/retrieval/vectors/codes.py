"""Vectors in few bits: their principal directions, turned at random, as 4-bit numbers.

What learned vectors say lies in few directions; those are kept, and turned, so that each bears the same load. Each
number then is nearly normal, and cut into 16 steps of the width that errs least for a normal one (Max, Quantizing for
minimum distortion, IRE 1960). A query's product with all of them is a pass over `dimensions / 2` bytes a vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shortlist.retrieval.vectors.scan import BLOCK, LEVELS, MOST, as_bytes, nth_greatest, scan

Vectors = NDArray[np.float32]
Rows = NDArray[np.int32]
Octets = NDArray[np.uint8]

STEP = 0.3352
"""The width of 16 even steps that errs least, in standard deviations of a normal number."""
SAMPLES = (512, 32)
"""Blocks of codes that say how high the best sums are; the more, the fewer are found beyond what is wanted. Which of
their sums matter is said by a few of them."""
CAUTION = 3.0
"""Standard deviations by which more must be expected than are wanted."""
NOTHING = -MOST - 1
"""What every sum comes up to."""


@dataclass(frozen=True)
class Code:
    """How vectors of d numbers are cut: less their `mean`, times `turn`, shape (dimensions, d), which counts steps."""

    mean: Vectors
    turn: Vectors

    @classmethod
    def learn(cls, sample: Vectors, dimensions: int, seed: int) -> Code:
        """The principal directions of a sample, shape (n, d), turned at random; at most d of them."""
        mean = sample.mean(axis=0)
        centred = sample - mean
        _, directions = np.linalg.eigh(np.asarray(centred.T @ centred, np.float64))  # in rising order of variance
        kept = directions[:, ::-1][:, :dimensions]
        drawn = np.random.default_rng(seed).standard_normal((kept.shape[1], kept.shape[1]))
        turn = np.asarray((kept @ np.linalg.qr(drawn)[0]).T, np.float32)
        spread = (centred @ turn.T).std(axis=0, keepdims=True).T
        return cls(mean, np.divide(turn, STEP * spread, out=np.zeros_like(turn), where=spread > 0))

    def numbers(self, vectors: Vectors) -> Octets:
        """The 4-bit numbers of vectors, shape (n, dimensions)."""
        steps = (vectors - self.mean) @ self.turn.T
        numbers: Octets = np.clip(np.floor(steps) + LEVELS // 2, 0, LEVELS - 1).astype(np.uint8)
        return numbers


class Codes:
    """Vectors to be searched for by their codes. `weigh`, shape (dimensions, d), makes the weights of a query."""

    def __init__(self, weigh: Vectors, held: Octets, count: int) -> None:
        if held.shape != (-(-count // BLOCK) * -(-len(weigh) // 4) * 2 * BLOCK,):
            raise ValueError(f"{held.shape} bytes are no codes of {count} vectors in {len(weigh)} dimensions")
        self.weigh, self.held, self.count = weigh, aligned(held), count

    @classmethod
    def of(cls, code: Code, parts: Iterable[Vectors]) -> Codes:
        """The codes of vectors that come in parts, each but the last of whole blocks."""
        packed, count = [], 0
        for part in parts:
            packed.append(blocks_of(code.numbers(part)))
            count += len(part)
        squared = (code.turn**2).sum(axis=1, keepdims=True)
        weigh = np.divide(code.turn, squared, out=np.zeros_like(code.turn), where=squared > 0)
        return cls(weigh, np.concatenate(packed), count)

    def search(self, query: Vectors, k: int) -> Rows:
        """The rows of all vectors that come up to some sum, in their order: the best ones, at least `min(k, count)`."""
        return self._reaching(self._weights(query), 1, min(k, self.count), SAMPLES)[0]

    def _reaching(
        self, weights: NDArray[np.int32], step: int, wanted: int, samples: Sequence[int]
    ) -> tuple[Rows, NDArray[np.int16]]:
        """The rows of every `step`-th block that come up to some sum, and their sums: at least so many, if there are.

        A sample says which sum that is; where it promised too much, a lower one is tried.
        """
        every = -(-self.count // step) + 2 * BLOCK
        if not samples:
            return self._scan(weights, step, NOTHING, every)
        fewer = max(step, self.count // (BLOCK * samples[0]))
        expected = wanted * step / fewer
        beyond = int(expected + CAUTION * expected**0.5)
        while True:
            sums = self._reaching(weights, fewer, beyond + 1, samples[1:])[1]
            least, room = NOTHING, every
            if beyond < len(sums):
                least, room = nth_greatest(sums, beyond + 1), min(2 * beyond * fewer // step + BLOCK, every)
            found = self._scan(weights, step, least, room)
            if len(found[0]) >= wanted or least == NOTHING:
                return found
            beyond = 2 * beyond + 1

    def _scan(self, weights: NDArray[np.int32], step: int, least: int, room: int) -> tuple[Rows, NDArray[np.int16]]:
        """The rows, of every `step`-th block, that come up to `least`, and their sums."""
        while True:
            rows, sums = np.empty(room, np.int32), np.empty(room, np.int16)
            found = int(scan(self.held, step, self.count, weights, least, rows, sums))
            if found >= 0:
                return rows[:found], sums[:found]
            room = self.count + BLOCK  # many have the same sum

    def _weights(self, query: Vectors) -> NDArray[np.int32]:
        """The weight of each dimension as a signed byte, four in each number, so that no sum is too great."""
        whole = np.empty(-(-len(self.weigh) // 4) * 4, np.int8)
        as_bytes(self.weigh @ query, whole)
        return whole.view(np.int32)


def blocks_of(numbers: Octets) -> Octets:
    """The 4-bit numbers of vectors, shape (n, dimensions), in the layout of `scan`."""
    count, dimensions = numbers.shape
    blocks, quads = -(-count // BLOCK), -(-dimensions // 4)
    padded = np.zeros((blocks * BLOCK, quads * 4), np.uint8)
    padded[:count, :dimensions] = numbers
    parts = padded.reshape(blocks, 2, 2, BLOCK // 4, quads, 4)  # block, line, lower or upper bits, vector, dimensions
    return np.ascontiguousarray((parts[:, :, 0] | parts[:, :, 1] << 4).transpose(0, 3, 1, 2, 4)).reshape(-1)


def aligned(held: Octets) -> Octets:
    """The same bytes, at an address that is a multiple of a cache line."""
    room = np.empty(len(held) + BLOCK, np.uint8)
    start = -room.ctypes.data % BLOCK
    room[start : start + len(held)] = held
    return room[start : start + len(held)]
