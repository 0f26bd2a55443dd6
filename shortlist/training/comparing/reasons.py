"""What can be shown of why? Of each kind of source and ranker: in words, and how much it takes to follow them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import singledispatch

import numpy as np

from shortlist.pipeline.candidates import Candidates, Column
from shortlist.pipeline.query import Query
from shortlist.ranking.ensemble import Ensemble
from shortlist.ranking.linear import Linear
from shortlist.ranking.scoring import RankerStage
from shortlist.ranking.trees import Trees
from shortlist.retrieval.specs import FactorizationMachine, Fresh, HistorySpec, MatrixFactorisation, Popular, TwoTower

COUNTS, WEIGHTS, PATHS, OPAQUE = range(4)
"""The effort of following a reason: a number that was counted, a sum of weights, paths through trees, all else."""
NAMED = 3
"""Columns that are named as a ranker's drivers."""


@dataclass(frozen=True)
class Reason:
    """What can be shown of why an item stands where it does, and the effort that following it takes."""

    words: str
    effort: int


@dataclass(frozen=True)
class Attribution:
    """What contributions say of a ranker: the columns that move its scores most, each with its share of all movement.

    `exact` where contributions add up to the score or to its log-odds, so that nothing of it is left unexplained.
    """

    drivers: tuple[tuple[str, float], ...]
    exact: bool


@singledispatch
def reason(part: object) -> Reason:
    """The reason of a source's spec, or of a ranker's scorer. Of a kind that is not registered: its own first words."""
    described = getattr(type(part), "explain", type(part))
    words = (inspect.getdoc(described) or "nothing but its score").split("\n\n")[0].replace("\n", " ")
    return Reason(f"{words[:1].lower()}{words[1:].rstrip('.')}", OPAQUE)


@reason.register
def _(part: Popular) -> Reason:  # noqa: ARG001
    return Reason("one number that was counted: how often people acted on the item lately", COUNTS)


@reason.register
def _(part: Fresh) -> Reason:  # noqa: ARG001
    return Reason("how new the item is, and nothing else", COUNTS)


@reason.register
def _(part: HistorySpec) -> Reason:  # noqa: ARG001
    return Reason("the items of the user's history that speak for it, each with its weight", WEIGHTS)


@reason.register
def _(part: TwoTower) -> Reason:  # noqa: ARG001
    return Reason("which items lie near it, as the product of two learned vectors; not why they do", OPAQUE)


@reason.register
def _(part: MatrixFactorisation) -> Reason:  # noqa: ARG001
    return Reason("how near it lies to the sum of the history's items, whose vectors say who acts on both", OPAQUE)


@reason.register
def _(part: FactorizationMachine) -> Reason:  # noqa: ARG001
    return Reason("the product of two vectors: what ids and attributes of user and item are found to mean", OPAQUE)


@reason.register
def _(part: Linear) -> Reason:
    return Reason(f"one weight per column, {len(part.terms)} in all, and what each adds to the log-odds", WEIGHTS)


@reason.register
def _(part: Trees) -> Reason:
    return Reason(f"its path through {len(part.model.trees)} trees, and what each column adds along them", PATHS)


@reason.register
def _(part: Ensemble) -> Reason:
    reasons = {member.name: reason(member.scorer) for member in part.members}
    words = "; ".join(f"{name}: {each.words}" for name, each in reasons.items())
    return Reason(f"the mean of {len(reasons)} rankers ({words})", max(each.effort for each in reasons.values()))


def attribution(stage: RankerStage, query: Query, candidates: Candidates) -> Attribution:
    """What drives a ranker's scores of these candidates."""
    parts = {name: np.nan_to_num(column) for name, column in stage.contributions(query, candidates).items()}
    scores = stage.score(query, candidates)
    moved = {name: float(np.abs(column - column.mean()).mean()) for name, column in parts.items() if name != "bias"}
    total = sum(moved.values())
    greatest = sorted(moved, key=lambda name: -moved[name])[:NAMED]
    drivers = tuple((name, moved[name] / total) for name in greatest if total > 0 and moved[name] > 0)
    return Attribution(drivers, adds_up(np.sum(list(parts.values()), axis=0), scores))


def adds_up(sums: Column, scores: Column) -> bool:
    """Whether contributions sum to the scores, or to the log-odds of scores that are probabilities."""
    if np.allclose(sums, scores, rtol=1e-5, atol=1e-6):
        return True
    with np.errstate(over="ignore"):
        return bool(np.allclose(1.0 / (1.0 + np.exp(-sums)), scores, rtol=1e-5, atol=1e-6))
