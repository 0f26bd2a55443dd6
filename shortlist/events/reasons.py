"""Why an event was refused, in words that say what was found and what is expected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shortlist.events.schema import EventSchema, value_type
from shortlist.framing.problems import nearest

EXPECTED: Mapping[str, str] = {
    "str": "a string",
    "int": "a whole number of 64 bits",
    "float": "a number",
    "bool": "true or false",
    "list[str]": "a list of strings",
}


@dataclass(frozen=True)
class Refusal:
    """An event that was not let in: its line (or place in what was given), from 1, and the reason."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


def shown(value: Any) -> str:
    """A value as an error message shows it: shortened, so that a message stays one line."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def text_bytes(value: Any) -> int:
    """The UTF-8 bytes of every text in an event, names of fields not counted. Raises UnicodeEncodeError."""
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, Mapping):
        return sum(text_bytes(part) for part in value.values())
    if isinstance(value, list | tuple):
        return sum(text_bytes(part) for part in value)
    return 0


def reason(event: Any, schemas: Mapping[str, EventSchema], latest: int, max_bytes: int) -> str:
    """Why the event is refused, every reason at once; "" where it fits. `latest` bounds its time, ms UTC."""
    if isinstance(event, ValueError):
        return str(event)
    if not isinstance(event, Mapping):
        return f"an event is an object with names and values, found {shown(event)}"
    kind = event.get("kind")
    if "kind" not in event:
        return f"'kind' is missing; {nearest('', schemas)}"
    if not isinstance(kind, str) or kind not in schemas:
        return f"unknown kind {shown(kind)}; {nearest(str(kind), schemas)}"
    return "; ".join([*envelope_reasons(event, latest, max_bytes), *value_reasons(event, schemas[kind])])


def envelope_reasons(event: Mapping[str, Any], latest: int, max_bytes: int) -> Iterable[str]:
    """What is wrong with the id, the time and the size."""
    identifier = event.get("id")
    if identifier is not None and not isinstance(identifier, str):
        yield f"'id' must be a string, found {shown(identifier)}"
    if "at" not in event:
        yield "'at' is missing; give the event's time in ms since 1970 UTC"
    else:
        yield from time_reasons(event["at"], latest)
    try:
        size = text_bytes(event)
    except UnicodeEncodeError as error:
        yield f"a text is no valid unicode: {error.reason} in {shown(error.object)}"
        return
    if size > max_bytes:
        yield f"oversized: its texts take {size} bytes, at most {max_bytes} are taken"


def time_reasons(at: Any, latest: int) -> Iterable[str]:
    """What is wrong with an event's time."""
    if not isinstance(at, int) or isinstance(at, bool):
        yield f"'at' must be a whole number of ms since 1970 UTC, found {shown(at)}"
    elif at < 0:
        yield f"absurd time: 'at' is {at}, before 1970"
    elif at > latest:
        yield f"absurd time: 'at' is {at}, later than {latest}, the latest that is believed; is it in ms?"


def value_reasons(event: Mapping[str, Any], schema: EventSchema) -> Iterable[str]:
    """What is wrong with the keys and fields."""
    keys = {key.name for key in schema.keys}
    known = {"id", "at", "kind", *keys, *schema.fields}
    for name in event:
        if name not in known:
            yield f"{schema.kind} has no key or field {shown(name)}; {nearest(str(name), known)}"
    for key in schema.keys:
        if event.get(key.name) is None:
            yield f"key {key.name!r} is missing; every {schema.kind} names its {key.name}"
        elif not isinstance(event[key.name], str):
            yield f"key {key.name!r} must be a string, found {shown(event[key.name])}"
        elif not event[key.name]:
            yield f"key {key.name!r} is empty"
    for name, declared in schema.fields.items():
        kind, optional = value_type(declared) or ("str", True)
        if event.get(name) is None:
            if not optional:
                yield f"field {name!r} is missing; {schema.kind} requires {EXPECTED[kind]}"
            continue
        yield from type_reasons(name, event[name], kind)


def type_reasons(name: str, value: Any, kind: str) -> Iterable[str]:
    """What is wrong with one value."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "str": isinstance(value, str),
        "int": isinstance(value, int) and is_number and -(2**63) <= value < 2**63,
        "float": is_number,
        "bool": isinstance(value, bool),
        "list[str]": isinstance(value, list | tuple) and all(isinstance(part, str) for part in value),
    }
    if not fits[kind]:
        yield f"field {name!r} must be {EXPECTED[kind]}, found {shown(value)}"
    elif kind == "float" and not is_finite(value):
        yield f"field {name!r} must be finite, found {shown(value)}"


def is_finite(value: float) -> bool:
    """Whether a number, of any size, is a finite float64."""
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
