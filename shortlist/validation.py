"""What is wrong with a project, all of it at once.

Every check reads the declarations as they were written and reports where they stand; none stops at the first mistake,
and none raises whatever the user put in.
"""

from __future__ import annotations

import dataclasses
import keyword
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from shortlist.events.labels import Labels, ObservedPositives
from shortlist.events.schema import RESERVED, VALUE_TYPES, Entity, EventSchema, value_type
from shortlist.features.definitions import Feature, Grouped, Impression, Stream
from shortlist.features.problems import problems as feature_problems
from shortlist.framing.objective import Constraints, Guardrail, Objective
from shortlist.framing.problems import Problem, describe, nearest
from shortlist.framing.values import is_duration, is_number, settings_problems
from shortlist.project import Project
from shortlist.ranking.problems import ranker_problems
from shortlist.ranking.specs import RankerSpec
from shortlist.retrieval.problems import Learning, encoder_problems, quota_problems, source_problems
from shortlist.retrieval.specs import SourceSpec, TwoTower
from shortlist.slate.problems import Declared, slate_problems

Unbelieved = Any
"""A declaration as the user wrote it: its annotations are hopes."""

COMPARISONS = ("==", "!=", "<", "<=", ">", ">=", "in")
TYPES = f"expected one of {', '.join(VALUE_TYPES)}, or one of them | None"
METRICS = ("ndcg@10", "recall@10", "mrr@10", "coverage@10", "recall@100", "recall@500")
"""What the evaluation report measures of what is served; `<method>.<metric>` names one method's."""


def problems(project: Project) -> list[Problem]:
    """Every mistake, in the order of the declarations."""
    found = [*of_name(project), *of_entities(project), *of_events(project), *of_context(project)]
    if not found:  # features are checked against declarations that make sense
        found += of_features(project)
    found += [*of_labels(project), *of_objective(project), *of_parts(project), *of_slate(project)]
    return list(dict.fromkeys(found))


def of_name(project: Unbelieved) -> Iterator[Problem]:
    """The project's own name: it becomes part of file names and metrics."""
    if not is_file_name(project.name):
        what = f"project name {project.name!r}"
        yield Problem(project.place, what, "expected letters, digits, - and _, such as 'films'")


def is_file_name(name: Any) -> bool:
    """Whether a name may be part of names of files and metrics."""
    return isinstance(name, str) and name.replace("-", "_").isidentifier()


def of_entities(project: Unbelieved) -> Iterator[Problem]:
    """User, item and the others: entities with names of their own and attributes of known types."""
    seen: dict[str, Entity] = {}
    roles = [("user", project.user), ("item", project.item)]
    others = project.entities if isinstance(project.entities, Iterable) else (project.entities,)
    for role, entity in [*roles, *(("entities", other) for other in others)]:
        if not isinstance(entity, Entity):
            yield Problem(project.place, f"{role} is {describe(entity)}", 'expected an Entity, such as Entity("user")')
        elif seen.setdefault(str(entity.name), entity) is not entity:
            yield Problem(
                entity.place,
                f"a second entity {entity.name!r}",
                f"the first is at {seen[entity.name].place}; rename one",
            )
    if project.user is project.item and isinstance(project.user, Entity):
        yield Problem(project.place, f"user and item are both {project.user.name!r}", "expected two different entities")
    for entity in seen.values():
        yield from of_identifier(entity.place, "entity name", entity.name, RESERVED)
        for name, declared in entity.attributes.items():
            what = f"attribute {entity.name}.{name}"
            yield from of_identifier(entity.place, what, name, {*RESERVED, "available", entity.name})
            yield from of_type(entity.place, what, declared)


def of_events(project: Unbelieved) -> Iterator[Problem]:
    """Kinds with names of their own, keys that are entities of the project, fields of known types."""
    if not isinstance(project.events, Iterable):
        yield Problem(project.place, f"events is {describe(project.events)}", "expected a list of event types")
        return
    entities: dict[str, Entity] = {}
    for entity in filter(lambda declared: isinstance(declared, Entity), project.all_entities):
        entities.setdefault(entity.name, entity)
    judge_keys = (
        isinstance(project.user, Entity) and isinstance(project.item, Entity) and project.user is not project.item
    )
    seen: dict[str, EventSchema] = {}
    for event in project.events:
        if not isinstance(event, EventSchema):
            yield Problem(project.place, f"events holds {describe(event)}", "expected an EventType")
            continue
        if seen.setdefault(event.kind, event) is not event:
            yield Problem(
                event.place,
                f"a second event type {event.kind!r}",
                f"the first is at {seen[event.kind].place}; rename one",
            )
        if event.kind in entities:
            place = entities[event.kind].place
            yield Problem(
                event.place,
                f"event type {event.kind!r} has the name of an entity",
                f"that is declared at {place}; rename one",
            )
        if event.kind == "impression" and not isinstance(event, Impression):
            yield Problem(
                event.place, "event type 'impression' is the service's own", "declare it as Impression(user, item)"
            )
        yield from of_event(event, entities, judge_keys)


