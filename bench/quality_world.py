"""Recommendation quality in a world whose truth is known: what slates are worth beside the best there are.

The world's old policy leaves a history. Then rounds: a release is trained on the log and serves the world's users for
some days over a live table; they look and act, items are born, and the next release learns from all of it.

*value*: the expected gain of a slate by the truth, by that of the user's best slate of what they have not opened; the
mean over users of each user's sums in the last round. *cold exposure*: the exposure that items get which were born
behind the serving release's training, by what they would get if everybody were shown their own best slate (exposure
of place p: 1 / log2(1 + p); fair is what merit earns, after Singh and Joachims, Fairness of exposure in rankings,
KDD 2018); sums over all rounds.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.events.log import MemoryLog
from shortlist.events.schema import Event
from shortlist.features.table import FeatureTable
from shortlist.pipeline.query import Deadline, Query, Slate
from shortlist.pipeline.runner import ByScore, Pipeline
from shortlist.pipeline.stages import Observer
from shortlist.ranking.scoring import RankerStage, load_scorer
from shortlist.serving.impressions import SAMPLED, Impressions
from shortlist.serving.recommend import load_champion
from shortlist.simulation.behaviour import DAY_MS, examination
from shortlist.simulation.generate import generate
from shortlist.simulation.inference import Knower
from shortlist.simulation.live import Crowd
from shortlist.simulation.project import project
from shortlist.simulation.world import World
from shortlist.training.metrics import Interval, bootstrap, interval, intervals
from shortlist.training.train import train

OURS, RANKER, RETRIEVED, COMMON, RANDOM = "slate", "by score", "best of retrieved", "best for all", "random"
KNOWER = "knows the items"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """How large the world is, and how often it is learned from: `requests` a round, `days` long."""

    users: int
    items: int
    events: int
    rounds: int
    requests: int
    history_days: int = 40
    days: int = 3


FULL, QUICK = Scale(2_000, 4_000, 12_000_000, 3, 800, history_days=120), Scale(120, 300, 30_000, 2, 200)
"""The full size is what tastes take to be known: see docs/simulation.md."""


def options(parser: argparse.ArgumentParser) -> None:
    """Another world of the same kind."""
    parser.add_argument("--seed", type=int, default=0, help="of the world, its history and its users")


@dataclass
class Clock:
    """The world's time, ms UTC: it goes on when it is told to."""

    now: int

    def __call__(self) -> int:
        """Now."""
        return self.now


@dataclass(frozen=True)
class Judged:
    """One request: its user's number, the true value of each method's slate and of the best one; the exposure that cold
    items got by method, and what they would get in the best slate."""

    user: int
    best: float
    worth: Mapping[str, float]
    cold: Mapping[str, float]
    fair: float


class Logged(Observer):
    """Writes what was shown into the log at once, as the service does behind its answers."""

    name = "impressions"

    def __init__(self, log: MemoryLog) -> None:
        self.log = log
        self.events = Impressions(log, project.user.name, project.item.name, "", 0.0, lambda *_: None).events

    def observe(self, query: Query, slate: Slate, shown: Any) -> None:
        """One event for each place."""
        self.log.append(self.events(query, slate, shown), received=query.now)


