"""The language in which features are declared: `watch.by(user).count("5m")`.

Knows nothing of how features are computed. Declaring never raises on a user's mistake: an unreadable duration, an
unknown field are kept as written and reported all at once by `Project.problems()`.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from shortlist.events.schema import Entity, EventSchema, FieldType
from shortlist.framing.durations import duration_ms as duration_ms
from shortlist.framing.problems import declared_at

Operation = Literal[
    "count",
    "sum",
    "mean",
    "std",
    "min",
    "max",
    "first",
    "last",
    "last_n",
    "time_since",
    "distinct",
    "top_k",
    "decayed_count",
    "decayed_sum",
]
Comparison = Literal["==", "!=", "<", "<=", ">", ">=", "in"]


@dataclass(frozen=True)
class Condition:
    """One comparison of a field with a constant; an event with a missing value never satisfies it."""

    field: str
    comparison: Comparison
    value: Any


class EventType(EventSchema):
    """A kind of event as the user declares it: a schema that features can be made of."""

    def __init__(self, kind: str, /, *keys: Entity, **fields: FieldType) -> None:
        super().__init__(kind, keys, fields, declared_at())

    def where(self, name: str, comparison: Comparison, value: Any) -> Stream:
        """Only the events whose field `name` compares so; chain calls to require several conditions."""
        return Stream(self).where(name, comparison, value)

    def by(self, *keys: Entity | str) -> Grouped:
        """One row of state per value of `keys`: an entity, a pair, or an entity's attribute as "film.genres"."""
        return Stream(self).by(*keys)


@dataclass(frozen=True)
class Stream:
    """The events of one type that satisfy every condition."""

    event: EventSchema
    conditions: tuple[Condition, ...] = ()

    def where(self, name: str, comparison: Comparison, value: Any) -> Stream:
        """Add a condition; for "in", `value` is a list of constants."""
        constant = tuple(value) if isinstance(value, (list, set, frozenset)) else value
        return Stream(self.event, (*self.conditions, Condition(name, comparison, constant)))

    def by(self, *keys: Entity | str) -> Grouped:
        """One row of state per value of `keys`; `by()` without keys is one row for everything."""
        return Grouped(self, tuple(key if isinstance(key, str) else key.name for key in keys))


class Feature(ABC):
    """What may stand in a project's list of features: an aggregate, a ratio, a request feature."""

    place: str

    @property
    @abstractmethod
    def name(self) -> str:
        """The column's name."""


@dataclass(frozen=True)
class Aggregate(Feature):
    """A feature folded from a stream of events, per key.

    `over` is the window's length and `hop` its resolution (default over/12); without `over` everything counts.
    `name` is the column's name: `named()` replaces the derived one.
    """

    operation: Operation
    stream: Stream
    by: tuple[str, ...]
    value: str | None = None
    over: str | None = None
    hop: str | None = None
    n: int = 0
    half_life: str | None = None
    error: float = 0.0
    label: str = ""
    place: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """The column's name, e.g. `user_watch_mean_seconds_30d`."""
        conditions = [f"{c.field}_{c.value}" for c in self.stream.conditions]
        size = str(self.n) if self.n else None
        parts = [
            *self.by,
            self.stream.event.kind,
            *conditions,
            self.operation,
            self.value,
            size,
            self.over,
            self.half_life,
        ]
        return self.label or re.sub(r"\W+", "_", "_".join(part for part in parts if part))

    def named(self, name: str) -> Aggregate:
        """The same feature under another name."""
        return replace(self, label=name)


@dataclass(frozen=True)
class Ratio(Feature):
    """`(numerator + prior * rate) / (denominator + prior)`, where `rate` is the ratio over all keys at that time.

    Additive smoothing towards the global rate; `prior` is its strength in pseudo-observations, 0 leaves the plain
    ratio (missing where the denominator is 0).
    """

    numerator: Aggregate
    denominator: Aggregate
    prior: float = 0.0
    label: str = ""
    place: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """The column's name, e.g. `film_click_count_7d_per_film_impression_count_7d`."""
        return self.label or f"{self.numerator.name}_per_{self.denominator.name}"

    def named(self, name: str) -> Ratio:
        """The same feature under another name."""
        return replace(self, label=name)


