"""What can be wrong with a declared ranker."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, get_args

from shortlist.framing.problems import Problem, nearest
from shortlist.ranking.specs import BoostedTrees, DeepCross, Order, RankerSpec

LEAST: Mapping[str, int] = {"trees": 1, "leaves": 2, "rows_per_leaf": 1, "layers": 0, "epochs": 1}


def ranker_problems(ranker: RankerSpec, proxies: Mapping[str, Any], place: str) -> Iterator[Problem]:
    """An objective that there is, sizes that are numbers, and something for a network to blend."""
    if isinstance(ranker, BoostedTrees) and ranker.objective not in get_args(Order):
        hint = nearest(str(ranker.objective), get_args(Order))
        yield Problem(place, f"{ranker.name} has the objective {ranker.objective!r}", hint)
    for each in fields(ranker):
        value: Any = getattr(ranker, each.name)
        if each.name in LEAST and not is_count(value, LEAST[each.name]):
            expected = f"expected a whole number of at least {LEAST[each.name]}"
            yield Problem(place, f"{ranker.name}'s {each.name} is {value!r}", expected)
    rate: Any = getattr(ranker, "learning_rate", 1.0)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
        yield Problem(place, f"{ranker.name}'s learning_rate is {rate!r}", "expected a number above 0")
    if not isinstance(ranker, DeepCross):
        return
    hidden: Any = ranker.hidden
    if not isinstance(hidden, tuple | list) or not all(is_count(width, 1) for width in hidden):
        yield Problem(place, f"{ranker.name}'s hidden is {hidden!r}", "expected widths of layers, such as (128, 64)")
    if proxies and not any(proxies.values()):
        listed = ", ".join(map(repr, proxies))
        hint = "the score is their weighed sum: give one of them another weight than 0"
        yield Problem(place, f"{ranker.name} would blend proxies that are worth nothing: {listed}", hint)


def is_count(value: Any, least: int) -> bool:
    """Whether a value is a whole number, and large enough."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
