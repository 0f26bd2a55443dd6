"""From labelled rows to a ranker's directory: logistic regression here, trees and the network in rooms of their own.

The same rows, spec, seed and machine give the same bytes. What is written is JSON, LightGBM's text and ONNX; how it is
loaded and what it scores is the business of `shortlist.ranking`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import singledispatch
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shortlist.ranking.calibration import save_heads
from shortlist.ranking.scoring import DESCRIPTION
from shortlist.ranking.specs import BoostedTrees, DeepCross, Ensemble, LogisticRegression, RankerSpec

Progress = Callable[[int, int], None]
"""Called with (steps done, steps at most)."""

PLACE = "place at which it was shown"
"""Columns have identifiers for names, so that no feature is called so."""


class NothingToLearnError(ValueError):
    """These rows cannot train a ranker: what was found, and what to do."""


@dataclass(frozen=True)
class RankingData:
    """Labelled rows: `matrix` [features, rows] (NaN is missing), `names` of its features, `gain` and `group` per row.

    A gain is 0 for what was not acted on and larger for better actions. Rows of one request share a `group` number and
    stand together. `rank` is the place at which a row was shown (1 is the top, NaN where that is not known).

    `actions` says of each kind on which rows it happened, and `blend` what one of them is worth. Without them the one
    action is "acted": a gain above 0. `drawn` tells that nobody was shown the rows of gain 0.

    Raises ValueError where the shapes disagree, a gain is impossible or a group is torn apart.
    """

    matrix: NDArray[np.float64]
    names: tuple[str, ...]
    gain: NDArray[np.float64]
    group: NDArray[np.int64]
    rank: NDArray[np.float64] | None = None
    actions: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    blend: Mapping[str, float] = field(default_factory=dict)
    drawn: bool = False

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
    def weight(self) -> NDArray[np.float64]:
        """How much each row counts, 1 on average.

        What was acted on counts by its gain, so that odds are those of what is won, not of how often (Covington, Adams
        and Sargin, Deep neural networks for YouTube recommendations, RecSys 2016). Else rows that were shown count
        alike: they are what happens. Where negatives were drawn, how many they are says nothing, nor how long a user
        went on: then the positives of a request count as much as its negatives, and every request the same.
        """
        acted = self.gain > 0
        if not acted.any():
            return np.ones(len(self.gain))
        weight = np.where(acted, self.gain / self.gain[acted].mean(), 1.0)
        if self.drawn:
            kind = 2 * np.repeat(np.arange(len(self.sizes)), self.sizes) + acted
            weight /= np.bincount(kind)[kind]
        return np.asarray(weight / weight.mean())

    @property
    def placed(self) -> bool:
        """Whether it is known of some rows at which place they were shown."""
        return self.rank is not None and bool(np.isfinite(self.rank).any())

    def with_place(self) -> RankingData:
        """The same rows with the column `PLACE`."""
        rank = np.full(len(self.gain), np.nan) if self.rank is None else self.rank
        return replace(self, matrix=np.vstack([self.matrix, log_place(rank)]), names=(*self.names, PLACE))

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


def log_place(rank: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of a place, as attention falls with it."""
    return np.log(np.maximum(rank, 1.0))


@dataclass(frozen=True)
class Fit:
    """A model whose files are written: its kind, figures, and the actions it could not learn, each with the reason.

    `scores` are those of the held-out rows where one score stands for every action and is yet to be calibrated.
    """

    kind: str
    figures: Mapping[str, float]
    dropped: Mapping[str, str] = field(default_factory=dict)
    scores: NDArray[np.float64] | None = None


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

    `validation` (the same columns; held-out requests) chooses the penalty or the number of trees and calibrates what
    the scores mean as probabilities; without it, or where it has no request with different gains, the strongest penalty
    and all trees are taken, and nothing is calibrated. Raises NothingToLearnError.
    """
    from shortlist.training.rankers.calibration import (
        heads_of_one_score,  # it stands on logistic regression, which needs this
    )

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
    figures = dict(made.figures)
    if held_out is not None and made.scores is not None:
        heads, kept = heads_of_one_score(made.scores, held_out)
        save_heads(directory, heads)
        figures |= kept
    fitted = FittedRanker(spec.name, made.kind, columns, dropped, len(data.gain), len(data.sizes), figures)
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
    raise TypeError(
        f"no ranker is fitted by {spec!r}; expected LogisticRegression(), BoostedTrees(), DeepCross() or Ensemble()"
    )


@fit.register
def _(
    spec: BoostedTrees,
    data: RankingData,
    validation: RankingData | None,
    directory: Path,
    seed: int,
    progress: Progress,
) -> Fit:
    from shortlist.training.rankers.boosting import fit_trees

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
        from shortlist.training.rankers.network import fit_network  # torch takes seconds, and only this ranker needs it
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
    from shortlist.training.rankers.linear import fit_linear

    return fit_linear(data, validation, directory, seed, progress)


@fit.register
def _(
    spec: Ensemble,  # noqa: ARG001
    data: RankingData,
    validation: RankingData | None,
    directory: Path,
    seed: int,  # noqa: ARG001
    progress: Progress,
) -> Fit:
    from shortlist.training.rankers.ensemble import fit_ensemble

    made = fit_ensemble(data, validation, directory)
    progress(1, 1)
    return made
