"""What can be wrong with a declared ranker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from shortlist.framing.problems import Problem, nearest
from shortlist.framing.values import is_count
from shortlist.ranking.specs import BoostedTrees, DeepCross, Order, RankerSpec


def ranker_problems(ranker: RankerSpec, proxies: Mapping[str, Any], place: str) -> Iterator[Problem]:
    """An objective that there is, widths of layers, and something for a network to blend."""
    if isinstance(ranker, BoostedTrees) and ranker.objective not in get_args(Order):
        hint = nearest(str(ranker.objective), get_args(Order))
        yield Problem(place, f"{ranker.name} has the objective {ranker.objective!r}", hint)
    if not isinstance(ranker, DeepCross):
        return
    hidden: Any = ranker.hidden
    if not isinstance(hidden, tuple | list) or not all(is_count(width, 1) for width in hidden):
        yield Problem(place, f"{ranker.name}'s hidden is {hidden!r}", "expected widths of layers, such as (128, 64)")
    if proxies and not any(proxies.values()):
        listed = ", ".join(map(repr, proxies))
        hint = "the score is their weighed sum: give one of them another weight than 0"
        yield Problem(place, f"{ranker.name} would blend proxies that are worth nothing: {listed}", hint)
