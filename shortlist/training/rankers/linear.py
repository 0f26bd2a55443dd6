"""Logistic regression: which columns become logarithms, how strong the penalty is, and Newton's method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shortlist.ranking.linear import Linear, Term
from shortlist.ranking.scoring import LINEAR
from shortlist.ranking.standard import HUGE, Standard
from shortlist.training.metrics import ndcg, ordered_gains
from shortlist.training.rankers.fitting import PLACE, Fit, Progress, RankingData, log_place

PENALTIES = (0.03, 0.01, 0.003, 0.001, 0.0001)
"""L2 strengths tried, per row and in units of standardised columns."""

DEPTH = 10

PLACE_PENALTY = 0.001

LINEAR_ROWS = 100_000
"""A hundred weights need no more rows than this; of more, so many are drawn."""

SKEWED = 1.0
"""Columns without negative values and with more skewness than this (half an exponential's) are taken by their
logarithm: counts grow with the log, and a weight on a count itself would say ever more."""

USUAL, SMALLEST = 0.1, 1e-6
"""The unit of a column's logarithm: that share of the median of what is not 0, at least so much, and at most 1."""

NEWTON_STEPS = 50


def fit_linear(
    data: RankingData, validation: RankingData | None, directory: Path, seed: int, progress: Progress
) -> Fit:
    """Fit the weights and write them as JSON; without `validation` under the strongest penalty."""
    placed = data.with_place() if data.placed else data
    sample = drawn(placed, seed)
    acted, counts, shape = sample.gain > 0, sample.weight, Shape.of(sample.matrix)
    design = shape.design(sample.matrix)
    judge = None if validation is None or not validation.mixed else Judge.of(validation, shape, data.placed)
    weights = np.zeros(len(design))
    tried: list[tuple[float, NDArray[np.float64], NDArray[np.float64]]] = []
    for number, penalty in enumerate(PENALTIES if judge else PENALTIES[:1]):
        weights = newton(design, acted, weights, penalty, counts=counts)
        tried.append((penalty, weights, judge.quality(weights) if judge else np.zeros(1)))
        progress(number + 1, len(PENALTIES))
    penalty, weights, _ = simplest(tried)
    linear = shape.linear(placed.names, weights)
    served = Linear([term for term in linear.terms if term.column != PLACE], linear.bias)
    served.save(directory / LINEAR)
    figures = {"penalty": penalty, "log_loss": log_loss(weights @ design, acted, counts)}
    if judge is None:
        return Fit("linear", figures)
    scores = served.margin(judge.data.matrix, judge.data.names)
    return Fit("linear", {**figures, "held_out_ndcg@10": float(judge.ndcg(weights).mean())}, scores=scores)


@dataclass(frozen=True)
class Judge:
    """Held-out rows, and how well weights do on them: `design` as they were shown, `neutral` as they are served."""

    data: RankingData
    design: NDArray[np.float64]
    neutral: NDArray[np.float64]

    @classmethod
    def of(cls, data: RankingData, shape: Shape, placed: bool) -> Judge:
        """The rows in the shape of what was learned from, with the place or without."""
        if not placed:
            design = shape.design(data.matrix)
            return cls(data, design, design)
        unplaced = replace(data, rank=None).with_place()
        return cls(data, shape.design(data.with_place().matrix), shape.design(unplaced.matrix))

    def quality(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of each request, the more the better: how likely it made what was done with what was shown.

        Where nothing was shown it is NDCG: rows to choose by are then all that was retrieved, rows to learn from are
        drawn, so that the probabilities of one are wrong for the other, and the least wrong are those that say little.
        Where something was, NDCG says little itself: it sees ten orders and not a thousand probabilities, and of
        slates of another policy than the one to come.
        """
        if self.data.drawn:
            return self.ndcg(weights)
        log_odds, acted = weights @ self.design, self.data.gain > 0
        request = np.repeat(np.arange(len(self.data.sizes)), self.data.sizes)
        return np.asarray(np.bincount(request, -np.logaddexp(0.0, np.where(acted, -log_odds, log_odds))), np.float64)

    def ndcg(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """NDCG@10 of each request that has a positive."""
        gains, relevant = ordered_gains(self.data.sizes, self.data.gain, weights @ self.neutral, DEPTH)
        found = ndcg(gains, relevant, DEPTH)
        return np.asarray(found[~np.isnan(found)])


def simplest(
    tried: Sequence[tuple[float, NDArray[np.float64], NDArray[np.float64]]],
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """The first of those tried (the strongest penalty) that the best is not ahead of by a standard error.

    Hastie, Tibshirani, Friedman, The elements of statistical learning, 2009, section 7.10; errors paired by request.
    """
    best = max(tried, key=lambda each: each[2].mean())[2]

    def behind(quality: NDArray[np.float64]) -> bool:
        gain = best - quality
        return bool(gain.mean() > gain.std(ddof=1) / len(gain) ** 0.5) if len(gain) > 1 else False

    return next(each for each in tried if not behind(each[2]))


@dataclass(frozen=True)
class PlaceEffect:
    """What the place at which an item is shown adds to the log-odds of an action."""

    weight: float
    standard: Standard

    @classmethod
    def of(cls, data: RankingData, seed: int) -> PlaceEffect:
        """By logistic regression on the place and the columns: what these explain is not the place's."""
        sample = drawn(data.with_place(), seed)
        shape = Shape.of(sample.matrix)
        design = shape.design(sample.matrix)
        weights = newton(design, sample.gain > 0, np.zeros(len(design)), PLACE_PENALTY, counts=sample.weight)
        place, whole = len(data.names), shape.standard
        return cls(float(weights[place]), Standard(whole.unit[place:], whole.mean[place:], whole.scale[place:]))

    def log_odds(self, rank: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of each place, 1 being the top: 0 on average over those learned from, and where it is not known (NaN)."""
        place = self.standard.of(log_place(rank)[None])[0]
        return np.asarray(self.weight * np.nan_to_num(place))


def drawn(data: RankingData, seed: int) -> RankingData:
    """At most `LINEAR_ROWS` of the rows."""
    if len(data.gain) <= LINEAR_ROWS:
        return data
    rows = np.zeros(len(data.gain), np.bool_)
    rows[np.random.default_rng(seed).choice(len(rows), LINEAR_ROWS, replace=False)] = True
    return data.take(rows)


@dataclass(frozen=True)
class Shape:
    """How columns become standardised ones, and which of them get a second one that says where they are missing."""

    standard: Standard
    gaps: NDArray[np.bool_]

    @classmethod
    def of(cls, matrix: NDArray[np.float64]) -> Shape:
        """Measured on training rows."""
        unit, mean, scale, gaps = [], [], [], []
        for column in matrix:
            known = column[np.abs(column) < HUGE]
            skewed = len(known) > 0 and known.min() >= 0 and skewness(known) > SKEWED
            unit.append(unit_of(known) if skewed else 0.0)
            if skewed:
                known = np.log1p(known / unit[-1])
            mean.append(float(known.mean()) if len(known) else 0.0)
            scale.append(float(known.std()) if len(known) and known.min() < known.max() else 1.0)
            gaps.append(len(known) < len(column))
        return cls(Standard(np.array(unit), np.array(mean), np.array(scale)), np.array(gaps))

    def design(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """[weights, rows]: the standardised columns (0 where missing), where they are missing, and ones."""
        values = self.standard.of(matrix)
        missing = np.isnan(values)
        return np.vstack([np.where(missing, 0.0, values), missing[self.gaps], np.ones(matrix.shape[1])])

    def linear(self, names: tuple[str, ...], weights: NDArray[np.float64]) -> Linear:
        """The scorer with these weights, in the order of `design`'s rows."""
        missing = np.zeros(len(names))
        missing[self.gaps] = weights[len(names) : -1]
        shape = self.standard
        columns = zip(names, shape.unit, shape.mean, shape.scale, weights, missing, strict=False)
        terms = [Term(name, *map(float, numbers)) for name, *numbers in columns]
        return Linear(terms, float(weights[-1]))


def unit_of(values: NDArray[np.float64]) -> float:
    """In what to take the logarithm of a skewed column: 1 where counts are large, less for rates and shares.

    The logarithm of 1 + a small rate is that rate; in a tenth of what is usual it tells small rates apart.
    """
    positive = values[values > 0]
    return min(1.0, max(SMALLEST, USUAL * float(np.median(positive)))) if len(positive) else 1.0


def skewness(values: NDArray[np.float64]) -> float:
    """The third standardised moment; 0 where nothing varies."""
    deviation = values - values.mean()
    spread = deviation.std()
    return float(np.mean((deviation / spread) ** 3)) if spread > 0 else 0.0


def log_loss(odds: NDArray[np.float64], acted: NDArray[np.bool_], counts: float | NDArray[np.float64] = 1.0) -> float:
    """The mean negative log-likelihood of what happened, given log-odds; `counts` is how much each row counts."""
    return float(np.mean(counts * np.logaddexp(0.0, np.where(acted, -odds, odds))))


def newton(
    design: NDArray[np.float64],
    acted: NDArray[np.bool_],
    weights: NDArray[np.float64],
    penalty: float,
    offset: float | NDArray[np.float64] = 0.0,
    counts: float | NDArray[np.float64] = 1.0,
) -> NDArray[np.float64]:
    """The weights that minimise log loss + penalty/2 * |weights|^2 (the last weight, the bias, is free).

    `offset` are log-odds that are given, `counts` how much each row counts, 1 on average.
    """
    rows = design.shape[1]
    ridge = np.full(len(design), penalty)
    ridge[-1] = 1e-9  # only so that the equations have a solution when every row is certain

    def objective(w: NDArray[np.float64]) -> float:
        return log_loss(offset + w @ design, acted, counts) + 0.5 * float(ridge @ (w * w))

    best = objective(weights)
    for _step in range(NEWTON_STEPS):
        chance = 1.0 / (1.0 + np.exp(-np.clip(offset + weights @ design, -500, 500)))
        gradient = design @ (counts * (chance - acted)) / rows + ridge * weights
        curvature = (design * (counts * chance * (1.0 - chance))) @ design.T / rows + np.diag(ridge)
        direction = np.linalg.solve(curvature, gradient)
        length = 1.0
        while objective(weights - length * direction) > best and length > 1e-6:
            length /= 2
        weights = weights - length * direction
        before, best = best, objective(weights)
        if before - best < 1e-10:
            break
    return weights
