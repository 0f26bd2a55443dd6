"""What the service counts, as Prometheus metrics of its own registry."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

from shortlist.pipeline.trace import Trace

SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
STAGE_SECONDS = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.03, 0.1, 0.5)


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
        self._stage = Histogram(
            "shortlist_stage_seconds",
            "Time of each stage of a pipeline.",
            ["verb", "stage"],
            buckets=STAGE_SECONDS,
            registry=registry,
        )
        self._degraded = Counter(
            "shortlist_stages_degraded",
            "Stages left out (skipped) or replaced by their default (failed).",
            ["stage", "outcome"],
            registry=registry,
        )
        self.slates = Counter("shortlist_slates", "Slates answered, by kind.", ["kind"], registry=registry)
        self.empty = Counter("shortlist_slates_empty", "Slates without any item.", registry=registry)
        self.events = Counter("shortlist_events", "Events by what became of them.", ["outcome"], registry=registry)
        self.impressions = Counter(
            "shortlist_impressions", "Impressions by what became of them.", ["outcome"], registry=registry
        )
        self.swaps = Counter(
            "shortlist_release_swaps", "New champions by whether they could be loaded.", ["outcome"], registry=registry
        )
        self.snapshots = Counter("shortlist_snapshots", "Snapshots of the state.", ["outcome"], registry=registry)
        self.release = Info("shortlist_release", "The release that is served.", registry=registry)
        self._routes: dict[tuple[str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}
        self._stages: dict[tuple[str, str], Callable[[float], None]] = {}

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

    def traced(self, trace: Trace) -> None:
        """Count the steps of one query."""
        for step in trace.steps:
            if step.outcome != "done":
                self._degraded.labels(step.stage, step.outcome).inc()
            observe = self._stages.get((step.verb, step.stage))
            if observe is None:
                observe = self._stages[step.verb, step.stage] = self._stage.labels(step.verb, step.stage).observe
            observe(step.ms / 1000)

    def text(self) -> bytes:
        """Everything in the Prometheus text format."""
        return generate_latest(self.registry)
