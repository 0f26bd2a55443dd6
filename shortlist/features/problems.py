"""What is wrong with declared features: everything at once, each with its place and what was expected instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import get_args

from shortlist.events.schema import Entity, EventSchema, FieldType
from shortlist.features.definitions import Aggregate, Comparison, Condition, Feature, Ratio, RequestFeature, duration_ms
from shortlist.features.windows import attribute_of, attribute_types, entity_of, type_of, window_of
from shortlist.framing.problems import Problem, nearest

NUMERIC = ("int", "float", "bool")
NEED_NUMBERS = ("sum", "mean", "std", "min", "max", "decayed_sum")
ADDITIVE = ("count", "sum", "distinct", "decayed_count", "decayed_sum")
LONGEST_LIST = 1_000


def problems(
    features: Sequence[Feature],
    schemas: Iterable[EventSchema],
    entities: Iterable[Entity],
    context: Mapping[str, FieldType],
) -> list[Problem]:
    """Every mistake in `features`, given the events, entities and request context that are declared beside them."""
    known = list(schemas)
    by_name = {entity.name: entity for entity in entities}
    found: list[Problem] = []
    for feature in features:
        if isinstance(feature, Ratio):
            found += _ratio_problems(feature)
            for part in (feature.numerator, feature.denominator):
                found += _aggregate_problems(part, known, by_name, feature.place)
        elif isinstance(feature, Aggregate):
            found += _aggregate_problems(feature, known, by_name, feature.place)
    found += _name_problems(features, by_name, context)
    return list(dict.fromkeys([*found, *_input_problems(features, by_name, context)]))


def _aggregate_problems(
    aggregate: Aggregate, schemas: Sequence[EventSchema], entities: Mapping[str, Entity], place: str
) -> Iterator[Problem]:
    event = aggregate.stream.event
    if not any(event is schema for schema in schemas):
        hint = nearest(event.kind, (schema.kind for schema in schemas))
        yield Problem(place, f"a feature of the event {event.kind!r}, which is not among the project's events", hint)
    for part in aggregate.by:
        yield from _key_problems(aggregate, part, entities, place)
    if aggregate.value is not None:
        yield from _value_problems(aggregate, aggregate.value, place)
    for condition in aggregate.stream.conditions:
        yield from _condition_problems(event, condition, place)
    try:
        window_of(aggregate)
    except ValueError as error:
        yield Problem(place, f"{aggregate.operation} with a window that cannot be", str(error))
    if aggregate.half_life is not None:
        try:
            duration_ms(aggregate.half_life)
        except ValueError as error:
            yield Problem(place, f"half_life={aggregate.half_life!r}", str(error))
    if aggregate.operation in ("last_n", "top_k") and not 1 <= aggregate.n <= LONGEST_LIST:
        yield Problem(place, f"{aggregate.operation} of {aggregate.n} values", f"expected 1 to {LONGEST_LIST}")
    if aggregate.operation == "distinct" and not 0.005 <= aggregate.error < 1:
        yield Problem(place, f"distinct with error={aggregate.error}", "expected at least 0.005 and below 1")


def _key_problems(aggregate: Aggregate, part: str, entities: Mapping[str, Entity], place: str) -> Iterator[Problem]:
    event, name = aggregate.stream.event, entity_of(part)
    keys = [key.name for key in event.keys]
    if name not in keys:
        yield Problem(place, f"by({part!r}), but {event.kind!r} does not name {name!r}", nearest(name, keys))
        return
    pair = attribute_of(part)
    if pair is None:
        return
    entity = entities.get(name) or next(key for key in event.keys if key.name == name)
    types = attribute_types(entity)
    if pair[1] not in types:
        yield Problem(place, f"by({part!r}), but {name!r} has no attribute {pair[1]!r}", nearest(pair[1], types))
    elif types[pair[1]] not in ("str", "list[str]"):
        yield Problem(place, f"by({part!r}), an attribute of type {types[pair[1]]}", "a key is a str or a list[str]")
    elif types[pair[1]] == "list[str]" and _is_list(aggregate):
        found = f"{aggregate.operation} by {part!r}, of which one {name} has several values"
        yield Problem(place, found, "lists have no mean over them; group by an entity or a single-valued attribute")


def _value_problems(aggregate: Aggregate, value: str, place: str) -> Iterator[Problem]:
    event = aggregate.stream.event
    if not (value in event.fields or any(value == key.name for key in event.keys)):
        names = [*event.fields, *(key.name for key in event.keys)]
        yield Problem(
            place, f"{aggregate.operation}({value!r}), but {event.kind!r} has no such field", nearest(value, names)
        )
        return
    known = type_of(event, value)
    if aggregate.operation in NEED_NUMBERS and known not in NUMERIC:
        expected = f"{aggregate.operation} needs a number: int, float or bool"
        yield Problem(place, f"{aggregate.operation}({value!r}), a field of type {known}", expected)
    elif known == "list[str]":
        expected = "a value is one string or one number; make one event per element"
        yield Problem(place, f"{aggregate.operation}({value!r}), a field of type list[str]", expected)


def _condition_problems(event: EventSchema, condition: Condition, place: str) -> Iterator[Problem]:
    shown = f"where({condition.field!r}, {condition.comparison!r}, {condition.value!r})"
    if condition.comparison not in get_args(Comparison):
        yield Problem(place, shown, f"the comparisons are {', '.join(get_args(Comparison))}")
        return
    known = type_of(event, condition.field)
    if known is None or known == "list[str]":
        names = [*event.fields, *(key.name for key in event.keys)]
        hint = "a condition is on one string or one number" if known else nearest(condition.field, names)
        yield Problem(place, f"{shown}, but {event.kind!r} has no such field" if known is None else shown, hint)
        return
    constants = condition.value if condition.comparison == "in" else [condition.value]
    if not isinstance(constants, (list, tuple)):
        yield Problem(place, shown, '"in" needs a list of constants')
        return
    kind = str if known == "str" else (int, float)
    for constant in constants:
        if not isinstance(constant, kind) or constant != constant:
            expected = "a string" if known == "str" else "a number"
            yield Problem(
                place, f"{shown}: {constant!r}", f"{condition.field!r} is {known}: compare it with {expected}"
            )


def _ratio_problems(ratio: Ratio) -> Iterator[Problem]:
    top, bottom = ratio.numerator, ratio.denominator
    for part in (top, bottom):
        if part.operation not in ADDITIVE:
            yield Problem(ratio.place, f"a ratio of {part.operation}", f"a ratio is of {', '.join(ADDITIVE)}")
    if not ratio.prior >= 0:
        yield Problem(ratio.place, f"prior={ratio.prior}", "expected 0 or more pseudo-observations")
    if top.by != bottom.by and (ratio.prior > 0 or not set(bottom.by) < set(top.by)):
        found = f"a ratio over different keys: {top.by} per {bottom.by}"
        yield Problem(
            ratio.place, found, "group both by the same keys (without a prior: the lower by some of the upper's)"
        )


def _name_problems(
    features: Sequence[Feature], entities: Mapping[str, Entity], context: Mapping[str, FieldType]
) -> Iterator[Problem]:
    for name, times in Counter(feature.name for feature in features).items():
        if times > 1:
            places = [feature.place for feature in features if feature.name == name]
            yield Problem(places[-1], f"a second feature {name!r} (the first: {places[0]})", "name one: .named('...')")
    taken = {f"{e.name}_{a}": "an attribute's column" for e in entities.values() for a in attribute_types(e)}
    taken |= {**dict.fromkeys(context, "a value of the request's context"), "now": "the time of asking"}
    for feature in features:
        if feature.name in taken:
            yield Problem(feature.place, f"a feature {feature.name!r}, which is {taken[feature.name]}", "rename it")


def _input_problems(
    features: Sequence[Feature], entities: Mapping[str, Entity], context: Mapping[str, FieldType]
) -> Iterator[Problem]:
    requested = {f.name: f for f in features if isinstance(f, RequestFeature)}
    strings = {f.name for f in features if isinstance(f, Aggregate) and _is_list(f)}
    known = {feature.name for feature in features} | set(context) | {"now"}
    types = {f"{e.name}_{a}": t for e in entities.values() for a, t in attribute_types(e).items() if a != "available"}
    known |= {name for name, declared in types.items() if declared in NUMERIC}
    for feature in requested.values():
        for name in feature.inputs:
            if name in strings:
                yield Problem(
                    feature.place, f"{feature.name}({name}), which is a list", "an input is one number per row"
                )
            elif name not in known:
                yield Problem(feature.place, f"{feature.name}({name}), and there is no {name!r}", nearest(name, known))
    order = TopologicalSorter({n: [i for i in f.inputs if i in requested] for n, f in requested.items()})
    try:
        order.prepare()
    except CycleError as error:
        cycle = list(error.args[1])
        place = requested[cycle[0]].place
        yield Problem(place, f"request features that need each other: {' -> '.join(cycle)}", "break the circle")


def _is_list(aggregate: Aggregate) -> bool:
    single = aggregate.operation in ("first", "last")
    listed = aggregate.operation in ("last_n", "top_k")
    return listed or (single and type_of(aggregate.stream.event, aggregate.value or "") == "str")
