"""What was shown, ordered again: of the items that people saw, does a method put those first that they acted on?

Where impressions are logged, this judges better than what users did later: they could act on nothing but what was
shown to them, so a replay of requests rewards whatever repeats the policy that chose it. Measured in the simulated
world, whose truth is known: rankers that triple the true value of a slate look worse than popularity in the replay
better in this. What an order is worth is said by `judging`; under NDCG's name, which it is where one action is all
that counts and every place is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shortlist.events.labels import Labels
from shortlist.ranking.scorer import MatrixScorer
from shortlist.retrieval.specs import Popular, popularity_features
from shortlist.training.backtest import SLATE
from shortlist.training.dataset import FittedSources, Ground, matrix_of
from shortlist.training.evaluation import POPULARITY, TWO_STAGE, Reordered
from shortlist.training.judging import ShownSlates, looks
from shortlist.training.metrics import Floats, by_user, intervals, ordered_gains, reciprocal_rank
from shortlist.training.rankers.linear import PlaceEffect
from shortlist.training.rows import blend, shown, worth

MOST_SHOWN = 500_000
NDCG, MRR = f"ndcg@{SLATE}", f"mrr@{SLATE}"


def reorder(
    ground: Ground,
    places: PlaceEffect | None,
    sources: FittedSources,
    scorers: Mapping[str, MatrixScorer],
    serves: str,
) -> tuple[Reordered, int, Mapping[str, Mapping[str, Floats]]]:
    """Every method's order of the slates of the held-out slice, how many slates had something acted on, and each
    user's value by metric and method. `places` is the effect of a place, where that is known.

    Empty where no impressions are declared, or nothing that was shown was acted on.
    """
    labels, lesson = ground.project.labels, ground.lesson
    if not isinstance(labels, Labels):
        return {}, 0, {}
    rows = shown(lesson.log, ground.project, labels, ground.split.cut, ground.split.stop, lesson.seed, MOST_SHOWN)
    followed = worth(rows.actions, blend(ground.project))
    if not (followed > 0).any():
        return {}, 0, {}
    matrix, names = matrix_of(ground, sources, rows)
    columns = dict(zip(names, matrix, strict=True))
    scores = {POPULARITY: popularity(ground, columns)}
    scores |= {name: columns[f"{name}_score"] for name in sources.names if f"{name}_score" in columns}
    scores |= {name: scorer.score(matrix, names) for name, scorer in scorers.items()}
    if serves:  # the order in which sources are merged is none of what was shown, but of what was found
        scores[TWO_STAGE] = scores[serves]
    starts = np.flatnonzero(np.diff(rows.request, prepend=-1))
    sizes = np.diff(starts, append=len(rows))
    users, user = np.unique(rows.user[starts], return_inverse=True)
    judge = ShownSlates(sizes, user, followed * looks(places, rows.rank))
    per_user: dict[str, dict[str, Floats]] = {NDCG: {}, MRR: {}}
    slates = 0
    for method, score in scores.items():
        gains, relevant = ordered_gains(sizes, np.maximum(followed, 0.0), score, SLATE)
        slates = int((relevant.counts > 0).sum())
        per_user[NDCG][method] = judge.values(score, SLATE)
        first = reciprocal_rank(gains, relevant, SLATE)
        per_user[MRR][method] = by_user(first[:, None], user, len(users))[:, 0]
    found = {metric: intervals(values, POPULARITY, lesson.seed) for metric, values in per_user.items()}
    reordered = {method: {metric: found[metric][method] for metric in per_user} for method in scores}
    return reordered, slates, per_user


def popularity(ground: Ground, columns: Mapping[str, Floats]) -> Floats:
    """The popularity of each row's item at that moment, as the popular source counts it."""
    spec = next((spec for spec in ground.sources if isinstance(spec, Popular)), Popular())
    streams = popularity_features(ground.project.labels, ground.project.item, spec.half_life)
    total: Floats = np.sum([gain * np.nan_to_num(columns[feature.name]) for feature, gain in streams], axis=0)
    return total
