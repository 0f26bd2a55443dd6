"""Would it have helped? Every method on the same requests of the held-out slice, as they would have been served.

Requests: up to five per user, spread evenly over the user's positives in the slice; relevant are the user's positives
from there to its end. Features, seen items and popularity are those of the moment, models are frozen at the cut.
Metrics are averaged per user, then over users; intervals are bootstrapped by user.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Query
from shortlist.pipeline.runner import ByScore, Pipeline
from shortlist.pipeline.stages import Scorer, Source
from shortlist.training.backtest import SLATE, Asked, Past, Progress, ask, described, filtered
from shortlist.training.metrics import (
    Floats,
    Interval,
    Relevant,
    by_user,
    coverage,
    finite,
    gain_matrix,
    intervals,
    ndcg,
    recall,
    reciprocal_rank,
)
from shortlist.training.requests import Requests

POPULARITY, TWO_STAGE, MERGED = "popularity", "two_stage", "merged"
DEPTHS = (100, 500)
PER_USER = 5
MOST_REQUESTS = 4_000
"""The newest; each takes a few milliseconds."""

Ranked = NDArray[np.int32]


@dataclass(frozen=True)
class Quality:
    """The figures of one method's slates of ten, each with its difference from popularity, paired by user."""

    metrics: Mapping[str, Interval]
    over_popularity: Mapping[str, Interval]
    coverage: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            **{name: value.to_dict() for name, value in self.metrics.items()},
            f"coverage@{SLATE}": finite(self.coverage),
            "over_popularity": {name: value.to_dict() for name, value in self.over_popularity.items()},
        }


@dataclass(frozen=True)
class Losses:
    """Where the held-out positives were lost, each counted once, in the order of the stages."""

    not_in_catalogue: int = 0
    filtered: int = 0
    not_retrieved: int = 0
    ranked_below: int = 0
    in_slate: int = 0

    @property
    def positives(self) -> int:
        """All of them."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Detail:
    """What the figures were computed from: each user's value by metric and method (NaN: not measured), the requests,
    and what each source retrieved for each of them, best first, padded with -1.
    """

    per_user: Mapping[str, Mapping[str, Floats]]
    requests: Requests
    retrieved: Mapping[str, Ranked]


@dataclass(frozen=True)
class Evaluation:
    """What was measured on one slice. `methods` and `retrieval` are empty where it has no request.

    `losses` are those of what serves, `popularity_losses` what they would be if popularity served; `found_more` is how
    much more all sources together find than popularity alone, by metric and paired by user. Where NDCG and MRR
    of `methods` were measured on `shown` slates that were ordered again, `replayed` has those of replayed requests.
    """

    users: int
    requests: int
    methods: Mapping[str, Quality]
    retrieval: Mapping[str, Mapping[str, Interval]]
    losses: Losses
    popularity_losses: Losses
    shown: int = 0
    replayed: Mapping[str, Quality] = field(default_factory=dict)
    found_more: Mapping[str, Interval] = field(default_factory=dict)
    detail: Detail | None = field(default=None, repr=False, compare=False)
    by_replay: Evaluation | None = field(default=None, repr=False, compare=False)

    @property
    def serving(self) -> Evaluation:
        """The same, or replayed requests alone where nothing orders what serves: shown slates say nothing of it."""
        return self if TWO_STAGE in self.methods or self.by_replay is None else self.by_replay

    def with_popularity(self) -> Evaluation:
        """The same measurements where popularity is what serves."""
        methods, replayed = (
            {name: held[POPULARITY if name == TWO_STAGE else name] for name in held}
            for held in (self.methods, self.replayed)
        )
        return replace(self, methods=methods, replayed=replayed, losses=self.popularity_losses)

    def judged_on(self, reordered: Reordered, slates: int, per_user: Mapping[str, Mapping[str, Floats]]) -> Evaluation:
        """The same with the metrics of what was shown and ordered again; of `slates` slates."""
        if not reordered:
            return self
        nothing = Interval(float("nan"), float("nan"), float("nan"))
        unknown = Quality(dict.fromkeys(METRICS, nothing), dict.fromkeys(METRICS, nothing), float("nan"))
        methods = {
            method: replace(
                self.methods.get(method, unknown),
                metrics={
                    **self.methods.get(method, unknown).metrics,
                    **{name: pair[0] for name, pair in found.items()},
                },
                over_popularity={
                    **self.methods.get(method, unknown).over_popularity,
                    **{name: pair[1] for name, pair in found.items()},
                },
            )
            for method, found in reordered.items()
        }
        detail = None if self.detail is None else replace(self.detail, per_user={**self.detail.per_user, **per_user})
        return replace(self, methods=methods, replayed=self.methods, shown=slates, detail=detail, by_replay=self)

    def ndcg(self, method: str) -> float:
        """NDCG@10 of a method; NaN where it was not measured."""
        return self.methods[method].metrics[f"ndcg@{SLATE}"].value if method in self.methods else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON for the report."""
        return {
            "users": self.users,
            "requests": self.requests,
            "judged_on": "slates that were shown, ordered again" if self.shown else "requests of the past, replayed",
            "shown_slates": self.shown,
            "methods": {name: quality.to_dict() for name, quality in self.methods.items()},
            "replayed": {name: quality.to_dict() for name, quality in self.replayed.items()},
            "retrieval": {
                name: {metric: value.to_dict() for metric, value in found.items()}
                for name, found in self.retrieval.items()
            },
            "losses": {**asdict(self.losses), "positives": self.losses.positives},
        }

    def metrics(self, baseline: str) -> dict[str, float | None]:
        """Flat figures for guardrails: plain names are those of what serves, the others are `<method>.<metric>`.

        The figures of popularity stand there under the name of the source `baseline` as well.
        """
        flat: dict[str, float | None] = {}
        for method, quality in self.methods.items():
            figures = {name: finite(value.value) for name, value in quality.metrics.items()}
            figures[f"coverage@{SLATE}"] = finite(quality.coverage)
            flat.update({f"{method}.{name}": value for name, value in figures.items()})
            if method == TWO_STAGE:
                flat.update(figures)
            if method == POPULARITY:
                flat.update({f"{baseline}.{name}": value for name, value in figures.items()})
        for source, found in self.retrieval.items():
            figures = {name: finite(value.value) for name, value in found.items()}
            flat.update(figures if source == MERGED else {f"{source}.{name}": value for name, value in figures.items()})
            if source == POPULARITY:
                flat.update({f"{baseline}.{name}": value for name, value in figures.items()})
        return flat


