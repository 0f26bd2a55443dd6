"""From labelled rows to a ranker's directory: logistic regression by Newton's method, LambdaMART by LightGBM.

The same rows, spec, seed and machine give the same bytes. What is written is JSON and LightGBM's text; how it is
loaded and what it scores is the business of `shortlist.ranking`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import singledispatch
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from shortlist.ranking.linear import HUGE, Linear, Term, standardised
from shortlist.ranking.scoring import DESCRIPTION, LINEAR, TREES
from shortlist.ranking.specs import LambdaMART, LogisticRegression, RankerSpec

Progress = Callable[[int, int], None]
"""Called with (steps done, steps at most)."""

PENALTIES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0001)
"""L2 strengths tried, per row and in units of standardised columns."""

LINEAR_ROWS = 100_000
"""A hundred weights need no more rows than this; of more, so many are drawn."""

SKEWED = 2.0
"""Columns without negative values and with more skewness than this (an exponential's) are taken by their logarithm."""

NEWTON_STEPS = 50
PATIENCE = 30
"""Trees without a better NDCG@10 on the held-out requests before LambdaMART stops."""

THREADS = 2
"""For large sets, on every machine: LightGBM's sums depend on the number of threads."""

MANY_VALUES = 2_000_000
"""A smaller matrix is trained on one thread: on a busy machine threads would wait for each other longer than work."""

GROUP_LIMIT = 10_000
"""LightGBM's limit of rows per request."""


class NothingToLearnError(ValueError):
    """These rows cannot train a ranker: what was found, and what to do."""


@dataclass(frozen=True)
class RankingData:
    """Labelled rows: `matrix` [features, rows] (NaN is missing), `names` of its features, `gain` and `group` per row.

    A gain is 0 for what was not acted on and larger for better actions. Rows of one request share a `group` number and
    stand together. Raises ValueError where the shapes disagree, a gain is impossible or a group is torn apart.
    """

    matrix: NDArray[np.float64]
    names: tuple[str, ...]
    gain: NDArray[np.float64]
    group: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.matrix.shape != (len(self.names), len(self.gain)) or len(self.group) != len(self.gain):
            found = f"{self.matrix.shape}, {len(self.names)} names, {len(self.gain)} gains, {len(self.group)} groups"
            raise ValueError(f"matrix {found}; expected [features, rows], a name per feature, a gain and group per row")
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
        return RankingData(self.matrix[[index[name] for name in names]], names, self.gain, self.group)


@dataclass(frozen=True)
class FittedRanker:
    """What became of the rows: the columns in use, those dropped with the reason, and figures of the fit."""

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
    kind, figures = fit(spec, data.of(columns), held_out, directory, seed, progress)
    fitted = FittedRanker(spec.name, kind, columns, dropped, len(data.gain), len(data.sizes), figures)
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
) -> tuple[str, dict[str, float]]:
    """Write the model's file; returns its kind and figures of the fit. Register a new kind of ranker here."""
    raise TypeError(f"no ranker is fitted by {spec!r}; expected LogisticRegression(...) or LambdaMART(...)")


@fit.register
def _(
    spec: LambdaMART,
    data: RankingData,
    validation: RankingData | None,
    directory: Path,
    seed: int,
    progress: Progress,
) -> tuple[str, dict[str, float]]:
    # Read when libgomp starts: threads that wait must sleep. Spinning ones took 41 s on a busy machine for 3 s of work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import lightgbm  # takes a second, and only this ranker needs it

    gains = np.unique(np.concatenate([[0.0], data.gain, validation.gain if validation else []]))
    parameters = {
        "objective": "lambdarank",
        "label_gain": gains.tolist(),
        "metric": "ndcg",
        "eval_at": [10],
        "num_leaves": spec.leaves,
        "learning_rate": spec.learning_rate,
        "min_data_in_leaf": spec.rows_per_leaf,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": THREADS if data.matrix.size >= MANY_VALUES else 1,
        "verbosity": -1,
    }

    def dataset(rows: RankingData, reference: lightgbm.Dataset | None = None) -> lightgbm.Dataset:
        if rows.sizes.max() > GROUP_LIMIT:
            raise NothingToLearnError(f"a request has {rows.sizes.max()} rows; at most {GROUP_LIMIT} can be ranked")
        return lightgbm.Dataset(
            rows.matrix.T,
            np.searchsorted(gains, rows.gain),
            group=rows.sizes,
            reference=reference,
            feature_name=[quote(name, safe="") for name in rows.names],
        )

    train = dataset(data)
    held_out = [] if validation is None else [dataset(validation, train)]
    callbacks: list[Callable[..., None]] = [lambda now: progress(now.iteration + 1, spec.trees)]
    if held_out:
        callbacks.append(lightgbm.early_stopping(PATIENCE, verbose=False))
    booster = lightgbm.train(parameters, train, spec.trees, valid_sets=held_out, callbacks=callbacks)
    (directory / TREES).write_text(booster.model_to_string(), encoding="utf-8")  # up to the best tree
    figures = {"trees": float(booster.num_trees())}
    if held_out:
        figures["held_out_ndcg@10"] = float(booster.best_score["valid_0"]["ndcg@10"])
    return "trees", figures


@fit.register
def _(
    spec: LogisticRegression,  # noqa: ARG001
    data: RankingData,
    validation: RankingData | None,
    directory: Path,
    seed: int,
    progress: Progress,
) -> tuple[str, dict[str, float]]:
    matrix, acted = data.matrix, data.gain > 0
    if len(acted) > LINEAR_ROWS:
        drawn = np.sort(np.random.default_rng(seed).choice(len(acted), LINEAR_ROWS, replace=False))
        matrix, acted = matrix[:, drawn], acted[drawn]
    shape = Shape.of(matrix)
    design = shape.design(matrix)
    held_out = None if validation is None else (shape.design(validation.matrix), validation.gain > 0)
    weights = np.zeros(len(design))
    tried: list[tuple[float, float, NDArray[np.float64]]] = []
    for number, penalty in enumerate(PENALTIES if held_out else PENALTIES[:1]):
        weights = newton(design, acted, weights, penalty)
        loss = log_loss(weights @ held_out[0], held_out[1]) if held_out else log_loss(weights @ design, acted)
        tried.append((loss, penalty, weights))
        progress(number + 1, len(PENALTIES))
    loss, penalty, weights = min(tried, key=lambda each: each[0])
    shape.linear(data.names, weights).save(directory / LINEAR)
    return "linear", {"penalty": penalty, "held_out_log_loss" if held_out else "log_loss": loss}


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
    design: NDArray[np.float64], acted: NDArray[np.bool_], weights: NDArray[np.float64], penalty: float
) -> NDArray[np.float64]:
    """The weights that minimise log loss + penalty/2 * |weights|^2 (the last weight, the bias, is free)."""
    rows = design.shape[1]
    ridge = np.full(len(design), penalty)
    ridge[-1] = 1e-9  # only so that the equations have a solution when every row is certain

    def objective(w: NDArray[np.float64]) -> float:
        return log_loss(w @ design, acted) + 0.5 * float(ridge @ (w * w))

    best = objective(weights)
    for _step in range(NEWTON_STEPS):
        chance = 1.0 / (1.0 + np.exp(-np.clip(weights @ design, -500, 500)))
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
