"""Declarations of what can happen: entities, and the kinds of events that name them.

Knows no log and no file format. Nothing here raises on a user's mistake: `Project.problems()` reports all of
them at once, each with the place that these declarations remember.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from shortlist.framing.problems import declared_at

FieldType = Any  # a Python type as the user writes it: str, int, float, bool, list[str], or one of them | None

RESERVED = frozenset({"id", "at", "kind", "received", "offset"})
"""Names that every event has; no key and no field may take them."""

VALUE_TYPES: Mapping[str, object] = {"str": str, "int": int, "float": float, "bool": bool, "list[str]": list[str]}


def value_type(declared: FieldType) -> tuple[str, bool] | None:
    """`(name in VALUE_TYPES, optional)` of a declared type, or None where the type is not supported."""
    optional = False
    origin: object = get_origin(declared)
    if origin in (Union, UnionType):
        parts = [part for part in get_args(declared) if part is not NoneType]
        if len(parts) != 1:
            return None
        optional, declared = True, parts[0]
    for name, known in VALUE_TYPES.items():
        if declared == known:
            return name, optional
    return None


class Entity:
    """Something that events are about (a user, a film), with typed attributes.

    The attributes of one entity arrive as events too: kind = the entity's name, its own id as the only key, any
    subset of the attributes as fields (what is absent stays as it was), and `available` to take it in or out of
    the catalogue.
    """

    def __init__(self, name: str, /, **attributes: FieldType) -> None:
        self.name = name
        self.attributes = attributes
        self.place = declared_at()

    def __repr__(self) -> str:
        return f"Entity({self.name!r})"

    @property
    def schema(self) -> EventSchema:
        """The schema of the events that set this entity's attributes."""
        fields = {name: declared | None for name, declared in self.attributes.items()}
        return EventSchema(self.name, (self,), {**fields, "available": bool | None}, self.place)


@dataclass(frozen=True, eq=False)
class EventSchema:
    """What an event of one kind holds: the entities it names (its keys, all required) and its typed fields."""

    kind: str
    keys: tuple[Entity, ...]
    fields: Mapping[str, FieldType] = field(default_factory=dict)
    place: str = ""

    def column(self, name: str) -> str:
        """The name of the log's column that holds field `name` of this kind, or the key `name`."""
        return name if any(name == key.name for key in self.keys) else f"{self.kind}.{name}"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `at` is event time in ms since 1970 UTC; the log adds `offset` and `received`."""

    kind: str
    at: int
    keys: Mapping[str, str]
    fields: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The flat form that JSON and the HTTP API use."""
        flat = {"kind": self.kind, "at": self.at, **self.keys, **self.fields}
        return {"id": self.id, **flat} if self.id else flat