@dataclass
class Judge:
    """The service that the crowd asks, in process: the serving pipeline answers, and the truth judges what it says.

    `known` is the number of items that were born when the serving release was trained: later ones are cold.
    """

    world: World
    log: MemoryLog
    clock: Clock
    pipeline: Pipeline
    rng: np.random.Generator
    known: int = 0
    rankers: Sequence[RankerStage] = ()
    knower: Knower | None = None
    opened: Callable[[int], set[str]] = lambda user: set()  # noqa: ARG005
    judged: list[Judged] = field(default_factory=list)
    asked: int = 0

    def recommend(self, user: str, k: int, now: int) -> tuple[str, ...]:
        """The slate that is shown; it is judged, and in the last round so is what others would have shown."""
        self.asked += 1
        query = Query(user, k, now, f"live-{self.asked}", Deadline(math.inf))
        slates = {} if self.knower is None else self._others(query, self.knower)
        slates[OURS] = self.pipeline.rank(query).items
        number = self.world.user_number(user)
        best = self.world.best_slate(user, k, now, self.opened(number))
        self.judged.append(
            Judged(
                number,
                self.world.slate_value(user, best, now),
                {name: self.world.slate_value(user, slate, now) for name, slate in slates.items()},
                {name: self.cold(slate) for name, slate in slates.items()},
                self.cold(best),
            )
        )
        return slates[OURS]

    def post(self, events: list[Event]) -> None:
        """What happened. Raises RuntimeError where the log refuses it."""
        receipt = self.log.append(events, received=self.clock.now)
        if receipt.refusals:
            raise RuntimeError(f"{len(receipt.refusals)} events were refused: {receipt.refusals[0].reason}")

    def cold(self, slate: Sequence[str]) -> float:
        """The exposure of the items that the release was trained without."""
        return float(examination(np.flatnonzero(self.world.item_numbers(slate) >= self.known) + 1).sum())

    def _others(self, query: Query, knower: Knower) -> dict[str, tuple[str, ...]]:
        """What each part would show alone: nobody sees it."""
        asked = replace(query, known={})
        ids, number = self.pipeline.catalogue.ids, self.world.user_number(asked.user or "")
        opened = self.opened(number)
        plain = replace(self.pipeline, selector=ByScore(), observers=(), watch=None)
        slates = {RANKER: plain.rank(asked).items}
        for stage in self.rankers:
            every_feature = replace(query, known={SAMPLED: True})  # not those of the serving ranker alone
            slates[stage.name] = replace(plain, scorer=stage).rank(every_feature).items
        proposals = {source.name: source.propose(asked) for source in plain.sources}
        slates |= {name: tuple(ids[item] for item in found.items[: asked.k]) for name, found in proposals.items()}
        assert plain.merger is not None
        found = np.array([int(ids[item][1:]) for item in plain.merger.merge(asked, proposals).items])
        value = self.world.values(np.array([number]), asked.now)[0]
        slates[RETRIEVED] = tuple(f"i{item}" for item in found[np.argsort(-value[found], kind="stable")][: asked.k])
        closed = [item for item in range(len(value)) if f"i{item}" not in opened]
        slates[RANDOM] = tuple(f"i{item}" for item in self.rng.choice(closed, min(asked.k, len(closed)), replace=False))
        slates[KNOWER] = knower.slate(query.user or "", query.k, query.now, opened)
        hour = asked.now // 3_600_000 * 3_600_000
        slates[COMMON] = self.world.popular_slate(asked.k, hour, opened)
        return slates


def serve(scale: Scale, seed: int, folder: Path) -> list[list[Judged]]:
    """Train, serve, learn: what was judged in each round."""
    ahead = scale.rounds * scale.days
    world = World(seed, scale.users, scale.items, days=scale.history_days, ahead=ahead + 1)
    log, table, clock = MemoryLog(project.schemas), FeatureTable(project.feature_set()), Clock(world.end)
    history = generate(world, log, scale.events, seed)
    log.subscribe(table.update, 0)
    rounds: list[list[Judged]] = []
    judge, crowd = None, None
    for number in range(1, scale.rounds + 1):
        begun = time.perf_counter()
        release = train(project, log, folder, seed)
        trained = time.perf_counter() - begun
        pipeline = load_champion(project, release, table, Logged(log), lambda _: None).recommend
        if judge is None or crowd is None:
            judge = Judge(world, log, clock, pipeline, np.random.default_rng([seed, 1]))
            crowd = Crowd(world, judge, np.random.default_rng([seed, 2]), scale.users, history.seen, clock)
            judge.opened = crowd.opened_by
        judge.pipeline, judge.judged = pipeline, []
        judge.knower = Knower(world, log) if number == scale.rounds else None
        judge.known = world.alive(clock.now)
        names = release.manifest.rankers
        judge.rankers = [RankerStage(name, load_scorer(release.path(f"rankers/{name}"))) for name in names]
        for _ in range(scale.requests):
            clock.now += scale.days * DAY_MS // scale.requests
            crowd.turn()
        rounds.append(judge.judged)
        served = time.perf_counter() - begun - trained
        tell(number, release.manifest.details, rounds[-1], seed)
        print(f"  trained in {trained:.0f} s on {release.manifest.log_position:,} events, served in {served:.0f} s")
    return rounds


