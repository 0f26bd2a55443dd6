"""The one object that a user declares: what the system knows, wants and is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortlist.events.labels import Labels, ObservedPositives
from shortlist.events.schema import Entity, EventSchema, FieldType
from shortlist.features.definitions import Feature, Impression
from shortlist.framing.durations import duration_ms
from shortlist.framing.objective import Constraints, Objective
from shortlist.framing.problems import Problem, ProjectError, declared_at
from shortlist.slate.specs import Seen

if TYPE_CHECKING:
    from shortlist.features.program import FeatureSet


@dataclass(frozen=True)
class Project:
    """A ranking system, declared. `user` and `item` name who asks and what is ranked.

    `context` are the typed values that a request may carry (device, query amount); request features name them.
    `sources` propose items and `rankers` order them; the ranker that orders a slice of the past best is the one that
    serves. Popularity and logistic regression are measured beside them in any case. `slate` are the rules by which the
    service makes slates of what is ranked: diversity, caps, fairness, pins, boosts, exclusions, exploration, and what
    counts as seen.
    """

    name: str
    user: Entity
    item: Entity
    events: Sequence[EventSchema]
    labels: Labels | ObservedPositives
    features: Sequence[Feature] = ()
    objective: Objective = field(default_factory=lambda: Objective("not stated"))
    constraints: Constraints = field(default_factory=Constraints)
    sources: Sequence[Any] = ()
    rankers: Sequence[Any] = ()
    slate: Sequence[Any] = ()
    entities: Sequence[Entity] = ()
    context: Mapping[str, FieldType] = field(default_factory=dict)
    place: str = field(default_factory=declared_at, compare=False)

    @property
    def all_entities(self) -> tuple[Entity, ...]:
        """The user, the item and the others, each once."""
        return tuple(dict.fromkeys((self.user, self.item, *self.entities)))

    @property
    def folder(self) -> Path:
        """The folder of the file that declares the project: where relative paths in it begin."""
        return Path(self.place.rpartition(":")[0]).resolve().parent

    @property
    def impression(self) -> EventSchema:
        """The kind under which slates are logged: the declared `Impression`, else one that needs no declaration."""
        declared = [event for event in self.events if event.kind == "impression"]
        return declared[0] if declared else Impression(self.user, self.item)

    @property
    def schemas(self) -> tuple[EventSchema, ...]:
        """Every kind that the log takes: the entities' attributes, the declared events, and impressions."""
        events = tuple(self.events)
        impressions = () if any(event.kind == "impression" for event in events) else (self.impression,)
        return (*(entity.schema for entity in self.all_entities), *events, *impressions)

    @property
    def seen(self) -> dict[EventSchema, int | None]:
        """The kinds of events after which a user is not shown the item again, and for how long (ms; None: for good).

        Those of the slate's `Seen` rules, the longest time where several name one. Without such a rule, for good: what
        labels are made of, and what users do with items that the objective weighs below zero, as to hide one.
        """
        rules = [rule for rule in self.slate if isinstance(rule, Seen)]
        if not rules:
            return dict.fromkeys([*self.labels.gains, *self._rejections()])
        found: dict[EventSchema, int | None] = {}
        for rule in rules:
            limit = None if rule.within is None else duration_ms(rule.within)
            for event in rule.events:
                before = found.get(event, 0)
                found[event] = None if limit is None or before is None else max(limit, before)
        return found

    def _rejections(self) -> list[EventSchema]:
        """What the objective weighs below zero; to be shown (which may be given a cost) is nothing that a user does."""
        return [
            event
            for event in self.events
            if self.objective.proxies.get(event.kind, 0.0) < 0
            and event is not self.impression
            and {self.user, self.item} <= set(event.keys)
        ]

    def feature_set(self) -> FeatureSet:
        """Every feature of the system, compiled: the declared ones, then those that retrieval needs.

        Training, serving and the audit all use this one, so that they agree on columns and fingerprint. Raises
        ProjectError with everything that is wrong with the declarations.
        """
        from shortlist.features.program import FeatureSet
        from shortlist.retrieval.specs import retrieval_features

        needed = retrieval_features(self.sources, self.labels, self.seen, self.user, self.item, self.features)
        return FeatureSet((*self.features, *needed), self.all_entities, self.context)

    def problems(self) -> list[Problem]:
        """Every mistake of the declarations at once, in the order of the file. Empty when all is well."""
        from shortlist.validation import problems

        return problems(self)


def load_project(path: str | Path) -> Project:
    """The one project that the Python file `path` (or `path/project.py`) declares, without a mistake.

    The file is executed: it is the user's own code. Raises ProjectError with everything that is wrong: no such file,
    code that fails, no project in it or several, and all that `Project.problems()` finds.
    """
    from shortlist.loading import project_in

    project = project_in(Path(path))
    problems = project.problems()
    if problems:
        raise ProjectError(problems)
    return project