def of_event(event: Unbelieved, entities: Mapping[str, Entity], judge_keys: bool) -> Iterator[Problem]:
    """One event type; `judge_keys` says that user and item are known, so that a foreign entity is a mistake."""
    yield from of_identifier(event.place, "event type", event.kind, RESERVED)
    if not event.keys:
        yield Problem(
            event.place, f"event type {event.kind!r} names no entity", 'expected at least one: EventType("visit", user)'
        )
    names: set[str] = set()
    for key in event.keys:
        if not isinstance(key, Entity):
            yield Problem(
                event.place,
                f"a key of {event.kind!r} is {describe(key)}",
                "expected an entity; fields are written as name=type",
            )
            continue
        if key.name in names:
            yield Problem(
                event.place, f"{event.kind!r} names the entity {key.name!r} twice", "expected each at most once"
            )
        names.add(key.name)
        if judge_keys and entities.get(key.name) is not key:
            hint = (
                "add it to the project's `entities`"
                if key.name not in entities
                else "use the project's own Entity object"
            )
            yield Problem(
                event.place, f"{event.kind!r} names the entity {key.name!r}, which is not the project's", hint
            )
    for name, declared in event.fields.items():
        what = f"field {event.kind}.{name}"
        yield from of_identifier(event.place, what, name, {*RESERVED, *names})
        yield from of_type(event.place, what, declared)


def of_context(project: Unbelieved) -> Iterator[Problem]:
    """The typed values that a request may carry."""
    if not isinstance(project.context, Mapping):
        yield Problem(
            project.place, f"context is {describe(project.context)}", 'expected a mapping, such as {"device": str}'
        )
        return
    taken = {"now", *(entity.name for entity in project.all_entities if isinstance(entity, Entity))}
    for name, declared in project.context.items():
        yield from of_identifier(project.place, f"context value {name!r}", name, taken)
        yield from of_type(project.place, f"context value {name!r}", declared)


def of_features(project: Unbelieved) -> Iterator[Problem]:
    """What the features' own rules say of those that are features."""
    if not isinstance(project.features, Iterable):
        yield Problem(project.place, f"features is {describe(project.features)}", "expected a list of features")
        return
    for feature in project.features:
        if isinstance(feature, Grouped | Stream | EventSchema):
            yield Problem(project.place, f"features holds {describe(feature)}", "finish it: watch.by(user).count()")
        elif not isinstance(feature, Feature):
            yield Problem(
                project.place, f"features holds {describe(feature)}", "expected a feature: watch.by(user).count()"
            )
    features = [feature for feature in project.features if isinstance(feature, Feature)]
    yield from feature_problems(features, project.schemas, project.all_entities, project.context)


def of_labels(project: Unbelieved) -> Iterator[Problem]:
    """Labels of declared events between a user and an item, with gains above zero."""
    labels, place = project.labels, project.place
    if not isinstance(labels, Labels | ObservedPositives):
        yield Problem(place, f"labels is {describe(labels)}", "expected Labels(...) or ObservedPositives(...)")
        return
    gains: Unbelieved = labels.gains
    if not isinstance(gains, Mapping) or not gains:
        yield Problem(
            place,
            f"labels have the gains {describe(gains)}",
            "expected event types with gains, such as {watch: 1.0}",
        )
        return
    for event, gain in gains.items():
        if not isinstance(event, EventSchema):
            yield Problem(
                place, f"labels name {describe(event)}", "expected an event type: the object itself, not its name"
            )
            continue
        yield from of_label_event(project, event)
        if not is_number(gain) or not gain > 0:
            yield Problem(place, f"labels give {event.kind!r} the gain {gain!r}", "expected a number above 0")
    if isinstance(labels, ObservedPositives):
        yield from of_where(labels, place)
        return
    if not isinstance(labels.impression, Impression):
        yield Problem(place, f"labels.impression is {describe(labels.impression)}", "expected Impression(user, item)")
    elif all(event is not labels.impression for event in project.events):
        yield Problem(
            labels.impression.place, "the labels' impression is not among the project's events", "add it to `events`"
        )
    if not is_duration(labels.within):
        yield Problem(place, f"labels.within is {labels.within!r}", "expected a duration, such as '24h'")