def tell(number: int, details: Mapping[str, Any], judged: Sequence[Judged], seed: int) -> None:
    """What serves in this round, and what it is worth."""
    value = values_of(judged, seed)[OURS]
    print(f"round {number}: {value.value:.3f} of the best [{value.low:.3f}, {value.high:.3f}]; {details['chosen']}")
    for finding in details["findings"]:
        print(f"  {finding}")


def values_of(judged: Sequence[Judged], seed: int) -> dict[str, Interval]:
    """Of each method the value of its slates by that of the best ones, per user, and the mean over users."""
    names = sorted(set.intersection(*(set(one.worth) for one in judged)))
    _, user = np.unique([one.user for one in judged], return_inverse=True)
    best = np.bincount(user, [one.best for one in judged])
    shares = {name: np.bincount(user, [one.worth[name] for one in judged]) / best for name in names}
    return {name: pair[0] for name, pair in intervals(shares, OURS, seed).items()}


def cold_exposure(judged: Sequence[Judged], method: str, seed: int) -> Interval:
    """The exposure that cold items get by what they would get in the best slates; the interval by user."""
    _, user = np.unique([one.user for one in judged], return_inverse=True)
    got, fair = (np.array(column) for column in zip(*((one.cold[method], one.fair) for one in judged), strict=True))
    sums = np.column_stack([np.bincount(user, got), np.bincount(user, fair)]).astype(np.float64)
    got, fair = bootstrap(sums, seed).T
    ratio = float(sums[:, 0].sum() / sums[:, 1].sum()) if sums[:, 1].sum() else math.nan
    drawn = np.divide(got, fair, out=np.full(len(got), np.nan), where=fair > 0)
    return replace(interval(np.array([ratio]), drawn), value=ratio)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All rounds."""
    scale, seed = QUICK if arguments.quick else FULL, arguments.seed
    with tempfile.TemporaryDirectory() as place:
        rounds = serve(scale, seed, Path(place))
    last, every = rounds[-1], [one for judged in rounds for one in judged]
    methods = values_of(last, seed)
    cold = {OURS: cold_exposure(every, OURS, seed), RANKER: cold_exposure(last, RANKER, seed)}
    for name, found in sorted(methods.items(), key=lambda pair: -pair[1].value):
        print(f"  {name:18} {found.value:.3f} of the best [{found.low:.3f}, {found.high:.3f}]")
    for name, found, of in ((OURS, cold[OURS], "all rounds"), (RANKER, cold[RANKER], "the last round")):
        print(f"  cold exposure, {name}, {of}: {found.value:.2f} of what is fair [{found.low:.2f}, {found.high:.2f}]")
    return {
        "value_ratio": round(methods[OURS].value, 4),
        "cold_exposure_ratio": round(cold[OURS].value, 4),
        "value": {name: found.to_dict() for name, found in methods.items()},
        "cold_exposure": {name: found.to_dict() for name, found in cold.items()},
        "rounds": [round(values_of(judged, seed)[OURS].value, 4) for judged in rounds],
        "world": {"users": scale.users, "items": scale.items, "events": scale.events, "requests": scale.requests},
    }
