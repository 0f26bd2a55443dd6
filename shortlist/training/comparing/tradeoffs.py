"""What does quality cost? Every source and ranker of a project on one split: accuracy, latency, size, training time.

Nothing is published. Accuracy is that of the held-out slice, as training measures it; latency is that of the loaded
parts in this process, over the state as of the slice's end. Which source is worth its keep is seen by leaving it out.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shortlist.events.log import EventLog
from shortlist.features.context import values_of
from shortlist.pipeline.candidates import Candidates, Column
from shortlist.pipeline.query import Deadline, Query
from shortlist.pipeline.runner import ByScore
from shortlist.pipeline.stages import Merger, Source
from shortlist.project import Project
from shortlist.ranking.scoring import RankerStage, load_scorer
from shortlist.retrieval.specs import Popular
from shortlist.training.backtest import SLATE, Progress, described, filtered
from shortlist.training.comparing.reasons import Attribution, Reason, attribution, reason
from shortlist.training.dataset import Ground, pipeline_of, survey
from shortlist.training.evaluation import DEPTHS, MERGED, POPULARITY, TWO_STAGE, Detail, Ranked
from shortlist.training.metrics import Floats, Interval, Relevant, by_user, gain_matrix, intervals, recall
from shortlist.training.rows import unheard
from shortlist.training.train import Learned, Steps, baseline_name, learn

CANDIDATES = 500
"""Latencies are those of so many."""
USERS, ROUNDS = 10, 6
"""Each part is timed for so many users, so often; the first round warms caches up and does not count."""
STEP = "weigh"

Role = Literal["source", "ranker", "pipeline"]


@dataclass(frozen=True)
class Method:
    """One line of the table. `quality` lacks what a method does not do; latency is NaN where nothing could be asked.

    Latency is the median time of scoring 500 candidates, or of proposing as many, whatever a source's quota.
    """

    name: str
    role: Role
    quality: Mapping[str, Interval]
    latency_ms: float
    bytes: int
    seconds: float
    reason: Reason | None = None
    attribution: Attribution | None = None

    def value(self, metric: str) -> float:
        """A figure; NaN where it was not measured."""
        return self.quality[metric].value if metric in self.quality else math.nan


@dataclass(frozen=True)
class Contribution:
    """What one source brings: shares of the held-out positives that it `found` and that it `alone` found.

    `overlap` is the share of what it found that another found too. `adds` is what the merged recall loses without it,
    by depth, paired by user.
    """

    source: str
    found: float
    alone: float
    overlap: Mapping[str, float]
    without: Mapping[str, Interval]
    adds: Mapping[str, Interval]

    @property
    def is_useful(self) -> bool:
        """Whether the merged list is better with it, beyond chance."""
        return any(gain.low > 0 for gain in self.adds.values())


@dataclass(frozen=True)
class TradeOffs:
    """The table. `values` are each user's by metric and method, so that any two methods can be compared in pairs."""

    users: int
    requests: int
    methods: tuple[Method, ...]
    contributions: tuple[Contribution, ...]
    findings: tuple[str, ...]
    values: Mapping[str, Mapping[str, Floats]]
    seed: int

    def difference(self, metric: str, method: str, other: str) -> Interval:
        """By how much `method` is better than `other`, with its 95 % interval, paired by user."""
        held = self.values[metric]
        return intervals({"one": held[method], "other": held[other]}, "other", self.seed)["one"][1]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "users": self.users,
            "requests": self.requests,
            "candidates": CANDIDATES,
            "methods": [
                {
                    **{name: held for name, held in asdict(method).items() if name not in ("quality", "latency_ms")},
                    "latency_ms": round(method.latency_ms, 4) if math.isfinite(method.latency_ms) else None,
                    "quality": {name: value.to_dict() for name, value in method.quality.items()},
                }
                for method in self.methods
            ],
            "sources": [
                {
                    **{name: getattr(part, name) for name in ("source", "found", "alone", "overlap", "is_useful")},
                    "without": {name: value.to_dict() for name, value in part.without.items()},
                    "adds": {name: value.to_dict() for name, value in part.adds.items()},
                }
                for part in self.contributions
            ],
            "findings": list(self.findings),
        }


def trade_offs(project: Project, log: EventLog, seed: int, progress: Progress) -> TradeOffs:
    """Train everything that the project declares on one split, and weigh it. Raises TrainingError as training does."""
    ground = survey(project, log, seed, progress)
    with tempfile.TemporaryDirectory(prefix="shortlist-report-") as place:
        return weigh(learn(ground, Path(place), progress, Steps()), progress)