def of_label_event(project: Unbelieved, event: EventSchema) -> Iterator[Problem]:
    """An event type that labels are made of."""
    declared = [other for other in project.events if isinstance(other, EventSchema)]
    if all(other is not event for other in declared):
        hint = f"add it to `events`; {nearest(event.kind, [other.kind for other in declared])}"
        yield Problem(event.place, f"labels name {event.kind!r}, which is not among the project's events", hint)
    missing = [
        entity.name
        for entity in (project.user, project.item)
        if isinstance(entity, Entity) and entity not in event.keys
    ]
    if missing:
        yield Problem(
            event.place,
            f"labels name {event.kind!r}, which has no {' and no '.join(missing)}",
            "expected an event of a user and an item",
        )


def of_where(labels: Unbelieved, place: str) -> Iterator[Problem]:
    """The condition on positives: a field that one of their kinds has, compared with a value of its type."""
    if labels.where is None:
        return
    if not isinstance(labels.where, tuple) or len(labels.where) != 3:
        yield Problem(place, f"labels.where is {labels.where!r}", 'expected three parts, such as ("stars", ">=", 4.0)')
        return
    name, comparison, value = labels.where
    types = {
        field: declared
        for event in labels.gains
        if isinstance(event, EventSchema)
        for field, declared in event.fields.items()
    }
    if name not in types:
        yield Problem(
            place,
            f"labels.where names the field {name!r}",
            f"no event type of the labels has it; {nearest(str(name), types)}",
        )
    if comparison not in COMPARISONS:
        yield Problem(place, f"labels.where compares with {comparison!r}", f"expected one of {' '.join(COMPARISONS)}")
    known = value_type(types.get(name))
    values = value if comparison == "in" and isinstance(value, list | tuple | set | frozenset) else [value]
    for one in values:
        if known and not fits(one, known[0]):
            yield Problem(place, f"labels.where compares {name!r} with {one!r}", f"expected a value of type {known[0]}")


def fits(value: Any, name: str) -> bool:
    """Whether a constant can be compared with a field of the type `name`."""
    if name in ("int", "float"):
        return is_number(value)
    return isinstance(value, bool) if name == "bool" else isinstance(value, str)


def of_objective(project: Unbelieved) -> Iterator[Problem]:
    """Proxies that are events, guardrails on metrics that are measured, constraints above zero."""
    objective, place = project.objective, project.place
    if not isinstance(objective, Objective):
        yield Problem(place, f"objective is {describe(objective)}", "expected Objective(...)")
    else:
        kinds = [event.kind for event in project.events if isinstance(event, EventSchema)]
        for kind, gain in objective.proxies.items():
            if kind not in kinds:
                yield Problem(place, f"the objective's proxy {kind!r} is no event type", nearest(str(kind), kinds))
            if not is_number(gain):
                yield Problem(place, f"the objective's proxy {kind!r} has the gain {gain!r}", "expected a number")
        for guardrail in objective.guardrails:
            yield from of_guardrail(project, guardrail)
    if not isinstance(project.constraints, Constraints):
        yield Problem(place, f"constraints is {describe(project.constraints)}", "expected Constraints(...)")
        return
    for name, value in dataclasses.asdict(project.constraints).items():
        if not is_number(value) or not value > 0:
            yield Problem(place, f"constraints.{name} is {value!r}", "expected a number above 0")


def of_guardrail(project: Unbelieved, guardrail: Any) -> Iterator[Problem]:
    """One bound on one metric of the evaluation report."""
    if not isinstance(guardrail, Guardrail):
        yield Problem(
            project.place, f"a guardrail is {describe(guardrail)}", "expected Guardrail(metric, at_least=...)"
        )
        return
    method, _, metric = guardrail.metric.rpartition(".")
    if metric not in METRICS:
        yield Problem(project.place, f"a guardrail names the metric {guardrail.metric!r}", nearest(metric, METRICS))
    methods = ["popularity", "two_stage", *(part_name(part) for role in KINDS for part in listed(project, role))]
    if method and method not in methods:
        yield Problem(project.place, f"a guardrail names the method {method!r}", nearest(method, methods))
    if guardrail.at_least is None and guardrail.at_most is None:
        yield Problem(
            project.place, f"the guardrail on {guardrail.metric!r} has no bound", "give at_least=... or at_most=..."
        )