@dataclass(frozen=True)
class RequestFeature(Feature):
    """A pure function of columns; its parameter names are its inputs: features, attributes, context, or `now`."""

    function: Callable[..., Any]
    place: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """The function's own name."""
        return str(getattr(self.function, "__name__", "request_feature"))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The parameter names, in order."""
        return tuple(inspect.signature(self.function).parameters)


def ratio(numerator: Aggregate, denominator: Aggregate, prior: float = 0.0) -> Ratio:
    """A smoothed ratio of two counts or sums over the same keys; see `Ratio`."""
    return Ratio(numerator, denominator, prior, place=declared_at())


def request_feature(function: Callable[..., Any]) -> RequestFeature:
    """Declare a pure function of columns as a feature; it must work elementwise on numpy arrays."""
    return RequestFeature(function, declared_at())


@dataclass(frozen=True)
class Grouped:
    """A stream grouped by keys; every method makes one feature. Numbers skip missing values; times are ms."""

    stream: Stream
    keys: tuple[str, ...]

    def _make(self, operation: Operation, value: str | None = None, over: str | None = None, **rest: Any) -> Aggregate:
        return Aggregate(operation, self.stream, self.keys, value, over, place=declared_at(), **rest)

    def count(self, over: str | None = None, hop: str | None = None) -> Aggregate:
        """How many events."""
        return self._make("count", None, over, hop=hop)

    def sum(self, value: str, over: str | None = None, hop: str | None = None) -> Aggregate:
        """The sum of a numeric field; 0 where there is none."""
        return self._make("sum", value, over, hop=hop)

    def mean(self, value: str, over: str | None = None, hop: str | None = None) -> Aggregate:
        """The mean of a numeric field; missing where there is none."""
        return self._make("mean", value, over, hop=hop)

    def std(self, value: str, over: str | None = None, hop: str | None = None) -> Aggregate:
        """The population standard deviation (Welford; Chan's merge); missing where there is none."""
        return self._make("std", value, over, hop=hop)

    def min(self, value: str, over: str | None = None, hop: str | None = None) -> Aggregate:
        """The least value; missing where there is none."""
        return self._make("min", value, over, hop=hop)

    def max(self, value: str, over: str | None = None, hop: str | None = None) -> Aggregate:
        """The greatest value; missing where there is none."""
        return self._make("max", value, over, hop=hop)

    def first(self, value: str) -> Aggregate:
        """The value of the earliest event; ties go to the first in the log."""
        return self._make("first", value)

    def last(self, value: str, n: int = 1) -> Aggregate:
        """The value of the latest event (ties: the last in the log), or a list of the last `n`, newest first."""
        return self._make("last", value) if n == 1 else self._make("last_n", value, n=n)

    def time_since(self) -> Aggregate:
        """Seconds from the latest event to `now`; missing where there is none."""
        return self._make("time_since")

    def distinct(self, value: str, over: str | None = None, hop: str | None = None, error: float = 0.065) -> Aggregate:
        """How many different values, by HyperLogLog with relative standard error at most `error`."""
        return self._make("distinct", value, over, hop=hop, error=error)

    def top_k(self, value: str, k: int = 3) -> Aggregate:
        """The `k` most frequent values, most frequent first, by Space-Saving with 4k counters (at least 16)."""
        return self._make("top_k", value, n=k)

    def decayed_count(self, half_life: str) -> Aggregate:
        """How many events, each weighing 2^-(age / half_life)."""
        return self._make("decayed_count", None, half_life=half_life)

    def decayed_sum(self, value: str, half_life: str) -> Aggregate:
        """The sum of a numeric field, each value weighing 2^-(age / half_life)."""
        return self._make("decayed_sum", value, half_life=half_life)

    def share(self, attribute: str, over: str | None = None, hop: str | None = None) -> Ratio:
        """Of this key's events, the share that has the candidate's own value of `attribute` ("film.genres").

        The mean over its values where the candidate has several. Exact: counted per (key, value) pair.
        """
        per_value = self.stream.by(*self.keys, attribute).count(over, hop)
        label = re.sub(
            r"\W+",
            "_",
            "_".join(part for part in (*self.keys, self.stream.event.kind, "share", attribute, over) if part),
        )
        return Ratio(per_value, self.count(over, hop), label=label, place=declared_at())


class Impression(EventType):
    """The event type `impression`: one item of one slate was shown. Declare it to make features and labels of it.

    Fields: `request` (joins the items of one slate), `position` (1 is the top), `release`, `arm`, `propensity`,
    `score`, `context` (what the request said of itself, as JSON), and, where the vector was sampled for the audit,
    `log_position` (what was known), `now` and `vector`.
    """

    def __init__(self, user: Entity, item: Entity) -> None:
        super().__init__("impression", user, item, **IMPRESSION_FIELDS)


IMPRESSION_FIELDS: Mapping[str, FieldType] = {
    "request": str,
    "position": int,
    "release": str | None,
    "arm": str | None,
    "propensity": float | None,
    "score": float | None,
    "context": str | None,
    "log_position": int | None,
    "now": int | None,
    "vector": str | None,
}
