"""From labelled rows to a ranker's directory: logistic regression here, trees and the network in rooms of their own.

The same rows, spec, seed and machine give the same bytes. What is written is JSON, LightGBM's text and ONNX; how it is
loaded and what it scores is the business of `shortlist.ranking`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import singledispatch
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shortlist.ranking.linear import HUGE, Linear, Term, standardised
from shortlist.ranking.scoring import DESCRIPTION, LINEAR
from shortlist.ranking.specs import BoostedTrees, DeepCross, LogisticRegression, RankerSpec
from shortlist.training.metrics import ndcg, ordered_gains

Progress = Callable[[int, int], None]
"""Called with (steps done, steps at most)."""

PLACE = "place at which it was shown"
"""Columns have identifiers for names, so that no feature is called so."""

PENALTIES = (0.03, 0.01, 0.003, 0.001, 0.0001)
"""L2 strengths tried, per row and in units of standardised columns."""

DEPTH = 10

PLACE_PENALTY = 0.001

LINEAR_ROWS = 100_000
"""A hundred weights need no more rows than this; of more, so many are drawn."""

SKEWED = 1.0
"""Columns without negative values and with more skewness than this (half an exponential's) are taken by their
logarithm: counts grow with the log, and a weight on a count itself would say ever more."""

NEWTON_STEPS = 50


class NothingToLearnError(ValueError):
    """These rows cannot train a ranker: what was found, and what to do."""


@dataclass(frozen=True)
class RankingData:
    """Labelled rows: `matrix` [features, rows] (NaN is missing), `names` of its features, `gain` and `group` per row.

    A gain is 0 for what was not acted on and larger for better actions. Rows of one request share a `group` number and
    stand together. `rank` is the place at which a row was shown (1 is the top, NaN where that is not known).

    `actions` says of each kind on which rows it happened, and `blend` what one of them is worth. Without them the one
    action is "acted": a gain above 0.

    Raises ValueError where the shapes disagree, a gain is impossible or a group is torn apart.
    """

    matrix: NDArray[np.float64]
    names: tuple[str, ...]
    gain: NDArray[np.float64]
    group: NDArray[np.int64]
    rank: NDArray[np.float64] | None = None
    actions: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    blend: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.matrix.shape != (len(self.names), len(self.gain)) or len(self.group) != len(self.gain):
            found = f"{self.matrix.shape}, {len(self.names)} names, {len(self.gain)} gains, {len(self.group)} groups"
            raise ValueError(f"matrix {found}; expected [features, rows], a name per feature, a gain and group per row")
        beside = [("rank", self.rank), *self.actions.items()]
        if wrong := [name for name, column in beside if column is not None and column.shape != self.gain.shape]:
            raise ValueError(f"{wrong[0]!r} has not one value per row; there are {len(self.gain)} rows")
        if missing := [name for name in self.actions if name not in self.blend]:
            raise ValueError(f"the blend does not say what {missing[0]!r} is worth; give it a weight, 0 for nothing")
        impossible = self.gain[~(np.isfinite(self.gain) & (self.gain >= 0))]
        if len(impossible):
            raise ValueError(f"found the gain {impossible[0]:g}; expected numbers from 0 upwards")
        if len(self.sizes) != len(np.unique(self.group)):
            raise ValueError("the rows of a group do not stand together; sort them by request")

    @property
    def sizes(self) -> NDArray[np.int64]:
        """The number of rows of each group, in order."""
        starts = np.flatnonzero(np.diff(self.group, prepend=self.group[:1] - 1))
        return np.diff(starts, append=len(self.group))

    @property
    def mixed(self) -> int:
        """The number of groups that hold more than one gain: only those say which order is better."""
        if len(self.gain) == 0:
            return 0
        starts = np.cumsum(self.sizes) - self.sizes
        least, most = np.minimum.reduceat(self.gain, starts), np.maximum.reduceat(self.gain, starts)
        return int((least < most).sum())

    def of(self, names: tuple[str, ...]) -> RankingData:
        """The same rows with only these columns, in this order."""
        if names == self.names:
            return self
        index = {name: number for number, name in enumerate(self.names)}
        return replace(self, matrix=self.matrix[[index[name] for name in names]], names=names)

    @property
    def placed(self) -> bool:
        """Whether it is known of some rows at which place they were shown."""
        return self.rank is not None and bool(np.isfinite(self.rank).any())

    def with_place(self) -> RankingData:
        """The same rows with the column `PLACE`: the logarithm of the place, as attention falls with it."""
        rank = np.full(len(self.gain), np.nan) if self.rank is None else np.maximum(self.rank, 1.0)
        return replace(self, matrix=np.vstack([self.matrix, np.log(rank)]), names=(*self.names, PLACE))

    def take(self, rows: NDArray[np.bool_]) -> RankingData:
        """Some of the rows."""
        return replace(
            self,
            matrix=self.matrix[:, rows],
            gain=self.gain[rows],
            group=self.group[rows],
            rank=None if self.rank is None else self.rank[rows],
            actions={name: happened[rows] for name, happened in self.actions.items()},
        )


@dataclass(frozen=True)
class Fit:
    """A model whose files are written: its kind, figures, and the actions it could not learn, each with the reason."""

    kind: str
    figures: Mapping[str, float]
    dropped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FittedRanker:
    """What became of the rows: the columns in use, columns and actions dropped with the reason, figures of the fit."""

    name: str
    kind: str
    columns: tuple[str, ...]
    dropped: Mapping[str, str]
    rows: int
    requests: int
    figures: Mapping[str, float]


def fit_ranker(
    spec: RankerSpec,
    data: RankingData,
    validation: RankingData | None,
    directory: Path,
    seed: int,
    progress: Progress = lambda done, total: None,  # noqa: ARG005
) -> FittedRanker:
    """Fit the ranker that `spec` declares and write its directory.

    `validation` (the same columns; held-out requests) chooses the penalty or the number of trees; without it, or where
    it has no request with different gains, the strongest penalty and all trees are taken. Raises NothingToLearnError.
    """
    refuse_useless(data)
    dropped = useless_columns(data)
    columns = tuple(name for name in data.names if name not in dropped)
    if not columns:
        raise NothingToLearnError(
            f"none of the {len(data.names)} columns varies over the {len(data.gain)} training rows; declare features"
        )
    held_out = None if validation is None or validation.mixed == 0 else validation.of(columns)
    directory.mkdir(parents=True, exist_ok=True)
    made = fit(spec, data.of(columns), held_out, directory, seed, progress)
    dropped |= {f"action {name}": reason for name, reason in made.dropped.items()}
    fitted = FittedRanker(spec.name, made.kind, columns, dropped, len(data.gain), len(data.sizes), made.figures)
    (directory / DESCRIPTION).write_text(json.dumps(asdict(fitted), indent=1), encoding="utf-8")
    return fitted


def refuse_useless(data: RankingData) -> None:
    """Raise NothingToLearnError where no row says which order is better."""
    if len(data.gain) == 0:
        raise NothingToLearnError("there are no training rows; check that the log has events of the labels' kinds")
    if data.mixed == 0:
        alike = "" if np.ptp(data.gain) == 0 else f" within each of the {len(data.sizes)} requests"
        raise NothingToLearnError(
            f"all {len(data.gain)} training rows have the same gain{alike}, so nothing says which order is better; "
            "check the labels' gains and `within`, or log impressions of items that were not acted on"
        )


def useless_columns(data: RankingData) -> dict[str, str]:
    """Columns that cannot tell one row from another, each with the reason."""
    dropped = {}
    for name, column in zip(data.names, data.matrix, strict=True):
        known = column[~np.isnan(column)]
        if len(known) == 0:
            dropped[name] = "always missing"
        elif len(known) == len(column) and known.min() == known.max():
            dropped[name] = f"always {known[0]:g}"
    return dropped


@singledispatch
def fit(
    spec: object,
    data: RankingData,  # noqa: ARG001
    validation: RankingData | None,  # noqa: ARG001
    directory: Path,  # noqa: ARG001
    seed: int,  # noqa: ARG001
    progress: Progress,  # noqa: ARG001
) -> Fit:
    """Write the model's files. Register a new kind of ranker here."""
    raise TypeError(f"no ranker is fitted by {spec!r}; expected LogisticRegression(), BoostedTrees() or DeepCross()")


@fit.register
def _(
    spec: BoostedTrees,
    data: RankingData,
    validation: RankingData | None,
    directory: Path,
    seed: int,
    progress: Progress,
) -> Fit:
    from shortlist.training.boosting import fit_trees

    return fit_trees(spec, data, validation, directory, seed, progress)


@fit.register
def _(
    spec: DeepCross,
    data: RankingData,
    validation: RankingData | None,
    directory: Path,
    seed: int,
    progress: Progress,
) -> Fit:
    try:
        from shortlist.training.network import fit_network  # torch takes seconds, and only this ranker needs it
    except ModuleNotFoundError as error:
        raise NothingToLearnError(f"{error.name} is not installed; run: pip install 'shortlist[training]'") from error
    return fit_network(spec, data, validation, directory, seed, progress)


@fit.register
def _(
    spec: LogisticRegression,  # noqa: ARG001
    data: RankingData,
    validation: RankingData | None,
    directory: Path,
    seed: int,
    progress: Progress,
) -> Fit:
    if data.placed:  # held-out rows are as serving is: neutral to the place
        data, validation = data.with_place(), validation and replace(validation, rank=None).with_place()
    matrix, acted = drawn(data, seed)
    shape = Shape.of(matrix)
    design = shape.design(matrix)
    held_out = validation if validation is not None and validation.mixed else None
    weights = np.zeros(len(design))
    tried: list[tuple[float, NDArray[np.float64], NDArray[np.float64]]] = []
    for number, penalty in enumerate(PENALTIES if held_out else PENALTIES[:1]):
        weights = newton(design, acted, weights, penalty)
        quality = ndcg_of(held_out, weights @ shape.design(held_out.matrix)) if held_out else np.zeros(1)
        tried.append((penalty, weights, quality))
        progress(number + 1, len(PENALTIES))
    penalty, weights, quality = simplest(tried)
    linear = shape.linear(data.names, weights)
    Linear([term for term in linear.terms if term.column != PLACE], linear.bias).save(directory / LINEAR)
    figures = {"penalty": penalty, "log_loss": log_loss(weights @ design, acted)}
    return Fit("linear", {**figures, "held_out_ndcg@10": float(quality.mean())} if held_out else figures)


def ndcg_of(data: RankingData, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """NDCG@10 of rows ordered by scores, one for each request that has a positive.

    Not their log loss: rows to choose by are all that was retrieved, rows to learn from are drawn, so that the
    probabilities of one are wrong for the other, and the least wrong are those that say little.
    """
    gains, relevant = ordered_gains(data.sizes, data.gain, scores, DEPTH)
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


def place_log_odds(data: RankingData, seed: int) -> NDArray[np.float64]:
    """What the place adds to the log-odds of each row, 0 on average: by logistic regression on it and the columns."""
    placed = data.with_place()
    matrix, acted = drawn(placed, seed)
    shape = Shape.of(matrix)
    design = shape.design(matrix)
    weights = newton(design, acted, np.zeros(len(design)), PLACE_PENALTY)
    place = standardised(placed.matrix[-1:], shape.logarithm[-1:], shape.mean[-1:], shape.scale[-1:])[0]
    return np.asarray(weights[len(data.names)] * np.nan_to_num(place))


def drawn(data: RankingData, seed: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The columns of at most `LINEAR_ROWS` rows, and which of them were acted on."""
    if len(data.gain) <= LINEAR_ROWS:
        return data.matrix, data.gain > 0
    rows = np.sort(np.random.default_rng(seed).choice(len(data.gain), LINEAR_ROWS, replace=False))
    return data.matrix[:, rows], data.gain[rows] > 0


@dataclass(frozen=True)
class Shape:
    """How columns become standardised ones, and which of them get a second one that says where they are missing."""

    logarithm: NDArray[np.bool_]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    gaps: NDArray[np.bool_]

    @classmethod
    def of(cls, matrix: NDArray[np.float64]) -> Shape:
        """Measured on training rows."""
        logarithm, mean, scale, gaps = [], [], [], []
        for column in matrix:
            known = column[np.abs(column) < HUGE]
            skewed = len(known) > 0 and known.min() >= 0 and skewness(known) > SKEWED
            if skewed:
                known = np.log1p(known)
            logarithm.append(skewed)
            mean.append(float(known.mean()) if len(known) else 0.0)
            scale.append(float(known.std()) if len(known) and known.min() < known.max() else 1.0)
            gaps.append(len(known) < len(column))
        return cls(np.array(logarithm), np.array([mean]).T, np.array([scale]).T, np.array(gaps))

    def design(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """[weights, rows]: the standardised columns (0 where missing), where they are missing, and ones."""
        values = standardised(matrix, self.logarithm, self.mean, self.scale)
        missing = np.isnan(values)
        return np.vstack([np.where(missing, 0.0, values), missing[self.gaps], np.ones(matrix.shape[1])])

    def linear(self, names: tuple[str, ...], weights: NDArray[np.float64]) -> Linear:
        """The scorer with these weights, in the order of `design`'s rows."""
        missing = np.zeros(len(names))
        missing[self.gaps] = weights[len(names) : -1]
        columns = zip(names, self.logarithm, self.mean[:, 0], self.scale[:, 0], weights, missing, strict=False)
        terms = [Term(name, bool(logarithm), *map(float, numbers)) for name, logarithm, *numbers in columns]
        return Linear(terms, float(weights[-1]))


def skewness(values: NDArray[np.float64]) -> float:
    """The third standardised moment; 0 where nothing varies."""
    deviation = values - values.mean()
    spread = deviation.std()
    return float(np.mean((deviation / spread) ** 3)) if spread > 0 else 0.0


def log_loss(odds: NDArray[np.float64], acted: NDArray[np.bool_]) -> float:
    """The mean negative log-likelihood of what happened, given log-odds."""
    return float(np.mean(np.logaddexp(0.0, np.where(acted, -odds, odds))))


def newton(
    design: NDArray[np.float64],
    acted: NDArray[np.bool_],
    weights: NDArray[np.float64],
    penalty: float,
    offset: float | NDArray[np.float64] = 0.0,
) -> NDArray[np.float64]:
    """The weights that minimise log loss + penalty/2 * |weights|^2 (the last weight, the bias, is free).

    `offset` are log-odds that are given.
    """
    rows = design.shape[1]
    ridge = np.full(len(design), penalty)
    ridge[-1] = 1e-9  # only so that the equations have a solution when every row is certain

    def objective(w: NDArray[np.float64]) -> float:
        return log_loss(offset + w @ design, acted) + 0.5 * float(ridge @ (w * w))

    best = objective(weights)
    for _step in range(NEWTON_STEPS):
        chance = 1.0 / (1.0 + np.exp(-np.clip(offset + weights @ design, -500, 500)))
        gradient = design @ (chance - acted) / rows + ridge * weights
        curvature = (design * (chance * (1.0 - chance))) @ design.T / rows + np.diag(ridge)
        direction = np.linalg.solve(curvature, gradient)
        length = 1.0
        while objective(weights - length * direction) > best and length > 1e-6:
            length /= 2
        weights = weights - length * direction
        before, best = best, objective(weights)
        if before - best < 1e-10:
            break
    return weights
