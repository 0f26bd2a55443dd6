"""Why these items: what sources proposed, filters dropped and rules did, and what the shown items are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

from shortlist.pipeline.candidates import Candidates, Column
from shortlist.pipeline.query import Query
from shortlist.pipeline.stages import Decision, Scorer
from shortlist.pipeline.trace import Trace

NAMED = 20
"""How many items of each source an explanation names; all are counted."""


@runtime_checkable
class Attributing(Scorer, Protocol):
    """A scorer that can say how much each feature contributed to each score."""

    def contributions(self, query: Query, candidates: Candidates) -> Mapping[str, Column]:
        """One column per feature, and `bias`; they add up to the score."""


@runtime_checkable
class Predicting(Scorer, Protocol):
    """A scorer that can say how probable each action is."""

    def probabilities(self, query: Query, candidates: Candidates) -> Mapping[str, Column]:
        """One column per action; none where the scorer knows of none."""


def explain(
    query: Query,
    trace: Trace,
    proposals: Mapping[str, Sequence[str]],
    filters: Sequence[str],
    items: Sequence[str],
    shown: Candidates,
    scorer: Scorer | None,
    versions: Mapping[str, str],
    decision: Decision,
) -> dict[str, Any]:
    """The explanation of one slate as plain JSON values; what is missing is null."""
    contributions: Mapping[str, Column] = {}
    if len(shown) and scorer is not None and isinstance(scorer, Attributing):
        attribute = partial(scorer.contributions, query, shown)
        contributions = trace.call("explain", scorer.name, len(shown), attribute, contributions)
    probabilities: Mapping[str, Column] = {}
    if len(shown) and scorer is not None and isinstance(scorer, Predicting):
        predict = partial(scorer.probabilities, query, shown)
        probabilities = trace.call("predict", scorer.name, len(shown), predict, probabilities)
    dropped = dict.fromkeys(filters, 0)
    for step in trace.steps:
        if step.verb == "filter":
            dropped[step.stage] += step.given - step.kept
    return {
        "sources": {name: {"proposed": len(ids), "first": list(ids[:NAMED])} for name, ids in proposals.items()},
        "filters": {name: {"dropped": count} for name, count in dropped.items()},
        "slate": dict(decision.account),
        "items": [
            {
                "item": item,
                "columns": _row(shown.columns, place),
                "features": {
                    name: _plain(float(shown.matrix[number, place])) for number, name in enumerate(shown.features)
                }
                if shown.matrix is not None
                else {},
                "contributions": _row(contributions, place),
                "probabilities": _row(probabilities, place),
            }
            for place, item in enumerate(items)
        ],
        "versions": dict(versions),
        "now": query.now,
        "deadline_ms_left": round(query.deadline.remaining_ms, 3),
        "steps": [step.to_dict() for step in trace.steps],
    }


def _row(columns: Mapping[str, Column], place: int) -> dict[str, float | None]:
    return {name: _plain(float(column[place])) for name, column in columns.items()}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