Reordered = Mapping[str, Mapping[str, tuple[Interval, Interval]]]
"""Of each method and metric: the value, and the difference from popularity, paired by user."""


class _Shown:
    """What every request was shown, as matrices (requests, ranks) padded with -1: slates and what was retrieved."""

    def __init__(self, requests: int) -> None:
        self.requests = requests
        self.slates: dict[str, Ranked] = {}
        self.retrieved: dict[str, Ranked] = {}

    def slate(self, method: str, number: int, items: Ranked) -> None:
        """Keep the first ten that a method shows."""
        _keep(self.slates, method, (self.requests, SLATE), number, items)

    def retrieval(self, source: str, number: int, items: Ranked) -> None:
        """Keep the first that a source found."""
        _keep(self.retrieved, source, (self.requests, DEPTHS[-1]), number, items)


def _keep(kept: dict[str, Ranked], name: str, shape: tuple[int, int], number: int, items: Ranked) -> None:
    if name not in kept:
        kept[name] = np.full(shape, -1, np.int32)
    kept[name][number, : len(items)] = items[: shape[1]]


@dataclass(frozen=True)
class Contest:
    """Who is measured: the pipeline's sources, the scorers by name and the one that `serves` ("": the merged order).

    `baseline` proposes popular items, whether or not it is one of the pipeline's sources.
    """

    pipeline: Pipeline
    scorers: Mapping[str, Scorer]
    serves: str
    baseline: Source


def evaluate(
    contest: Contest, past: Past, item: str, users: Sequence[str], requests: Requests, seed: int, progress: Progress
) -> Evaluation:
    """Put the requests to the pipeline's stages and measure every method.

    Methods: each source alone (the baseline under the name "popularity"), each scorer over the merged candidates, and
    "two_stage", which is what serves. `item` names the entity that is ranked, `users` are the ids of user indexes.
    """
    shown, losses = _Shown(len(requests)), np.zeros((2, 5), np.int64)
    for asked in ask(contest.pipeline, past, users, requests, "evaluate", progress):
        popular = _show(contest, asked, shown)
        part = slice(requests.relevant.offsets[asked.number], requests.relevant.offsets[asked.number + 1])
        present = requests.relevant.items[part]
        present = present[present < len(past.table.entities[item])]
        eligible = filtered(contest.pipeline, asked.query, Candidates(present)).items
        gone = [requests.relevant.offsets[asked.number + 1] - requests.relevant.offsets[asked.number] - len(present)]
        gone.append(len(present) - len(eligible))
        for row, (method, found) in enumerate([(TWO_STAGE, asked.merged), (POPULARITY, popular)]):
            losses[row] += [*gone, *_lost(eligible, found.items, shown.slates[method][asked.number])]
    available = int(past.table.entities[item].available.sum())
    return _measured(shown, requests, available, (Losses(*losses[0].tolist()), Losses(*losses[1].tolist())), seed)