def weigh(learned: Learned, progress: Progress) -> TradeOffs:
    """Weigh what was learned."""
    evaluation, detail = learned.evaluation, learned.evaluation.detail
    seed = learned.ground.lesson.seed
    values: dict[str, Mapping[str, Floats]] = {}
    contributions: tuple[Contribution, ...] = ()
    if detail is not None:
        values = {**detail.per_user, **recalls(detail, detail.retrieved)}
        contributions = tuple(contributions_of(learned, detail, progress))
    findings = (*unheard(learned.ground.project), *learned.sources.findings, *learned.choice.findings)
    methods = tuple(Weighing(learned).methods())
    progress(STEP, 1.0)
    return TradeOffs(evaluation.users, evaluation.requests, methods, contributions, findings, values, seed)


def wide(ground: Ground) -> Ground:
    """The same where every source proposes as many candidates as are timed, whatever its quota."""
    sources = [replace(spec, quota=CANDIDATES) for spec in ground.sources]
    return replace(ground, lesson=replace(ground.lesson, project=replace(ground.project, sources=sources)))


class Weighing:
    """The loaded parts of what was learned, and how they are timed; sources `alone` propose as many as are ranked."""

    def __init__(self, learned: Learned) -> None:
        self.learned, lesson = learned, learned.ground.lesson
        self.pipeline, self.resort = pipeline_of(learned.ground, learned.sources, learned.past.table)
        self.alone, _ = pipeline_of(wide(learned.ground), learned.sources, learned.past.table)
        scorers = {name: load_scorer(learned.directory / "rankers" / name) for name in learned.choice.fitted}
        self.rankers = {name: RankerStage(name, scorer) for name, scorer in scorers.items()}
        self.now, self.asking = 0, list[tuple[str, dict[str, Any]]]()
        if learned.evaluation.detail is not None:
            requests = learned.evaluation.detail.requests
            self.now = int(requests.now[-1])
            newest = {user: number for number, user in enumerate(requests.user.tolist())}
            self.asking = [
                (lesson.known.users.ids[requests.user[number]], values_of(requests.context, number))
                for number in sorted(newest.values(), reverse=True)[:USERS]
            ]

    def methods(self) -> Iterator[Method]:
        """Every line of the table: sources, rankers, and what serves."""
        popular = baseline_name(self.learned.ground)
        specs = {spec.name: spec for spec in self.learned.ground.sources}
        proposing = {source.name: source for source in self.alone.sources}
        for name, source in {popular: self.resort, **proposing}.items():
            spec = specs.get(name, Popular())
            yield self._method(
                POPULARITY if name == popular else name,
                "source",
                self._median(partial(self._propose, source)),
                self.learned.directory / "sources" / name,
                self.learned.sources.seconds.get(name, 0.0),
                reason(spec),
            )
        for name, stage in self.rankers.items():
            asked = [(query, self._candidates(query)) for query in self._queries()]
            yield self._method(
                name,
                "ranker",
                median_ms(partial(scored, stage), [asked] * ROUNDS),
                self.learned.directory / "rankers" / name,
                self.learned.choice.seconds[name],
                reason(stage.scorer),
                attribution(stage, *asked[-1]) if asked else None,
            )
        yield self._two_stage()

    def _two_stage(self) -> Method:
        sources, choice = self.learned.sources, self.learned.choice
        parts = [self.learned.directory / "sources" / name for name in sources.names]
        parts += [self.learned.directory / "rankers" / choice.ranker] if choice.ranker else []
        seconds = sum(sources.seconds.values()) + choice.seconds.get(choice.ranker, 0.0)
        quality = self._quality(TWO_STAGE)
        return Method(
            TWO_STAGE, "pipeline", quality, self._median(self._answer), sum(map(bytes_in, parts)), round(seconds, 3)
        )

    def _method(
        self,
        name: str,
        role: Role,
        latency_ms: float,
        place: Path,
        seconds: float,
        why: Reason,
        moved: Attribution | None = None,
    ) -> Method:
        return Method(name, role, self._quality(name), latency_ms, bytes_in(place), round(seconds, 3), why, moved)

    def _quality(self, name: str) -> dict[str, Interval]:
        evaluation = self.learned.evaluation
        found = dict(evaluation.methods[name].metrics) if name in evaluation.methods else {}
        return {**found, **evaluation.retrieval.get(MERGED if name == TWO_STAGE else name, {})}

    def _queries(self) -> list[Query]:
        """A fresh query of each user: what was learned of one is not learned again."""
        return [Query(user, SLATE, self.now, "report", Deadline(math.inf), context) for user, context in self.asking]

    def _median(self, work: Callable[[Query], object]) -> float:
        rounds = [self._queries() for _ in range(ROUNDS)]
        return median_ms(work, rounds)

    def _learn(self, query: Query, name: str | None = None) -> None:
        for stage in self.pipeline.understand if name is None else self.alone.understand:
            if name is None or stage.name == name:
                for known, value in stage.learn(query).items():
                    query.learn(known, value)

    def _propose(self, source: Source, query: Query) -> Candidates:
        self._learn(query, source.name)
        return source.propose(query)

    def _retrieve(self, query: Query) -> Candidates:
        self._learn(query)
        proposals = {source.name: source.propose(query) for source in self.pipeline.sources}
        assert self.pipeline.merger is not None
        merged = self.pipeline.merger.merge(query, proposals)
        return filtered(self.pipeline, query, merged)

    def _candidates(self, query: Query) -> Candidates:
        """As many candidates as are timed, with every column; a short list is repeated."""
        found = self._retrieve(query)
        if len(found):
            found = found.take(np.resize(np.arange(len(found)), CANDIDATES))
        return described(self.pipeline, query, found)

    def _answer(self, query: Query) -> object:
        found = described(self.pipeline, query, self._retrieve(query))
        if not self.learned.choice.ranker or not len(found):
            return found
        scored = found.describe({"score": self.rankers[self.learned.choice.ranker].score(query, found)})
        return ByScore().arrange(query, scored)


