"""What the service counts, as Prometheus metrics of its own registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Lock

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    Metric,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import SummaryMetricFamily
from prometheus_client.registry import Collector

from shortlist.pipeline.trace import Trace

SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class StageTimes(Collector):
    """Count and total time of each stage. Ten stages a request: a histogram each would cost more than some of them."""

    def __init__(self) -> None:
        self._cells: dict[tuple[str, str], list[float]] = {}
        self._lock = Lock()

    def add(self, trace: Trace) -> None:
        """Count the steps of one query."""
        with self._lock:
            for step in trace.steps:
                cell = self._cells.setdefault((step.verb, step.stage), [0.0, 0.0])
                cell[0] += 1.0
                cell[1] += step.ms

    def collect(self) -> Iterator[Metric]:
        """The summary, for the registry."""
        family = SummaryMetricFamily(
            "shortlist_stage_seconds", "Time of each stage of a pipeline.", labels=["verb", "stage"]
        )
        with self._lock:
            for (verb, stage), (count, ms) in self._cells.items():
                family.add_metric([verb, stage], int(count), ms / 1000)
        yield family


class Metrics:
    """Every number of the service. Children are looked up once: a look-up by label costs as much as an update."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.registry = registry
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "shortlist_requests", "Requests answered, by route and status.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "shortlist_request_seconds", "Time to answer, by route.", ["route"], buckets=SECONDS, registry=registry
        )
        self._stages = StageTimes()
        registry.register(self._stages)
        self._degraded = Counter(
            "shortlist_stages_degraded",
            "Stages left out (skipped) or replaced by their default (failed).",
            ["stage", "outcome"],
            registry=registry,
        )
        slates = Counter("shortlist_slates", "Slates answered, by kind.", ["kind"], registry=registry)
        self._slates = {kind: slates.labels(kind) for kind in ("recommend", "rank")}
        self._empty = Counter("shortlist_slates_empty", "Slates without any item.", registry=registry)
        events = Counter("shortlist_events", "Events by what became of them.", ["outcome"], registry=registry)
        self._events = [events.labels(outcome) for outcome in ("accepted", "duplicate", "refused")]
        self.cache = Counter(
            "shortlist_cache",
            "Answers looked for in the cache: hit (given again) or miss (computed).",
            ["outcome"],
            registry=registry,
        )
        self.impressions = Counter(
            "shortlist_impressions", "Impressions by what became of them.", ["outcome"], registry=registry
        )
        self.swaps = Counter(
            "shortlist_release_swaps", "New champions by whether they could be loaded.", ["outcome"], registry=registry
        )
        self.snapshots = Counter("shortlist_snapshots", "Snapshots of the state.", ["outcome"], registry=registry)
        self.release = Info("shortlist_release", "The release that is served.", registry=registry)
        self._routes: dict[tuple[str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A number that is read when somebody asks."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        known = self._routes.get((route, status))
        if known is None:
            known = (self._requests.labels(route, str(status)).inc, self._seconds.labels(route).observe)
            self._routes[route, status] = known
        known[0]()
        known[1](seconds)

    def slate(self, kind: str, empty: bool) -> None:
        """Count one slate; `kind` is recommend or rank."""
        self._slates[kind].inc()
        if empty:
            self._empty.inc()

    def received(self, *counts: int) -> None:
        """Count events: accepted, known already, refused."""
        for counter, count in zip(self._events, counts, strict=True):
            if count:
                counter.inc(count)

    def traced(self, trace: Trace) -> None:
        """Count the steps of one query."""
        self._stages.add(trace)
        if trace.degraded:
            for step in trace.steps:
                if step.outcome != "done":
                    self._degraded.labels(step.stage, step.outcome).inc()

    def text(self) -> bytes:
        """Everything in the Prometheus text format."""
        return generate_latest(self.registry)
