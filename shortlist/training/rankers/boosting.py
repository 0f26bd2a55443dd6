"""Gradient-boosted trees by LightGBM: pointwise, pairwise or listwise, stopped where NDCG@10 stops rising."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from shortlist.giving_way import let_threads_sleep
from shortlist.ranking.scoring import TREES
from shortlist.ranking.specs import BoostedTrees
from shortlist.ranking.trees import Trees
from shortlist.training.rankers.fitting import Fit, NothingToLearnError, Progress, RankingData
from shortlist.training.rankers.linear import PlaceEffect

if TYPE_CHECKING:
    import lightgbm

PATIENCE = 30
"""Trees without a better NDCG@10 on the held-out requests before training stops."""

THREADS = 2
"""For large sets, on every machine: LightGBM's sums depend on the number of threads."""

MANY_VALUES = 2_000_000
"""A smaller matrix is trained on one thread: on a busy machine threads would wait for each other longer than work."""

GROUP_LIMIT = 10_000
"""LightGBM's limit of rows per request."""

MOST_PAIRS = 2_000_000
"""Of more pairs so many are drawn, with replacement."""

LIGHTGBMS_OWN = {"pointwise": "binary", "listwise": "lambdarank"}
"""LightGBM has no objective of pairs that all count alike: that one is `RankNet`."""


def fit_trees(
    spec: BoostedTrees,
    data: RankingData,
    validation: RankingData | None,
    directory: Path,
    seed: int,
    progress: Progress,
) -> Fit:
    """Grow the trees and write them as LightGBM's text."""
    if len(data.gain) < 2 * spec.rows_per_leaf:
        raise NothingToLearnError(
            f"{len(data.gain)} training rows do not fill two leaves of {spec.rows_per_leaf}; "
            f"log more, or lower rows_per_leaf of {spec.name}"
        )
    if spec.objective == "pointwise" and (data.gain > 0).all():
        raise NothingToLearnError(
            f"all {len(data.gain)} training rows were acted on, so single rows say nothing; "
            'log impressions of items that were not acted on, or learn pairs: BoostedTrees("pairwise")'
        )
    let_threads_sleep()
    import lightgbm  # takes a second, and only trees need it

    gains = np.unique(np.concatenate([[0.0], data.gain, validation.gain if validation else []]))

    def dataset(rows: RankingData, reference: lightgbm.Dataset | None = None) -> lightgbm.Dataset:
        if rows.sizes.max() > GROUP_LIMIT:
            raise NothingToLearnError(f"a request has {rows.sizes.max()} rows; at most {GROUP_LIMIT} can be ranked")
        return lightgbm.Dataset(
            rows.matrix.T,
            np.searchsorted(gains, rows.gain),
            group=rows.sizes,
            weight=rows.weight if spec.objective == "pointwise" else None,
            reference=reference,
            feature_name=[quote(name, safe="") for name in rows.names],
        )

    train = dataset(data)
    base = log_odds(data) if spec.objective == "pointwise" else 0.0
    if data.rank is not None and data.placed:  # where the place has said what it knows, trees need not say it again
        train.set_init_score(base + PlaceEffect.of(data, seed).log_odds(data.rank))
    held_out = [] if validation is None else [dataset(validation, train)]
    callbacks: list[Callable[..., None]] = [lambda now: progress(now.iteration + 1, spec.trees)]
    if held_out:
        callbacks.append(lightgbm.early_stopping(PATIENCE, verbose=False))
    try:
        booster = lightgbm.train(
            parameters_of(spec, data, gains, seed), train, spec.trees, valid_sets=held_out, callbacks=callbacks
        )
    except lightgbm.basic.LightGBMError as error:
        if "num_features" not in str(error):
            raise
        raise NothingToLearnError(
            f"no column tells enough of the {len(data.gain)} training rows from the others; declare features"
        ) from error
    if data.placed and base:
        raise_first_tree(booster, base)
    (directory / TREES).write_text(booster.model_to_string(), encoding="utf-8")  # up to the best tree
    figures = {"trees": float(booster.num_trees())}
    if validation is None:
        return Fit("trees", figures)
    figures["held_out_ndcg@10"] = float(booster.best_score["valid_0"]["ndcg@10"])
    trees = Trees.load(directory / TREES, validation.names)
    return Fit("trees", figures, scores=trees.score(validation.matrix, validation.names))


def parameters_of(spec: BoostedTrees, data: RankingData, gains: NDArray[np.float64], seed: int) -> dict[str, Any]:
    """What LightGBM is told; `gains` is the gain of each label."""
    return {
        "objective": LIGHTGBMS_OWN.get(spec.objective) or RankNet.of(data, seed),
        "label_gain": gains.tolist(),
        "metric": "ndcg",
        "eval_at": [10],
        "num_leaves": spec.leaves,
        "learning_rate": spec.learning_rate,
        "min_data_in_leaf": spec.rows_per_leaf,
        "feature_pre_filter": False,  # or else nothing may be left, and an objective of ours is refused then
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": THREADS if data.matrix.size >= MANY_VALUES else 1,
        "verbosity": -1,
    }


def log_odds(data: RankingData) -> float:
    """The log-odds of an action on any row."""
    rate = float(((data.gain > 0) * data.weight).mean())
    return math.log(rate / (1 - rate))


def raise_first_tree(booster: lightgbm.Booster, by: float) -> None:
    """Put the score that training began with into the model, as LightGBM does where it chose that score itself."""
    for leaf in range(booster.dump_model(num_iteration=1)["tree_info"][0]["num_leaves"]):
        booster.set_leaf_output(0, leaf, booster.get_leaf_output(0, leaf) + by)


@dataclass(frozen=True)
class RankNet:
    """The objective of pairs: minus the log probability, sigmoid(better - worse), that each better row is ahead."""

    better: NDArray[np.int64]
    worse: NDArray[np.int64]

    @classmethod
    def of(cls, data: RankingData, seed: int) -> RankNet:
        """Every two rows of a request with different gains; `MOST_PAIRS` drawn ones where there are more."""
        rows, stop = len(data.gain), np.repeat(np.cumsum(data.sizes), data.sizes)
        order = np.lexsort((-data.gain, stop))  # within each request from the greatest gain to the least
        gain = data.gain[order]
        level = np.flatnonzero((np.diff(stop, prepend=-1) != 0) | (np.diff(gain, prepend=np.nan) != 0))
        next_level = np.append(level[1:], rows)[np.searchsorted(level, np.arange(rows), side="right") - 1]
        behind = stop - np.minimum(next_level, stop)  # rows of the same request with a lesser gain: the last ones
        ends = np.cumsum(behind)
        pair = np.arange(ends[-1])
        if ends[-1] > MOST_PAIRS:
            pair = np.sort(np.random.default_rng(seed).integers(0, ends[-1], MOST_PAIRS))
        row = np.searchsorted(ends, pair, side="right")
        return cls(order[row], order[stop[row] - ends[row] + pair])

    def __call__(
        self,
        scores: NDArray[np.float64],
        train: lightgbm.Dataset | None,  # noqa: ARG002
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The gradient and the curvature at each row's score, as LightGBM asks for them."""
        wrong = 1.0 / (1.0 + np.exp(np.clip(scores[self.better] - scores[self.worse], -500, 500)))
        curvature, rows = wrong * (1.0 - wrong), len(scores)
        gradient = np.bincount(self.worse, wrong, rows) - np.bincount(self.better, wrong, rows)
        bend = np.bincount(self.worse, curvature, rows) + np.bincount(self.better, curvature, rows)
        return np.asarray(gradient, np.float64), np.asarray(bend, np.float64)
