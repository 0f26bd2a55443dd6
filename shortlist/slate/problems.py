"""What is wrong with declared slate rules: everything at once, each with what was expected instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shortlist.events.schema import Entity, EventSchema, FieldType, value_type
from shortlist.framing.problems import Problem, describe, nearest
from shortlist.framing.values import is_count, is_duration, is_number
from shortlist.slate.specs import (
    DPP,
    MMR,
    Boost,
    Cap,
    Explore,
    Fairness,
    Pin,
    RuleSpec,
    Seen,
    Target,
    moment_ms,
    names_of,
)

NUMERIC = ("int", "float", "bool")
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=", "in")
OF_MOMENTS = (*COMPARISONS, "within")
TEXT_COMPARISONS = ("==", "!=", "in")
EXAMPLE = 'expected a rule, such as Cap("creator", 2)'


@dataclass(frozen=True)
class Declared:
    """What rules may name: attributes of the item, sources, those of the sources that have item vectors, and events.

    `keys` are the user and the item.
    """

    attributes: Mapping[str, FieldType]
    sources: Sequence[str]
    embedding: Sequence[str]
    events: Sequence[EventSchema]
    keys: Sequence[Entity]
    place: str

    def problem(self, found: str, expected: str) -> Problem:
        """A mistake in the project's rules."""
        return Problem(self.place, found, expected)


def slate_problems(rules: Any, declared: Declared) -> Iterator[Problem]:
    """Every mistake in the project's slate, which holds whatever the user put in."""
    if isinstance(rules, str | Mapping) or not isinstance(rules, Iterable):
        yield declared.problem(f"slate is {rules!r}", "expected a list of rules")
        return
    sound: list[RuleSpec] = []
    for rule in rules:
        if isinstance(rule, type):
            yield declared.problem(f"slate holds the class {rule.__name__}", f"write {rule.__name__}(...)")
        elif not isinstance(rule, RuleSpec):
            yield declared.problem(f"slate holds {type(rule).__name__} {rule!r}", EXAMPLE)
        else:
            found = list(_of_rule(rule, declared))
            yield from found
            sound += [] if found else [rule]
    for kinds, what in (((MMR, DPP), "diversity"), ((Explore,), "exploration")):
        named = [name for name, rule in zip(names_of(sound), sound, strict=True) if isinstance(rule, kinds)]
        if len(named) > 1:
            yield declared.problem(f"the slate has several rules of {what}: {', '.join(named)}", "keep one of them")
    seen = [rule for rule in sound if isinstance(rule, Seen)]
    some = [rule for rule in seen if rule.events]
    if some and len(some) < len(seen):
        yield declared.problem(f"Seen() stands beside {some[0]!r}", "keep one of them: it says that nothing is seen")


def _of_rule(rule: RuleSpec, declared: Declared) -> Iterator[Problem]:
    if isinstance(rule, Target):
        yield from _of_target(rule, declared)
    elif isinstance(rule, MMR | DPP):
        yield from _of_diversity(rule, declared)
    elif isinstance(rule, Explore):
        yield from _of_exploration(rule, declared)
    elif isinstance(rule, Seen):
        yield from _of_seen(rule, declared)
    else:
        yield from _of_attribute(type(rule).__name__, rule.attribute, declared)
    if isinstance(rule, Cap):
        yield from _of_count("Cap.at_most", rule.at_most, declared)
    if isinstance(rule, Fairness):
        yield from _of_shares(rule, declared)
    if isinstance(rule, Boost) and not (is_number(rule.factor) and rule.factor > 0):
        expected = "expected a number above 0" + ("; Exclude(...) drops items" if rule.factor == 0 else "")
        yield declared.problem(f"Boost.factor is {rule.factor!r}", expected)
    if isinstance(rule, Pin):
        yield from _of_count("Pin.at", rule.at, declared)


def _of_attribute(rule: str, name: Any, declared: Declared) -> Iterator[Problem]:
    if not _is_among(name, declared.attributes):
        hint = nearest(str(name), declared.attributes)
        yield declared.problem(f"{rule} names the attribute {name!r}, which the item does not have", hint)


def _of_count(what: str, value: Any, declared: Declared) -> Iterator[Problem]:
    if not is_count(value, 1):
        yield declared.problem(f"{what} is {value!r}", "expected a whole number of at least 1")


def _of_diversity(rule: MMR | DPP, declared: Declared) -> Iterator[Problem]:
    kind = type(rule).__name__
    if _is_among(rule.by, declared.sources) and rule.by not in declared.embedding:
        known = ", ".join(map(repr, declared.embedding)) or "none is declared"
        found = f"{kind} compares by the source {rule.by!r}, which has no item vectors"
        yield declared.problem(found, f"name an attribute of the item, or a source that has them: {known}")
    elif not _is_among(rule.by, [*declared.embedding, *declared.attributes]):
        hint = nearest(str(rule.by), [*declared.embedding, *declared.attributes])
        yield declared.problem(f"{kind} compares by {rule.by!r}, no source and no attribute of the item", hint)
    if not is_number(rule.trade_off) or not 0 <= rule.trade_off <= 1:
        expected = "expected a number from 0, all diversity, to 1, all relevance"
        yield declared.problem(f"{kind}.trade_off is {rule.trade_off!r}", expected)
    yield from _of_count(f"{kind}.among", rule.among, declared)


def _of_exploration(rule: Explore, declared: Declared) -> Iterator[Problem]:
    yield from _of_count("Explore.slots", rule.slots, declared)
    yield from _of_count("Explore.most", rule.most, declared)
    if rule.among is not None and not _is_among(rule.among, declared.sources):
        hint = nearest(str(rule.among), declared.sources)
        yield declared.problem(f"Explore draws among {rule.among!r}, which is no source", hint)
    if rule.temperature is not None and not (is_number(rule.temperature) and rule.temperature > 0):
        expected = "expected a number above 0, or None to draw evenly"
        yield declared.problem(f"Explore.temperature is {rule.temperature!r}", expected)


