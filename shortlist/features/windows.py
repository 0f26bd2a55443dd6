"""Windows and the types of values: what the words of a definition mean, in numbers. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from shortlist.events.schema import Entity, EventSchema, FieldType, value_type
from shortlist.features.definitions import Aggregate, duration_ms

MAX_FUTURE_MS = 300_000
"""How far ahead of `received` the door lets an event's own time be; rings keep room for it."""

MOST_TILES = 4_096
"""The most hops a window may have: beyond it a row of state outgrows any cache."""

DEFAULT_TILES = 12


@dataclass(frozen=True)
class Window:
    """Length and hop in ms; the length is a whole number of hops."""

    length: int
    hop: int

    @property
    def tiles(self) -> int:
        """Hops that the length covers."""
        return self.length // self.hop

    @property
    def ring(self) -> int:
        """Tiles kept: the window, its head, and as many as events may be dated ahead."""
        return self.tiles + 1 + -(-MAX_FUTURE_MS // self.hop)


def window_of(aggregate: Aggregate) -> Window | None:
    """The window of an aggregate, None where everything counts.

    Without a `hop` the window has 12 hops, or the next smaller number that makes a hop whole ms. Raises ValueError on
    an unreadable duration, a hop that does not divide the length, or more than `MOST_TILES` hops.
    """
    if aggregate.over is None:
        if aggregate.hop is not None:
            raise ValueError(f"hop={aggregate.hop!r} without over; a hop divides a window: over='7d', hop='1d'")
        return None
    length = duration_ms(aggregate.over)
    if aggregate.hop is None:
        tiles = next(n for n in range(DEFAULT_TILES, 0, -1) if length % n == 0)
        return Window(length, length // tiles)
    window = Window(length, duration_ms(aggregate.hop))
    if length % window.hop:
        raise ValueError(
            f"hop={aggregate.hop!r} does not divide over={aggregate.over!r}; a window is a whole number of hops"
        )
    if window.tiles > MOST_TILES:
        raise ValueError(
            f"over={aggregate.over!r} in hops of {aggregate.hop!r} is {window.tiles} tiles per key; "
            f"at most {MOST_TILES}: choose a longer hop"
        )
    return window


def type_of(event: EventSchema, name: str) -> str | None:
    """The type of a field, or of a key (`str`), as a name of `VALUE_TYPES`; None where the event has no such value."""
    if any(name == key.name for key in event.keys):
        return "str"
    return type_name(event.fields[name]) if name in event.fields else None


def type_name(declared: FieldType) -> str | None:
    """The name in `VALUE_TYPES` of a declared type; None where it is not supported."""
    known = value_type(declared)
    return known[0] if known else None


def attribute_of(part: str) -> tuple[str, str] | None:
    """A key such as "film.genres" as (entity, attribute); None for an entity's own name."""
    entity, dot, attribute = part.partition(".")
    return (entity, attribute) if dot else None


def entity_of(part: str) -> str:
    """The entity that a part of a key is about: "film" for "film" and for "film.genres"."""
    return part.partition(".")[0]


def attribute_types(entity: Entity) -> dict[str, str | None]:
    """The type name of each attribute, and of `available`."""
    return {**{name: type_name(declared) for name, declared in entity.attributes.items()}, "available": "bool"}