def _show(contest: Contest, asked: Asked, shown: _Shown) -> Candidates:
    """Keep what every method answers to one request; returns what is popular."""
    baseline = contest.baseline
    popular = asked.proposals.get(baseline.name)
    if popular is None:
        popular = filtered(contest.pipeline, asked.query, baseline.propose(asked.query))
    others = {name: found for name, found in asked.proposals.items() if name != baseline.name}
    for name, found in {POPULARITY: popular, **others}.items():
        shown.slate(name, asked.number, found.items)
        shown.retrieval(name, asked.number, found.items)
    shown.retrieval(MERGED, asked.number, asked.merged.items)
    candidates = described(contest.pipeline, asked.query, asked.merged)
    for name, scorer in contest.scorers.items():
        shown.slate(name, asked.number, _best(asked.query, scorer, candidates))
    served = shown.slates[contest.serves][asked.number] if contest.serves else candidates.items
    shown.slate(TWO_STAGE, asked.number, served)
    return popular


def _best(query: Query, scorer: Scorer, candidates: Candidates) -> Ranked:
    """The slate that serving would make of these scores."""
    if not len(candidates):
        return candidates.items
    scored = candidates.describe({"score": scorer.score(query, candidates)})
    return scored.items[ByScore().arrange(query, scored)[:SLATE]]


def _lost(eligible: Ranked, found: Ranked, slate: Ranked) -> tuple[int, int, int]:
    """Of the eligible relevant items: how many were not retrieved, ranked below the slate, and in it."""
    retrieved, shown = np.isin(eligible, found), np.isin(eligible, slate)
    return int((~retrieved & ~shown).sum()), int((retrieved & ~shown).sum()), int(shown.sum())


def _measured(
    shown: _Shown, requests: Requests, available: int, losses: tuple[Losses, Losses], seed: int
) -> Evaluation:
    if not len(requests):
        return Evaluation(0, 0, {}, {}, *losses)
    who = np.unique(requests.user, return_inverse=True)
    count = len(who[0])
    by_metric: dict[str, dict[str, Floats]] = {name: {} for name in METRICS}
    for method, slates in shown.slates.items():
        gains = gain_matrix(slates, requests.relevant)
        for name, measure in METRICS.items():
            per_request = measure(gains, requests.relevant)[:, None]
            by_metric[name][method] = by_user(per_request, who[1], count)[:, 0]
    found = {name: intervals(values, POPULARITY, seed) for name, values in by_metric.items()}
    methods = {
        method: Quality(
            {name: found[name][method][0] for name in METRICS},
            {name: found[name][method][1] for name in METRICS},
            coverage(slates, SLATE, available),
        )
        for method, slates in shown.slates.items()
    }
    retrieval, more = _retrieval(shown, requests, who[1], count, seed)
    detail = Detail(by_metric, requests, shown.retrieved)
    return Evaluation(count, len(requests), methods, retrieval, *losses, found_more=more, detail=detail)


def _retrieval(
    shown: _Shown, requests: Requests, user: NDArray[np.int64], users: int, seed: int
) -> tuple[dict[str, dict[str, Interval]], dict[str, Interval]]:
    found: dict[str, dict[str, Interval]] = {source: {} for source in shown.retrieved}
    more = {}
    for depth in DEPTHS:
        per_user = {
            source: by_user(
                recall(gain_matrix(items, requests.relevant), requests.relevant, depth)[:, None], user, users
            )[:, 0]
            for source, items in shown.retrieved.items()
        }
        for source, (value, over_popularity) in intervals(per_user, POPULARITY, seed).items():
            found[source][f"recall@{depth}"] = value
            if source == MERGED:
                more[f"recall@{depth}"] = over_popularity
    return found, more


METRICS: Mapping[str, Callable[[Floats, Relevant], Floats]] = {
    f"ndcg@{SLATE}": partial(ndcg, k=SLATE),
    f"recall@{SLATE}": partial(recall, k=SLATE),
    f"mrr@{SLATE}": partial(reciprocal_rank, k=SLATE),
}