def scored(stage: RankerStage, asked: tuple[Query, Candidates]) -> Column:
    """What a ranker says of the candidates of a query."""
    return stage.score(*asked)


def median_ms(work: Callable[[Any], object], rounds: Sequence[Sequence[object]]) -> float:
    """The median time of one call, in milliseconds, the first round left out; NaN where there is nothing to ask."""
    taken = []
    for number, given in enumerate(rounds):
        for one in given:
            begun = time.perf_counter()
            work(one)
            if number:
                taken.append(time.perf_counter() - begun)
    return float(np.median(taken)) * 1000 if taken else math.nan


def bytes_in(place: Path) -> int:
    """The size of all files in a folder; 0 where there is none, as of what only reads features."""
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())


def recalls(detail: Detail, lists: Mapping[str, Ranked]) -> dict[str, dict[str, Floats]]:
    """Each user's recall by depth and list."""
    relevant = detail.requests.relevant
    users, user = np.unique(detail.requests.user, return_inverse=True)
    gains = {name: gain_matrix(items, relevant) for name, items in lists.items()}
    return {
        f"recall@{depth}": {
            name: by_user(recall(held, relevant, depth)[:, None], user, len(users))[:, 0]
            for name, held in gains.items()
        }
        for depth in DEPTHS
    }


def contributions_of(learned: Learned, detail: Detail, progress: Progress) -> Iterator[Contribution]:
    """What each source of the pipeline brings, and what is lost without it."""
    popular, pipeline = (
        baseline_name(learned.ground),
        pipeline_of(learned.ground, learned.sources, learned.past.table)[0],
    )
    names = {source.name: POPULARITY if source.name == popular else source.name for source in pipeline.sources}
    lists = {name: detail.retrieved[shown] for name, shown in names.items()}
    relevant, seed = detail.requests.relevant, learned.ground.lesson.seed
    hits = {name: found_in(items, relevant) for name, items in lists.items()}
    count = max(len(relevant.items), 1)
    assert pipeline.merger is not None
    whole = merged(pipeline.merger, lists, len(relevant))
    for number, (name, own) in enumerate(hits.items()):
        progress(STEP, number / len(hits))
        others = {other: held for other, held in hits.items() if other != name}
        elsewhere = np.any([*others.values(), np.zeros(len(own), np.bool_)], axis=0)
        rest = merged(pipeline.merger, {other: lists[other] for other in others}, len(relevant))
        without: dict[str, Interval] = {}
        adds: dict[str, Interval] = {}
        for metric, held in recalls(detail, {"with": whole, "without": rest}).items():
            found = intervals(held, "without", seed)
            without[metric], adds[metric] = found["without"][0], found["with"][1]
        yield Contribution(
            names[name],
            float(own.sum() / count),
            float((own & ~elsewhere).sum() / count),
            {names[other]: float((own & held).sum() / max(own.sum(), 1)) for other, held in others.items()},
            without,
            adds,
        )


def found_in(items: Ranked, relevant: Relevant) -> NDArray[np.bool_]:
    """Of each relevant item, whether it is among what its request retrieved."""
    width = np.int64(max(items.max(initial=0), relevant.items.max(initial=0)) + 1)
    shown = (np.arange(len(items))[:, None] * width + items)[items >= 0]
    return np.isin(relevant.requests * width + relevant.items, shown)


def merged(merger: Merger, lists: Mapping[str, Ranked], count: int) -> Ranked:
    """What the merger makes of the sources' lists of `count` requests, padded with -1."""
    kept: Ranked = np.full((count, DEPTHS[-1]), -1, np.int32)
    nobody = Query(None, SLATE, 0, "report", Deadline(math.inf))
    for number in range(count):
        proposals = {name: Candidates(items[number][items[number] >= 0]) for name, items in lists.items()}
        found = merger.merge(nobody, proposals).items[: DEPTHS[-1]]
        kept[number, : len(found)] = found
    return kept
