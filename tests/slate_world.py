"""Films with attributes and vectors, and slates of them: what the tests of slate rules stand on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.events.log import MemoryLog
from shortlist.events.schema import Entity
from shortlist.features.entities import Entities
from shortlist.features.program import FeatureSet
from shortlist.features.table import FeatureTable
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Deadline, Query
from shortlist.pipeline.stages import Decision
from shortlist.slate.assembly import load_slate
from shortlist.slate.diversity import Vectors
from shortlist.slate.selector import Arranged
from shortlist.slate.specs import RuleSpec
from shortlist.slate.targets import ADDED

film = Entity("film", creator=str, genres=list[str], year=int, adult=bool)
NOW = 1_700_000_000_000


def films(rows: Sequence[Mapping[str, Any]]) -> Entities:
    """The films f0, f1, … with the given attributes; each row may lack any."""
    table, log = FeatureTable(FeatureSet([], [film])), MemoryLog([film.schema])
    log.subscribe(table.update)
    if rows:
        events = [{"kind": "film", "at": NOW, "film": f"f{number}", **row} for number, row in enumerate(rows)]
        assert not log.append(events, received=NOW).refusals
    return table.entities["film"]


@dataclass
class Embedded:
    """A source with a vector for each film; all zeros where it knows none."""

    vectors: NDArray[np.float32]
    name: str = "towers"

    def item_vectors(self, items: NDArray[np.int32]) -> Vectors:
        found = self.vectors[items]
        found[items < 0] = 0
        return found


@dataclass
class Shelf:
    """Films and the rules of their slates."""

    rules: Sequence[RuleSpec]
    entities: Entities
    vectors: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), np.float32))

    def __post_init__(self) -> None:
        sources = {"towers": Embedded(self.vectors)} if len(self.vectors) else {}
        self.stages = load_slate(self.rules, self.entities, sources)

    def decide(self, scores: Sequence[float], k: int, **rest: Any) -> Decision:
        """The decision on the first films with these scores.

        `ranks` are their ranks in the source "fresh"; the last film is `added` where only a pin proposes it.
        """
        columns = {"score": np.array(scores, float)}
        if "ranks" in rest:
            columns["fresh_rank"] = np.array(rest.pop("ranks"), float)
        if rest.pop("added", False):
            columns[ADDED] = np.array([math.nan] * (len(scores) - 1) + [1.0])
        query = ask(k, **rest)
        items = np.arange(len(scores), dtype=np.int32)
        own = None if query.items is None else np.arange(len(scores), dtype=np.int32)
        selector = self.stages.selector
        if own is not None:
            items = self.entities.index_of(list(query.items or ()))
        assert isinstance(selector, Arranged)
        return selector.decide(query, Candidates(items, columns, own=own))

    def slate(self, scores: Sequence[float], k: int, **rest: Any) -> list[int]:
        """The candidates shown."""
        decision = self.decide(scores, k, **rest)
        assert sorted(decision.order.tolist()) == list(range(len(scores)))  # each once, and nobody is lost
        shown: list[int] = decision.order[:k].tolist()
        return shown


def ask(k: int, now: int = NOW, request: str = "r", **rest: Any) -> Query:
    return Query("ann", k, now, request, Deadline(math.inf), **rest)
