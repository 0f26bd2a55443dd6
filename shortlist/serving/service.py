"""The service as a whole: it loads, catches up, answers, swaps releases, takes snapshots, and stops without loss.

Loading runs beside the event loop, so that `/health` and `/ready` answer from the first moment. The champion that is
served is one reference: a request that began with the old one ends with it.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import math
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from shortlist.events.log import EventLog
from shortlist.events.sqlite import SqliteLog
from shortlist.features.table import FeatureTable
from shortlist.giving_way import give_way
from shortlist.project import Project
from shortlist.serving.cache import AnswerCache
from shortlist.serving.impressions import Impressions
from shortlist.serving.limits import Limits
from shortlist.serving.metrics import Metrics
from shortlist.serving.paths import UNTRAINED, untrained
from shortlist.serving.recommend import Champion, load_champion
from shortlist.serving.recovery import Recovery, recover, take_snapshot
from shortlist.serving.turns import Crew, Turns
from shortlist.settings import Settings
from shortlist.training.releases import Pointer, Registry, ReleaseError

logger = logging.getLogger(__name__)

RENEW_SECONDS = 60.0
"""How often at most a release is loaded again because workers have ended."""
NOTHING_TRAINED = "nothing is trained yet, so that what is popular or new is served to everybody; run `shortlist train`"


@dataclass
class Live:
    """What is there once the state has caught up with the log."""

    log: EventLog
    table: FeatureTable
    impressions: Impressions
    recovery: Recovery


@dataclass
class Service:
    """One running service. `start` and `stop` are called by the application's lifespan.

    Where the state cannot be loaded at all, `failure` says why and `on_failure` is called.
    """

    project: Project
    settings: Settings
    limits: Limits
    metrics: Metrics = field(default_factory=Metrics)
    live: Live | None = None
    champion: Champion | None = None
    problems: dict[str, str] = field(default_factory=dict)
    failure: Exception | None = None
    on_failure: Callable[[], None] | None = None
    begun: float = field(default_factory=time.monotonic)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _tried: Pointer | None = None
    _renewed: float = -math.inf

    def __post_init__(self) -> None:
        self.registry = Registry(self.settings.place("releases"), self.project.objective.guardrails)
        self.features = self.project.feature_set()
        self.turns = Turns()
        self.checking = ThreadPoolExecutor(1, "checking")  # large batches of events
        self._chores = ThreadPoolExecutor(1, "chores")  # catching up and snapshots
        self._loading = ThreadPoolExecutor(1, "loading", give_way)  # a release is gigabytes, and nobody waits for it
        self.cache = self._make_cache()
        self._prefix, self._numbers = secrets.token_hex(6), itertools.count(1)
        read = self.metrics.gauge
        read("shortlist_log_position", "Events in the log.", lambda: self.live.log.position if self.live else 0)
        read(
            "shortlist_features_position", "Events in the state.", lambda: self.live.table.position if self.live else 0
        )
        read("shortlist_impressions_pending", "Slates to be logged.", lambda: self.pending_impressions)
        read("shortlist_workers", "Processes that make slates beside this one.", lambda: self.turns.workers)
        read("shortlist_ready", "1 when requests can be answered.", lambda: float(not self.waiting_for()))

    def _make_cache(self) -> AnswerCache | None:
        """None where the setting `cache_seconds` is 0."""
        if not self.settings.cache_seconds:
            return None
        user, item = self.project.user.name, self.project.item.name
        cache = AnswerCache(
            user, item, self.settings.cache_seconds, lambda outcome: self.metrics.cache.labels(outcome).inc()
        )
        self.metrics.gauge("shortlist_cache_answers", "Answers that are kept.", lambda: len(cache))
        return cache

    def request_id(self) -> str:
        """An id that no other request has: random once per process, then counted."""
        return f"{self._prefix}-{next(self._numbers):x}"

    @property
    def pending_impressions(self) -> int:
        """Slates whose impressions are not in the log yet."""
        return self.live.impressions.pending if self.live else 0

    def waiting_for(self) -> list[str]:
        """What is missing before requests can be answered."""
        missing = []
        if self.live is None:
            missing.append(self.problems.get("start", "the state, which is catching up with the log"))
        if self.champion is None:
            missing.append(self.problems.get("release", "a release, which is being loaded"))
        return missing

    async def start(self) -> None:
        """Begin to load; what goes wrong is in `problems`, the log and `/health`."""
        self._tasks.append(asyncio.create_task(self._run()))

    async def stop(self) -> None:
        """Log the pending impressions, take a snapshot, let go of the files."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(self._chores, self._finish)
        await self.turns.stop(self.limits.shutdown_seconds)
        self._loading.shutdown()
        self._chores.shutdown()
        self.checking.shutdown()

    async def _run(self) -> None:
        """Load, then look around for ever."""
        loop = asyncio.get_running_loop()
        try:
            self.live = await loop.run_in_executor(self._chores, self._catch_up)
        except Exception as error:
            self.problems["start"] = f"the state could not be loaded: {error}"
            self.failure = error
            if self.on_failure is not None:
                self.on_failure()
            return
        snapshot_due = time.monotonic() + self.limits.snapshot_seconds
        while True:
            champion = await loop.run_in_executor(self._loading, self.next_champion)
            if champion is not None:
                crew = await loop.run_in_executor(self._chores, self._hire, champion)
                await self.turns.begin(crew)
                self._serve(champion)
            if time.monotonic() >= snapshot_due:
                await loop.run_in_executor(self._chores, self._snapshot)
                snapshot_due = time.monotonic() + self.limits.snapshot_seconds
            self.turns.end_stuck()
            await asyncio.sleep(self.limits.watch_seconds)

    def _catch_up(self) -> Live:
        path = self.settings.place("log")
        path.parent.mkdir(parents=True, exist_ok=True)
        log = SqliteLog(path, self.project.schemas)
        table, recovery = recover(self.features, log, self.settings.place("state"))
        logger.info("%s", recovery)
        gc.collect()
        gc.freeze()  # the state stays: looking through millions of ids for garbage, time and again, stops everything
        log.subscribe(self.turns.learn)
        if self.cache is not None:
            self.cache.follow(table.entities[self.project.item.name])
            log.subscribe(self.cache.learn)  # behind the state: what it drops is computed with the events
        impressions = Impressions(
            log,
            self.project.user.name,
            self.project.item.name,
            self.features.fingerprint,
            self.settings.vector_sample,
            lambda outcome, count: self.metrics.impressions.labels(outcome).inc(count),
        )
        impressions.start()
        return Live(log, table, impressions, recovery)

    def next_champion(self) -> Champion | None:
        """The release to be served from now on, if it is another than before, or has lost workers.

        It is the one that the registry's pointer names; where it names none yet, what needs no training. One that
        cannot be loaded leaves the old one serving.
        """
        live = self.live
        if live is None:
            return None
        try:
            pointer, renew = self.registry.pointer(), self._renews()
            if pointer == self._tried and not renew:
                return None
            self._tried = pointer
            if self.champion is not None and self.champion.version == pointer.champion and not renew:
                self.problems.pop("release", None)
                return None
            if pointer.champion is None:
                release = untrained(self.project, self.features.fingerprint)
            else:
                release = self.registry.fetch("champion", self.features.fingerprint)
            champion = load_champion(self.project, release, live.table, live.impressions, self.metrics.traced)
            if self.cache is not None:
                observers = (*champion.recommend.observers, self.cache)
                champion = replace(champion, recommend=replace(champion.recommend, observers=observers))
            users, items = (live.table.entities[entity.name].ids for entity in (self.project.user, self.project.item))
            champion.warm(users, items, time.time_ns() // 1_000_000, self.request_id)
        except Exception as error:  # whatever is wrong with it, the old one goes on serving
            self._not_loaded(error)
            return None
        return champion

    def _renews(self) -> bool:
        """Whether the release is loaded again because workers have ended: locks and all, a new one has none held."""
        if not self.turns.lost:
            return False
        self.problems["workers"] = f"a worker ended; the release is loaded again every {RENEW_SECONDS:.0f} s at most"
        if time.monotonic() < self._renewed + RENEW_SECONDS:
            return False
        self._renewed = time.monotonic()
        return True

    def _hire(self, champion: Champion) -> Crew | None:
        """The champion's workers; where there are none the event loop makes every slate."""
        if self.live is None:
            return None
        champion.behind.settle()
        try:
            crew = self.turns.hire((champion.recommend, champion.rank), self.live.table, self.settings.workers)
        except OSError as error:
            logger.exception("there are no workers; slates are made one at a time")
            self.problems["workers"] = f"there are no workers ({error}); slates are made one at a time"
            return None
        self.problems.pop("workers", None)
        return crew

    def _serve(self, champion: Champion) -> None:
        """Answer by the champion from now on."""
        self.champion = champion
        self.problems.pop("release", None)
        if champion.version == UNTRAINED:
            self.problems["release"] = NOTHING_TRAINED
        self.metrics.swaps.labels("served").inc()
        self.metrics.release.info({"version": champion.version})
        logger.info("release %s is served", champion.version)

    def _not_loaded(self, error: Exception) -> None:
        serving = f"; {self.champion.version} goes on serving" if self.champion else ""
        message = (
            f"{error}{serving}" if isinstance(error, ReleaseError) else f"{type(error).__name__}: {error}{serving}"
        )
        if self.problems.get("release") != message:
            logger.error("the champion was not loaded: %s", message, exc_info=not isinstance(error, ReleaseError))
            self.metrics.swaps.labels("refused").inc()
        self.problems["release"] = message

    def _snapshot(self) -> None:
        if self.live is None:
            return
        try:
            take_snapshot(self.live.table, self.settings.place("state"))
        except OSError as error:
            logger.exception("the snapshot could not be written; the log has everything")
            self.problems["snapshot"] = f"the snapshot could not be written ({error}); starting will take longer"
            self.metrics.snapshots.labels("failed").inc()
        else:
            self.problems.pop("snapshot", None)
            self.metrics.snapshots.labels("written").inc()

    def _finish(self) -> None:
        if self.live is None:
            return
        self.live.impressions.stop(self.limits.shutdown_seconds)
        self._snapshot()
        self.live.log.close()
