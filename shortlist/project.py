"""The one object that a user declares: what the system knows, wants and is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shortlist.events.schema import Entity, EventSchema, FieldType
from shortlist.features.definitions import Feature
from shortlist.framing.objective import Constraints, Objective
from shortlist.framing.problems import declared_at


@dataclass(frozen=True)
class Project:
    """A ranking system, declared. `user` and `item` name who asks and what is ranked.

    `context` are the typed values that a request may carry (device, query amount); request features name them.
    """

    name: str
    user: Entity
    item: Entity
    events: Sequence[EventSchema]
    labels: Any
    features: Sequence[Feature] = ()
    objective: Objective = field(default_factory=lambda: Objective("not stated"))
    constraints: Constraints = field(default_factory=Constraints)
    sources: Sequence[Any] = ()
    rankers: Sequence[Any] = ()
    entities: Sequence[Entity] = ()
    context: Mapping[str, FieldType] = field(default_factory=dict)
    place: str = field(default_factory=declared_at, compare=False)
