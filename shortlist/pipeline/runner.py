"""The runner: one query through the stages, within its deadline, and never without an answer.

    understand -> retrieve and merge -> filter -> hydrate -> score -> late filters -> select -> respond -> observe

Filters that need nothing but the item stand before the hydrators, so that nothing is computed for what is not shown;
late filters see every column. They stand before the selector, so that the next best candidates take the places of
what they drop, and what the selector promises (caps, shares, propensities) is true of what is shown. Where fewer
than k items remain, rounds of the last resort (the whole catalogue, most popular first) go the same way, and the
selector arranges what all rounds found. A filter holds always: it is never skipped, and one that fails drops what it
was asked about. What a source asked it, and all of its proposals passed, is not asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shortlist.pipeline.candidates import NOTHING, ROUND, Candidates, Column
from shortlist.pipeline.explanation import explain
from shortlist.pipeline.pace import Pace
from shortlist.pipeline.query import EVENTS, PATH, Query, Slate
from shortlist.pipeline.stages import (
    Deciding,
    Decision,
    Filter,
    Hydrator,
    Merger,
    Observer,
    QueryHydrator,
    Resort,
    Scorer,
    Selector,
    Source,
)
from shortlist.pipeline.trace import Paces, Step, Trace


class Catalogue(Protocol):
    """The items' ids, and their indexes; `Entities` is one."""

    @property
    def ids(self) -> Sequence[str]:
        """The id of each index."""

    def index_of(self, ids: Sequence[str]) -> NDArray[np.int32]:
        """The index of each id; -1 where it is unknown."""


class ByScore:
    """The selector that sorts by score, what an earlier round found first.

    Ties keep their order; a score that is not finite ranks last.
    """

    name = "by_score"

    def arrange(self, query: Query, candidates: Candidates) -> NDArray[np.intp]:  # noqa: ARG002
        """Every candidate, best score first."""
        negative = -candidates.columns["score"]
        finite = np.isfinite(negative)
        if not finite.all():
            negative[~finite] = np.inf
        if ROUND in candidates.columns:
            return np.lexsort((negative, np.nan_to_num(candidates.columns[ROUND])))
        return negative.argsort(kind="stable")


