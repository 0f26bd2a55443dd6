"""Slow and obvious: what the fast code must agree with."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from shortlist.features.definitions import Aggregate, Ratio
from shortlist.features.program import over_all_keys
from shortlist.features.windows import attribute_of, window_of

Events = Sequence[Mapping[str, Any]]
Key = tuple[str, ...]
COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "in": lambda value, constants: value in constants,
}  # fmt: skip


def attribute(log: Events, entity: str, id_: str, name: str, position: int) -> list[Any]:
    """The values of an attribute known strictly before `position`, each once."""
    told = [e[name] for e in log[:position] if e["kind"] == entity and e[entity] == id_ and e.get(name) is not None]
    return [] if not told else list(dict.fromkeys(told[-1] if isinstance(told[-1], list) else [told[-1]]))


def keys(log: Events, by: Key, ids: Mapping[str, str], position: int) -> list[Key]:
    """The keys that ids belong to: one, or one per value of an attribute."""
    pairs = [(part, attribute_of(part)) for part in by]
    values = [attribute(log, pair[0], ids[pair[0]], pair[1], position) if pair else [ids[part]] for part, pair in pairs]
    return list(product(*values))


def stream(log: Events, feature: Aggregate, key: Key, position: int) -> list[Mapping[str, Any]]:
    """The known events of a feature's stream that update a key, in log order."""
    kind, conditions = feature.stream.event.kind, feature.stream.conditions
    return [
        event
        for offset, event in enumerate(log[:position])
        if event["kind"] == kind
        and all(event.get(c.field) is not None and COMPARE[c.comparison](event[c.field], c.value) for c in conditions)
        and key in keys(log, feature.by, event, offset)
    ]


def aggregate(log: Events, feature: Aggregate, key: Key, position: int, now: int) -> Any:
    """The feature of one key, knowing the events before `position`, asked at `now`; None is missing."""
    events = stream(log, feature, key, position)
    window = window_of(feature)
    if window:
        head = max((event["at"] // window.hop for event in events), default=0)
        first, last = max((now - window.length) // window.hop, head - window.ring + 1), now // window.hop
        events = [event for event in events if first <= event["at"] // window.hop <= last]
    if feature.value is not None:
        events = [event for event in events if event.get(feature.value) is not None]
    ordered = sorted(events, key=lambda event: event["at"])  # stable: ties stay in log order
    values = [event[feature.value] for event in events] if feature.value else [1.0] * len(events)
    newest_first = [event[feature.value] for event in reversed(ordered)] if feature.value else []
    clock = max([now, *(event["at"] for event in events)])
    match feature.operation:
        case "count":
            return len(events)
        case "sum":
            return math.fsum(values)
        case "mean":
            return math.fsum(values) / len(values) if values else None
        case "std":
            mean = math.fsum(values) / len(values) if values else 0.0
            return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values)) if values else None
        case "min" | "max":
            return (min if feature.operation == "min" else max)(values) if values else None
        case "first":
            return newest_first[-1] if values else None
        case "last":
            return newest_first[0] if values else None
        case "last_n":
            return newest_first[: feature.n]
        case "time_since":
            return (clock - ordered[-1]["at"]) / 1000 if events else None
        case "distinct":
            return len(set(values))
        case "top_k":
            return space_saving(values, max(4 * feature.n, 16))[: feature.n]
        case _:
            half_life = {"1m": 60_000, "1h": 3_600_000, "1d": 86_400_000}[str(feature.half_life)]
            weights = [2.0 ** (-(clock - event["at"]) / half_life) for event in events]
            return math.fsum(value * weight for value, weight in zip(values, weights, strict=True))


def space_saving(values: Sequence[Any], size: int) -> list[Any]:
    """The values that `size` counters hold, most counted first: an unseen value takes over the least counted."""
    counters: list[list[Any]] = []
    for value in values:
        mine = next((counter for counter in counters if counter[0] == value), None)
        if mine is None and len(counters) < size:
            counters.append([value, 1])
        else:
            mine = mine or min(counters, key=lambda counter: counter[1])
            mine[:] = [value, mine[1] + 1]
    return [value for value, _ in sorted(counters, key=lambda counter: -counter[1])]


def feature(log: Events, asked: Aggregate | Ratio, ids: Mapping[str, str], position: int, now: int) -> Any:
    """A feature of ids: of a key that is an attribute with several values, the mean over those that have it."""
    if isinstance(asked, Ratio):
        top, bottom = (feature(log, part, ids, position, now) for part in (asked.numerator, asked.denominator))
        rate: float | None = 0.0
        if asked.prior:
            parts = [over_all_keys(part) for part in (asked.numerator, asked.denominator)]
            all_top, all_bottom = (feature(log, part, {}, position, now) for part in parts)
            rate = all_top / all_bottom if all_bottom else None
        if top is None or bottom is None or rate is None or bottom + asked.prior == 0:
            return None
        return (top + asked.prior * rate) / (bottom + asked.prior)
    found = [aggregate(log, asked, key, position, now) for key in keys(log, asked.by, ids, position)]
    if found and isinstance(found[0], (str, list)):
        return found[0]
    numbers = [value for value in found if value is not None]
    return math.fsum(numbers) / len(numbers) if numbers else None


def late(log: Events, asked: Aggregate, position: int) -> int:
    """How many events found the ring of their own key past them."""
    window, count = window_of(asked), 0
    heads: dict[Key, int] = {}
    assert window is not None
    for offset, event in enumerate(log[:position]):
        if event["kind"] == asked.stream.event.kind:
            for key in keys(log, asked.by, event, offset):
                if event in stream(log[: offset + 1], asked, key, offset + 1)[-1:]:
                    bucket = event["at"] // window.hop
                    heads[key] = max(heads.get(key, bucket), bucket)
                    count += bucket <= heads[key] - window.ring
    return count