def of_parts(project: Unbelieved) -> Iterator[Problem]:
    """Sources and rankers: specs of ours, each under a name of its own, with settings that training can work with."""
    proxies = project.objective.proxies if isinstance(project.objective, Objective) else {}
    for role, kinds in KINDS.items():
        seen: set[str] = set()
        if not isinstance(getattr(project, role), list | tuple):
            yield Problem(project.place, f"{role} is {describe(getattr(project, role))}", "expected a list")
        for part in listed(project, role):
            name = part_name(part)
            if isinstance(part, type):
                yield Problem(project.place, f"{role} holds the class {part.__name__}", f"write {part.__name__}(...)")
                continue
            if not isinstance(part, kinds):
                yield Problem(project.place, f"{role} holds {describe(part)}", f"expected {EXAMPLES[role]}")
                continue
            if name in seen:
                yield Problem(project.place, f"{role} holds {name!r} twice", 'give one another name: name="..."')
            seen.add(name)
            if not is_file_name(part.name):
                what = f"{role} holds {type(part).__name__} with the name {part.name!r}"
                yield Problem(project.place, what, "expected letters, digits, - and _")
            yield from settings_problems(part, project.place)
            if isinstance(part, SourceSpec):
                yield from quota_problems(part, project.place)
            if isinstance(part, Learning):
                yield from source_problems(part, project.user, project.item, project.context, project.place)
            elif isinstance(part, RankerSpec):
                yield from ranker_problems(part, proxies, project.place)


def of_files(project: Project) -> list[Problem]:
    """What a sound project names and is not there. It is no mistake in itself: only training needs it."""
    towers = [source for source in project.sources if isinstance(source, TwoTower)]
    return [problem for each in towers for problem in encoder_problems(each, project.folder, project.place)]


def of_slate(project: Unbelieved) -> Iterator[Problem]:
    """Rules about attributes of the item, sources and events that are declared."""
    if isinstance(project.item, Entity):
        sources = listed(project, "sources")
        names = [part_name(part) for part in sources]
        with_vectors = [part_name(part) for part in sources if hasattr(part, "dimensions")]
        listed_events = project.events if isinstance(project.events, Iterable) else ()
        events = [event for event in listed_events if isinstance(event, EventSchema)]
        keys = [entity for entity in (project.user, project.item) if isinstance(entity, Entity)]
        declared = Declared(project.item.attributes, names, with_vectors, events, keys, project.place)
        yield from slate_problems(project.slate, declared)


KINDS: Mapping[str, Any] = {"sources": SourceSpec, "rankers": RankerSpec}
EXAMPLES = {
    "sources": "Popular() or TwoTower(...)",
    "rankers": "LogisticRegression(), LambdaMART(), BoostedTrees(...), DeepCross() or Ensemble()",
}


def listed(project: Unbelieved, role: str) -> Sequence[Any]:
    """The project's sources or rankers; none where something else than a list stands there."""
    parts = getattr(project, role)
    return parts if isinstance(parts, list | tuple) else ()


def part_name(part: Any) -> str:
    """The name of a source or a ranker."""
    return str(getattr(part, "name", part))


def of_identifier(place: str, what: str, name: Any, reserved: Iterable[str]) -> Iterator[Problem]:
    """A name that becomes a column: an identifier, and not one that means something else already."""
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        yield Problem(
            place, f"{what} {name!r}" if str(name) not in what else what, "expected a name of letters, digits and _"
        )
    elif name in reserved:
        yield Problem(place, f"{what} has the reserved name {name!r}", f"reserved here: {', '.join(sorted(reserved))}")


def of_type(place: str, what: str, declared: Any) -> Iterator[Problem]:
    """A type that a column can hold."""
    if value_type(declared) is None:
        written = getattr(declared, "__name__", None) if isinstance(declared, type) else repr(declared)
        yield Problem(place, f"{what} has the type {written}", TYPES)