def _of_seen(rule: Seen, declared: Declared) -> Iterator[Problem]:
    events: Any = rule.events
    for event in events:
        if not isinstance(event, EventSchema):
            expected = "expected event types, such as Seen(watch, hide): the objects themselves"
            yield declared.problem(f"Seen names {describe(event)}", expected)
            continue
        if all(other is not event for other in declared.events):
            hint = f"add it to `events`; {nearest(event.kind, [other.kind for other in declared.events])}"
            yield declared.problem(f"Seen names {event.kind!r}, which is not among the project's events", hint)
        missing = [entity.name for entity in declared.keys if entity not in event.keys]
        if missing:
            found = f"Seen names {event.kind!r}, which has no {' and no '.join(missing)}"
            yield declared.problem(found, "expected an event of a user and an item")
        if event.kind == "impression":  # it precedes every action: of the past asked again nothing would be left
            expected = "expected what users do with items; rankers learn from features what was shown and left"
            yield declared.problem("Seen names 'impression', which is what was shown", expected)
    if rule.within is not None and not is_duration(rule.within):
        yield declared.problem(f"Seen.within is {rule.within!r}", "expected a duration, such as '30d'")
    elif rule.within is not None and not events:
        yield declared.problem(f"{rule!r} names no event", "expected one, such as Seen(watch, within='30d')")


def _of_shares(rule: Fairness, declared: Declared) -> Iterator[Problem]:
    shares: Any = rule.at_least
    if not isinstance(shares, Mapping) or not shares:
        yield declared.problem(f"Fairness.at_least is {shares!r}", 'expected shares of values, such as {"new": 0.2}')
        return
    wrong = [share for share in shares.values() if not is_number(share) or not 0 < share <= 1]
    for share in wrong:
        yield declared.problem(f"Fairness gives a share of {share!r}", "expected a number above 0, at most 1")
    if not wrong and sum(shares.values()) > 1 + 1e-9:
        yield declared.problem(f"Fairness gives shares of {sum(shares.values()):g} in all", "expected 1 at most")
    for value in shares if _is_among(rule.attribute, declared.attributes) else ():
        yield from _of_value("Fairness", rule.attribute, value, declared)


def _of_target(rule: Target, declared: Declared) -> Iterator[Problem]:
    kind = type(rule).__name__
    if (rule.where is None) == (not rule.items):
        found = "neither `where` nor `items`" if rule.where is None else "both `where` and `items`"
        yield declared.problem(f"{kind} has {found}", 'expected one: where=("genres", "==", "Drama") or items=["7"]')
    if rule.where is not None:
        yield from _of_where(kind, rule.where, declared)
    items: Any = rule.items
    if not isinstance(items, list | tuple | set | frozenset) or not all(isinstance(item, str) for item in items):
        yield declared.problem(f"{kind}.items is {rule.items!r}", 'expected a list of ids, such as ["7", "12"]')
    moments = []
    for name, text in (("since", rule.since), ("until", rule.until)):
        if text is not None:
            try:
                moments.append(moment_ms(text))
            except (ValueError, TypeError):
                expected = 'expected an ISO 8601 moment, such as "2026-12-01" or "2026-12-01T18:00+01:00"'
                yield declared.problem(f"{kind}.{name} is {text!r}", expected)
    if len(moments) == 2 and moments[0] >= moments[1]:
        yield declared.problem(f"{kind} ends at {rule.until!r}, before it begins at {rule.since!r}", "turn them round")


def _of_where(kind: str, where: Any, declared: Declared) -> Iterator[Problem]:
    if not isinstance(where, tuple) or len(where) != 3:
        yield declared.problem(f"{kind}.where is {where!r}", 'expected three parts, such as ("genres", "==", "Drama")')
        return
    name, comparison, value = where
    if not _is_among(name, declared.attributes):
        yield from _of_attribute(kind, name, declared)
        return
    declared_type = _type(name, declared)
    known = OF_MOMENTS if declared_type == "int" else COMPARISONS if declared_type in NUMERIC else TEXT_COMPARISONS
    if comparison not in known:
        expected = f"expected one of {' '.join(known)} for a {declared_type}"
        yield declared.problem(f"{kind} compares {name!r} with {comparison!r}", expected)
    if comparison == "within":
        if not is_duration(value):
            yield declared.problem(f"{kind} looks for {name!r} within {value!r}", "expected a duration, such as '3d'")
        return
    several = comparison == "in"
    if several and (isinstance(value, str) or not isinstance(value, Iterable)):
        yield declared.problem(f"{kind} looks for {name!r} in {value!r}", 'expected a list, such as ["Drama", "War"]')
        return
    for one in value if several else [value]:
        yield from _of_value(kind, name, one, declared)


def _of_value(kind: str, name: str, value: Any, declared: Declared) -> Iterator[Problem]:
    declared_type = _type(name, declared)
    wanted = {"int": "a number", "float": "a number", "bool": "True or False"}.get(declared_type, "a text")
    fits = isinstance(value, bool) if declared_type == "bool" else is_number(value)
    if not (fits if declared_type in NUMERIC else isinstance(value, str)):
        yield declared.problem(f"{kind} compares {name!r} with {value!r}", f"expected {wanted}")


def _type(name: str, declared: Declared) -> str:
    known = value_type(declared.attributes[name])
    return known[0] if known else "str"


def _is_among(name: Any, known: Iterable[str]) -> bool:
    return isinstance(name, str) and name in known
