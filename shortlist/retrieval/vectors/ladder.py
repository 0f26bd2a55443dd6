"""How cheap may the search be? The ladder of codes that a build climbs until measured recall is enough.

Below 50,000 vectors the search is exact. Above, the build climbs a ladder of codes, each of more principal directions
than the one before (`codes`): a pass over them finds k times a *refine factor* of candidates, and their products as
half floats put them in order. Recall@k is measured on held-out queries against exact search, and the cheapest rung that
reaches the target, surely and not by the luck of the queries, stays.

What is cheap is decided by a model fitted to measurements (`costs`), not by a clock: the same vectors and seed must
give the same index.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from shortlist.retrieval.vectors import costs
from shortlist.retrieval.vectors.codes import Code, Codes
from shortlist.retrieval.vectors.index import Index, Vectors
from shortlist.retrieval.vectors.products import Kept, halved, products

Progress = Callable[[str, float], None]
"""Told the step that runs and the share of it that is done, from 0 to 1."""

EXACT_BELOW = 50_000
FACTORS = (2, 3, 4, 5, 6, 8, 10, 12, 16)
WORTH_BUILDING = 1.5
"""A further rung is built only if the best so far costs this many times what that rung costs at the least."""
QUERIES, TRAINED_ON = 256, 65_536
SURE = 1.645
"""Standard errors below the measured recall at which the target must still be met: 95 %, one-sided."""
BLOCK = 65_536


LADDER = (32, 48, 64, 96, 128, 192, 256)
"""Directions that codes keep; no more than the vectors have."""


@dataclass(frozen=True)
class Rung:
    """Codes, their refine factor, the recall@k that was measured, and the least that it surely is."""

    codes: Codes
    factor: int
    recall: float
    surely: float
    cost: float

    def __str__(self) -> str:
        return f"PCA{len(self.codes.weigh)}x4, refine {self.factor}"


def build_index(
    vectors: Vectors,
    queries: Vectors | None = None,
    target: float = 0.99,
    k: int = 500,
    seed: int = 0,
    progress: Progress = lambda step, share: None,  # noqa: ARG005
    exact_below: int = EXACT_BELOW,
) -> Index:
    """The cheapest index of `vectors`, shape (n, d), whose recall@k reaches `target`; the best one where none does.

    `queries`, shape (q, d), are held-out queries, of which a few hundred are used; by default they are drawn near
    vectors. The index says what recall it has. Raises ValueError for vectors that are not finite.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    if not all(np.isfinite(block).all() for block in blocks(vectors)):
        raise ValueError("the vectors hold NaN or infinity, and nothing is nearest to those; train again")
    exact = Index.exact(vectors)
    if len(vectors) < max(exact_below, 2 * k):
        return exact
    rng = np.random.default_rng(seed)
    given = near(vectors, rng) if queries is None or not len(queries) else queries
    asked = np.ascontiguousarray(given[np.sort(rng.permutation(len(given))[:QUERIES])], np.float32)
    progress("exact search of held-out queries", 0.0)
    worst, kept = exact.search(asked, k)[1][:, -1:], halved(vectors)
    best: Rung | None = None
    most = vectors.shape[1]
    possible = [*(directions for directions in LADDER if directions < most), *([most] if most <= LADDER[-1] else [])]
    for number, directions in enumerate(possible):
        least = cost(len(vectors), most, k, directions, FACTORS[0])
        if best is not None and best.surely >= target and best.cost < WORTH_BUILDING * least:
            continue
        progress(f"index of {directions} directions", number / len(possible))
        best = better(best, climb(directions, vectors, kept, asked, worst, k, target, seed), target)
    assert best is not None
    progress("index", 1.0)
    facts = {"rung": str(best), "recall": best.recall, "target": target, "k": k, "parts": len(best.codes.weigh)}
    return Index(kept, best.codes, best.factor, facts)


def climb(
    directions: int, vectors: Vectors, kept: Kept, asked: Vectors, worst: Vectors, k: int, target: float, seed: int
) -> Rung:
    """Codes of so many directions with the least refine factor that reaches the target, or with the greatest one.

    Vectors are `kept` to refine; what they find is judged by their exact products.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:TRAINED_ON])
    codes = Codes.of(Code.learn(vectors[chosen], directions, seed), blocks(vectors))

    def measured(factor: int) -> tuple[float, float]:
        found = Index(kept, codes, factor).search(asked, k)[0]
        true = [products(vectors, rows, query) for query, rows in zip(asked, found, strict=True)]
        return recall_of(np.stack(true), worst)

    # more candidates never find less, so the least factor that is enough is found by bisection
    number = bisect_left(FACTORS, True, hi=len(FACTORS) - 1, key=lambda factor: measured(factor)[1] >= target)
    factor = FACTORS[number]
    return Rung(codes, factor, *measured(factor), cost(len(vectors), vectors.shape[1], k, directions, factor))


def cost(vectors: int, dimensions: int, k: int, directions: int, factor: int) -> float:
    """What one search costs, in the unit of the model."""
    return costs.scan(vectors, directions) + costs.refine(k * factor, dimensions)


def better(best: Rung | None, other: Rung, target: float) -> Rung:
    """The cheaper one of those that surely reach the target, else the one with the greater recall."""
    if best is None:
        return other
    enough = [rung for rung in (best, other) if rung.surely >= target]
    return min(enough, key=lambda rung: rung.cost) if enough else max(best, other, key=lambda rung: rung.recall)


def recall_of(scores: Vectors, worst: Vectors) -> tuple[float, float]:
    """The share of what was found that belongs there, and its lower bound (95 %, one-sided, by query).

    Products, shape (q, k), belong there that are not below the true k-th, shape (q, 1): of several vectors with the
    same product any is right. The tolerance is that of summing in another order.
    """
    shares = (scores >= worst - 1e-5 * np.abs(worst)).mean(axis=1)
    recall = float(shares.mean())
    return recall, recall - SURE * float(shares.std()) / len(shares) ** 0.5


def near(vectors: Vectors, rng: np.random.Generator) -> Vectors:
    """Queries near vectors: each lies between two of them, much closer to the first."""
    first, second = rng.integers(0, len(vectors), (2, QUERIES))
    return np.asarray(0.8 * vectors[first] + 0.2 * vectors[second], np.float32)


def blocks(vectors: Vectors) -> Iterator[Vectors]:
    """The vectors, some at a time."""
    return (vectors[start : start + BLOCK] for start in range(0, len(vectors), BLOCK))
