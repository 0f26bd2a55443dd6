"""Which rules make a slate of scored candidates, as the project file declares them, each in one line.

Relevance is a candidate's score on a scale from 0, the worst of what sources proposed for this request, to 1, the best:
rules mean the same whatever scores a ranker gives. Places count from 1, the top.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from shortlist.events.schema import EventSchema

Where = tuple[str, str, Any]
"""An attribute of the item, a comparison, a value: `("genres", "==", "Drama")`; of a list any value may compare.

An attribute that is a moment, ms UTC, may lie in the time before a request: `("published", "within", "3d")`.
"""


@dataclass(frozen=True)
class MMR:
    """Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998): each place goes to what is relevant and new.

    What is taken has the greatest `trade_off * relevance - (1 - trade_off) * similarity`, the similarity (0 to 1) to
    the most similar item above it. `by` names a source with item vectors or an attribute of the item, whose values'
    overlap is then the similarity. The `among` most relevant candidates compete.
    """

    by: str
    trade_off: float = 0.8
    among: int = 100


@dataclass(frozen=True)
class DPP:
    """A determinantal point process: the slate that is relevant and spans much, found greedily.

    Chen, Zhang and Zhou, Fast greedy MAP inference for determinantal point process (NeurIPS 2018): each place goes to
    the greatest `trade_off * relevance + (1 - trade_off) * log of what the item adds to the volume` that the slate's
    items span. Unlike MMR it looks at all items above at once. Fields as in MMR.
    """

    by: str
    trade_off: float = 0.8
    among: int = 100


@dataclass(frozen=True)
class Cap:
    """At most so many items of the slate share one value of the attribute; each value of a list counts.

    Where the candidates do not suffice for that, the slate is filled all the same, and its explanation says so.
    """

    attribute: str
    at_most: int = 1


@dataclass(frozen=True)
class Fairness:
    """Each group gets at least its share of the slate's exposure; a place p has the exposure 1 / log2(1 + p).

    A group is the items with one value of the attribute: `Fairness("label", {"independent": 0.3})`. Exposure as in
    Singh and Joachims (KDD 2018), held from the top down as in Geyik, Ambler and Kenthapadi (KDD 2019).
    """

    attribute: str
    at_least: Mapping[Any, float]


@dataclass(frozen=True, kw_only=True)
class Target:
    """The items that a rule is about, and when: those `where` holds, or those named; from `since` until `until`.

    Moments are ISO 8601, UTC where they name no offset: "2026-12-01", "2026-12-24T18:00+01:00". `until` is excluded.
    An item that lacks the attribute is not meant, whatever the comparison.
    """

    where: Where | None = None
    items: Sequence[str] = ()
    since: str | None = None
    until: str | None = None


@dataclass(frozen=True)
class Exclude(Target):
    """Items that are never shown: not from a source, not from the last resort, not of the caller's own."""


@dataclass(frozen=True, init=False, repr=False)
class Seen:
    """An item is not shown to a user who did any of these with it: `Seen(watch, hide)`.

    It holds for every source, the last resort and pins, for good or only `within` a duration after the latest such
    event: `Seen(listen, within="30d")`. Several lines add up; of two that name the same event the longer one holds.
    `Seen()` alone says that everything may come again. A project without any counts the events of its labels, and those
    that its objective weighs below zero (`Project.seen`).
    """

    events: tuple[EventSchema, ...]
    within: str | None

    def __init__(self, *events: EventSchema, within: str | None = None) -> None:
        object.__setattr__(self, "events", events)
        object.__setattr__(self, "within", within)

    def __repr__(self) -> str:
        # a batch is compared by its rules: events go by their kinds, not by the lines where they are declared
        kinds = [str(getattr(event, "kind", event)) for event in self.events]
        within = [] if self.within is None else [f"within={self.within!r}"]
        return f"Seen({', '.join([*kinds, *within])})"


@dataclass(frozen=True)
class Boost(Target):
    """Multiplies the relevance of items; a factor below 1 holds them back. What is 0, the worst candidate, stays 0."""

    factor: float


@dataclass(frozen=True)
class Pin(Target):
    """Puts items at places from `at` on, in the order in which they are named, or the best candidate `where` holds.

    Named items are shown whether or not a source proposes them, but never against a filter: what is unavailable,
    excluded or seen is not shown.
    """

    at: int = 1


@dataclass(frozen=True)
class Explore:
    """Gives the last `slots` places, but never the first one, to candidates that are drawn.

    They are drawn from the `most` most relevant candidates that are not shown anyway: evenly, or with the odds
    exp(relevance / temperature). `among` names a source: only what it proposed is drawn, and with a temperature also
    what would stand there anyway, so that a place goes to what the source proposed where that costs little. Slates
    carry each item's probability, its propensity, and the request's id is the seed. The caller's own items are never
    drawn.
    """

    slots: int = 1
    among: str | None = None
    temperature: float | None = None
    most: int = 100


RuleSpec = MMR | DPP | Cap | Fairness | Exclude | Seen | Boost | Pin | Explore


def names_of(rules: Sequence[RuleSpec]) -> list[str]:
    """A name for each rule: what it is, and of what; numbered where two would have the same."""
    names, seen = [], Counter[str]()
    for rule in rules:
        name = "_".join([type(rule).__name__.lower(), *_subject(rule)])
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return names


def _subject(rule: RuleSpec) -> list[str]:
    if isinstance(rule, Target):
        return ["items"] if rule.where is None else [rule.where[0]]
    if isinstance(rule, Cap | Fairness):
        return [rule.attribute]
    if isinstance(rule, Seen):
        return [event.kind for event in rule.events]
    return [rule.by] if isinstance(rule, MMR | DPP) else []


def moment_ms(text: str) -> int:
    """An ISO 8601 moment in ms since 1970; UTC where it names no offset. Raises ValueError for anything else."""
    moment = datetime.fromisoformat(text)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
