"""How good is a ranking? NDCG, recall and reciprocal rank, their averages by user, and how sure we are of them.

Everything works on the *gain matrix* of a set of requests: entry (r, j) is the gain of the item that request r shows
at rank j + 1, 0 where it is not relevant. Items are catalogue indexes; -1 pads short rankings and is never relevant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LARGE = 500.0
"""Gains up to this many are powers of two that can be summed."""


@dataclass(frozen=True)
class Relevant:
    """The relevant items of each request: those of request r are `items[offsets[r] : offsets[r + 1]]`, each once.

    `gains` are positive: what showing the item is worth.
    """

    items: NDArray[np.int32]
    gains: Floats
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many relevant items each request has."""
        return np.diff(self.offsets)

    @property
    def requests(self) -> NDArray[np.int64]:
        """The request of each entry of `items`."""
        return np.repeat(np.arange(len(self)), self.counts)


def gain_matrix(ranked: NDArray[np.int32], relevant: Relevant) -> Floats:
    """The gain of each ranked item. `ranked` has shape (requests, ranks), padded with -1."""
    width = np.int64(max(ranked.max(initial=0), relevant.items.max(initial=0)) + 1)
    wanted = relevant.requests * width + relevant.items
    order = np.argsort(wanted, kind="stable")
    shown = np.arange(len(ranked))[:, None] * width + ranked
    place = np.searchsorted(wanted, shown, sorter=order)
    place = order[np.minimum(place, len(order) - 1)] if len(order) else np.zeros(shown.shape, np.intp)
    found = (ranked >= 0) & (wanted[place] == shown) if len(order) else np.zeros(shown.shape, np.bool_)
    gains: Floats = np.where(found, relevant.gains[place] if len(order) else 0.0, 0.0)
    return gains


def ordered_gains(sizes: NDArray[np.int64], gain: Floats, score: Floats, k: int) -> tuple[Floats, Relevant]:
    """The gain matrix (requests, k) of rows ordered by score within their request, and each request's positive rows.

    Rows of one request stand together, `sizes` of them each; ties keep the rows' order. NaN ranks last.
    """
    request = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((np.where(np.isnan(score), np.inf, -score), request))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    gains, top = np.zeros((len(sizes), k)), rank < k
    gains[request[top], rank[top]] = gain[order][top]
    positive = np.flatnonzero(gain > 0)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(request[positive], minlength=len(sizes)))]).astype(np.int64)
    return gains, Relevant(positive.astype(np.int32), gain[positive], offsets)


def ndcg(gains: Floats, relevant: Relevant, k: int, graded: bool = True) -> Floats:
    """NDCG@k of each request, shape (requests,); NaN for a request without relevant items.

    DCG with gain 2^g - 1 and discount log2(rank + 1) (Burges et al., 2005), divided by that of the best order. Not
    `graded` counts every relevant item as 1; both agree where all gains are equal.
    """
    shown, ideal = (gains, relevant.gains) if graded else (np.sign(gains), np.sign(relevant.gains))
    best = np.zeros((len(relevant), k))
    order = np.lexsort((-ideal, relevant.requests))
    rank = np.arange(len(order)) - relevant.offsets[relevant.requests]
    kept = rank < k
    best[relevant.requests[kept], rank[kept]] = ideal[order][kept]
    top = max(0.0, float(best.max(initial=0.0)) - LARGE)
    return _quotient(_dcg(shown[:, :k], top), _dcg(best, top))


def _dcg(gains: Floats, top: float) -> Floats:
    """By 2 ** -top, which leaves quotients as they are, because 2 ** 1024 is no number."""
    discounts = 1.0 / np.log2(np.arange(gains.shape[1]) + 2.0)
    weighted: Floats = (np.expm1(gains * np.log(2.0)) if top == 0 else np.exp2(gains - top) - np.exp2(-top)) @ discounts
    return weighted


def _quotient(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
    """Elementwise, NaN where the denominator is 0."""
    result: Floats = np.full(denominator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result


def recall(gains: Floats, relevant: Relevant, k: int) -> Floats:
    """The share of a request's relevant items among its first k; NaN for a request without any."""
    hits = (gains[:, :k] > 0).sum(axis=1)
    return _quotient(hits, relevant.counts)


def reciprocal_rank(gains: Floats, relevant: Relevant, k: int) -> Floats:
    """1 / the rank of the first relevant item, 0 where none is among the first k; NaN without relevant items."""
    hits = gains[:, :k] > 0
    value = hits.any(axis=1) / (hits.argmax(axis=1) + 1.0) if hits.shape[1] else np.zeros(len(relevant))
    return np.where(relevant.counts > 0, value, np.nan)


def coverage(ranked: NDArray[np.int32], k: int, available: int) -> float:
    """The share of the `available` items of the catalogue that some request shows among its first k."""
    shown = np.unique(ranked[:, :k])
    return float((shown >= 0).sum() / available) if available else float("nan")


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval; all NaN where nothing was measured."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Plain JSON; what is not measured is null."""
        return {name: finite(getattr(self, name)) for name in ("value", "low", "high")}


def finite(value: float) -> float | None:
    """`value`, or None where it is NaN or infinite, because JSON has neither."""
    return float(value) if np.isfinite(value) else None


def by_user(values: Floats, users: NDArray[np.int64], count: int) -> Floats:
    """The mean of each user's values, NaN skipped: `values` (requests, columns) to (count, columns)."""
    measured = ~np.isnan(values)
    sums, sizes = np.zeros((count, values.shape[1])), np.zeros((count, values.shape[1]))
    np.add.at(sums, users, np.where(measured, values, 0.0))
    np.add.at(sizes, users, measured)
    return _quotient(sums, sizes)


def bootstrap(per_user: Floats, seed: int, resamples: int = 1000) -> Floats:
    """Means over users drawn with replacement: `per_user` (users, columns) to (resamples, columns).

    All columns share the draws, so that differences of columns are paired. Users whose values are NaN are skipped
    in that column.
    """
    rng = np.random.default_rng(seed)
    measured = ~np.isnan(per_user)
    values, weights = np.where(measured, per_user, 0.0), measured.astype(np.float64)
    means = np.full((resamples, per_user.shape[1]), np.nan)
    for row in means:
        drawn = np.bincount(rng.integers(0, len(per_user), len(per_user)), minlength=len(per_user))
        row[:] = _quotient(drawn @ values, drawn @ weights)
    return means


def interval(values: Floats, replicates: Floats) -> Interval:
    """The mean of one column of users' values with the percentiles 2.5 and 97.5 of its bootstrap replicates."""
    measured, drawn = values[~np.isnan(values)], replicates[~np.isnan(replicates)]
    if not len(measured) or not len(drawn):
        return Interval(float("nan"), float("nan"), float("nan"))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(measured.mean()), float(low), float(high))


def intervals(per_user: Mapping[str, Floats], baseline: str, seed: int) -> dict[str, tuple[Interval, Interval]]:
    """Of each method: the mean of its users' values and the paired difference from `baseline`, both with intervals."""
    names = list(per_user)
    if not len(per_user[baseline]):
        nothing = Interval(float("nan"), float("nan"), float("nan"))
        return dict.fromkeys(names, (nothing, nothing))
    table = np.column_stack([per_user[name] for name in names])
    drawn = bootstrap(table, seed)
    base = names.index(baseline)
    return {
        name: (
            interval(table[:, column], drawn[:, column]),
            interval(table[:, column] - table[:, base], drawn[:, column] - drawn[:, base]),
        )
        for column, name in enumerate(names)
    }