@dataclass(frozen=True)
class Made:
    """A slate, and what there is to tell of it: the candidates shown, the steps, and what was left out; in `ms`.

    It holds nothing of the pipeline, so that it can be made in one process and told of in another.
    """

    slate: Slate
    shown: Candidates
    steps: list[Step]
    degraded: list[str]
    ms: float


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A ranker made of stages. `rank` may be called from several threads where the stages may.

    `defaults` are the columns, each with one value, that a hydrator stands for when it is skipped: {hydrator: {column:
    value}}. Where a hydrator without defaults is left out, so is the scorer, which then leaves the order in which the
    candidates were retrieved. `last_resort` proposes the whole catalogue, best first. `watch` sees the trace of every
    query. `pace` is that of the whole.
    """

    catalogue: Catalogue
    scorer: Scorer | None = None
    understand: Sequence[QueryHydrator] = ()
    sources: Sequence[Source] = ()
    merger: Merger | None = None
    filters: Sequence[Filter] = ()
    hydrators: Sequence[Hydrator] = ()
    selector: Selector = field(default_factory=ByScore)
    late_filters: Sequence[Filter] = ()
    observers: Sequence[Observer] = ()
    last_resort: Resort | None = None
    defaults: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    release: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    watch: Callable[[Trace], None] | None = None
    paces: Paces = field(default_factory=Paces)
    pace: Pace = field(default_factory=Pace)

    def __post_init__(self) -> None:
        if len(self.sources) > 1 and self.merger is None:
            raise ValueError("several sources need a merger")

    def rank(self, query: Query) -> Slate:
        """At most `query.k` items, best first; fewer only where fewer are eligible. Never raises for a stage."""
        made = self.make(query)
        self.tell(query, made)
        return made.slate

    def make(self, query: Query) -> Made:
        """The slate, of which nobody has been told yet."""
        begun = query.deadline.clock()
        trace = Trace(query.deadline, self.paces)
        for stage in self.understand:
            nothing: Mapping[str, Any] = {}
            known = trace.attempt("understand", stage.name, 0, partial(stage.learn, query), nothing)
            for name, value in known.items():
                query.learn(name, value)
        proposals = self._propose(query, trace)
        found, decision = NOTHING, Decision(np.empty(0, np.intp))
        for number, candidates in enumerate(self._rounds(query, trace, proposals)):
            scored = self._scored(query, trace, candidates)
            if len(scored):
                found = found.followed_by(
                    scored.describe({ROUND: np.full(len(scored), float(number))}) if number else scored
                )
                decision = self._decided(query, trace, found)
            if len(decision) >= query.k:
                break
        shown = found.take(decision.order[: query.k])
        slate = self._respond(query, trace, proposals, shown, decision)
        took_ms = (query.deadline.clock() - begun) * 1000
        return Made(slate, replace(shown, passed=()), trace.steps, trace.degraded, took_ms)

    def tell(self, query: Query, made: Made) -> None:
        """Tell the observers and `watch` of a slate, wherever it was made."""
        trace = Trace(query.deadline, self.paces, made.steps, made.degraded)
        for observer in self.observers:
            see = partial(observer.observe, query, made.slate, made.shown)
            trace.call("observe", observer.name, len(made.shown), see, None)
        if self.watch is not None:
            self.watch(trace)
        self.pace.took(made.ms)

    def _propose(self, query: Query, trace: Trace) -> Mapping[str, Candidates]:
        if query.items is not None:
            return {"own": own_items(query.items, self.catalogue)}
        return {
            source.name: trace.attempt("propose", source.name, 0, partial(source.propose, query), NOTHING)
            for source in self.sources
        }

    def _rounds(self, query: Query, trace: Trace, proposals: Mapping[str, Candidates]) -> Iterator[Candidates]:
        """What may be shown: first what was retrieved, then portions of the last resort."""
        first = self._merge(query, trace, proposals)
        yield first
        resort = self.last_resort
        if resort is None or query.items is not None:
            return
        portions = resort.portions(query)
        while len(portion := trace.call("propose", resort.name, 0, partial(next, portions, NOTHING), NOTHING)):
            yield portion.take(~np.isin(portion.items, first.items)) if len(first) else portion

    def _merge(self, query: Query, trace: Trace, proposals: Mapping[str, Candidates]) -> Candidates:
        merger = self.merger
        if merger is None or query.items is not None:
            return next(iter(proposals.values()), NOTHING)
        given = sum(map(len, proposals.values()))
        return trace.call("merge", merger.name, given, partial(merger.merge, query, proposals), NOTHING)

    def _scored(self, query: Query, trace: Trace, candidates: Candidates) -> Candidates:
        """Those of the candidates that every filter lets through, with their scores."""
        for stage in self.filters:
            if stage not in candidates.passed:
                candidates = self._filtered(query, trace, stage, candidates)
        if not len(candidates):
            return NOTHING
        for hydrator in self.hydrators:
            candidates = self._described(query, trace, hydrator, candidates)
        candidates = candidates.describe({"score": self._scores(query, trace, candidates)})
        for stage in self.late_filters:
            candidates = self._filtered(query, trace, stage, candidates)
        return candidates

    @cached_property
    def _decide(self) -> Callable[[Query, Candidates], Decision]:
        """The selector's decision; a plain selector's is its order. Asked once, because a Protocol is slow to ask."""
        selector = self.selector
        if isinstance(selector, Deciding):
            return selector.decide
        return lambda query, found: Decision(selector.arrange(query, found))

    def _decided(self, query: Query, trace: Trace, found: Candidates) -> Decision:
        """The selector's order, or that of the scores where it fails."""
        nothing: Decision | None = None
        decide = partial(self._decide, query, found)
        decided = trace.call("select", self.selector.name, len(found), decide, nothing)
        return Decision(ByScore().arrange(query, found)) if decided is None else decided

    def _filtered(self, query: Query, trace: Trace, stage: Filter, candidates: Candidates) -> Candidates:
        def kept() -> Candidates:
            mask = stage.keep(query, candidates)
            if mask.shape != candidates.items.shape:
                raise ValueError(f"filter {stage.name}: a mask of shape {mask.shape} for {len(candidates)} candidates")
            return candidates if mask.all() else candidates.take(mask)

        return trace.call("filter", stage.name, len(candidates), kept, NOTHING) if len(candidates) else candidates

    def _described(self, query: Query, trace: Trace, stage: Hydrator, candidates: Candidates) -> Candidates:
        def described() -> Candidates:
            result = stage.describe(query, candidates)
            if result.items is not candidates.items and not np.array_equal(result.items, candidates.items):
                raise ValueError(
                    f"hydrator {stage.name}: returned other candidates; only a filter may drop, only a "
                    "selector may order"
                )
            return result

        values = self.defaults.get(stage.name, {})
        default = candidates.describe({name: np.full(len(candidates), value) for name, value in values.items()})
        return trace.attempt("hydrate", stage.name, len(candidates), described, default)

    def _scores(self, query: Query, trace: Trace, candidates: Candidates) -> Column:
        by_order: Column = 1.0 / np.arange(1.0, len(candidates) + 1.0)
        scorer = self.scorer
        if scorer is None:
            return by_order
        if any(stage.name in trace.degraded and stage.name not in self.defaults for stage in self.hydrators):
            return trace.skip("score", scorer.name, len(candidates), by_order)

        def scores() -> Column:
            result = scorer.score(query, candidates)
            if result.shape != by_order.shape:
                raise ValueError(f"scorer {scorer.name}: shape {result.shape} for {len(candidates)} candidates")
            return result

        return trace.attempt("score", scorer.name, len(candidates), scores, by_order)

    def _respond(
        self, query: Query, trace: Trace, proposals: Mapping[str, Candidates], shown: Candidates, decision: Decision
    ) -> Slate:
        items = ids_of(shown, query, self.catalogue)
        scores = shown.columns["score"].tolist() if len(shown) else []
        explanation: Mapping[str, Any] | None = None
        if query.explain:
            names = {source: ids_of(found, query, self.catalogue) for source, found in proposals.items()}
            filters = [stage.name for stage in (*self.filters, *self.late_filters)]
            explanation = explain(query, trace, names, filters, items, shown, self.scorer, self.versions, decision)
        return Slate(
            request=query.request,
            items=tuple(items),
            scores=tuple(scores),
            propensities=propensities_of(decision, len(items)),
            release=self.release,
            degraded=tuple(trace.degraded),
            explanation=explanation,
            path=query.known.get(PATH, ""),
            events=query.known.get(EVENTS, 0),
        )


def propensities_of(decision: Decision, shown: int) -> tuple[float, ...]:
    """The propensity of each place that is shown."""
    said: list[float] = decision.propensities[:shown].tolist()
    return (*said, *[1.0] * (shown - len(said)))


def own_items(items: Sequence[str], catalogue: Catalogue) -> Candidates:
    """The caller's own items as candidates, in the caller's order; those that are unknown have the index -1."""
    return Candidates(catalogue.index_of(items), own=np.arange(len(items), dtype=np.int32))


def ids_of(candidates: Candidates, query: Query, catalogue: Catalogue) -> list[str]:
    """The ids of candidates, be they retrieved or the caller's own."""
    if candidates.own is not None and query.items is not None:
        return [query.items[place] for place in candidates.own.tolist()]
    known = catalogue.ids
    return [known[index] for index in candidates.items.tolist()]
