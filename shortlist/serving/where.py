"""What a request's `where` asks for, checked against the attributes that the project declares for items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shortlist.events.schema import Entity, value_type
from shortlist.framing.problems import nearest
from shortlist.serving.messages import RefusedError

EXPECTED: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "str": ("strings", (str,)),
    "list[str]": ("strings", (str,)),
    "int": ("numbers", (int, float)),
    "float": ("numbers", (int, float)),
    "bool": ("true or false", (bool,)),
}


def checked_where(item: Entity, where: Mapping[str, Sequence[Any]]) -> Mapping[str, tuple[Any, ...]]:
    """The values that are asked for, each once. Raises RefusedError, naming what was meant, for what items lack."""
    for name, values in where.items():
        known = value_type(item.attributes[name]) if name in item.attributes else None
        if known is None:
            hint = nearest(name, item.attributes)
            raise refused(f"{item.name!r} has no attribute {name!r}; {hint}", "$.where")
        words, types = EXPECTED[known[0]]
        wrong = [
            value for value in values if not isinstance(value, types) or isinstance(value, bool) != (bool in types)
        ]
        if wrong:
            raise refused(f"the values of {name!r} are {words}, found {wrong[0]!r}", f"$.where.{name}")
    return {name: tuple(dict.fromkeys(values)) for name, values in where.items()}


def refused(message: str, place: str) -> RefusedError:
    """The refusal of what cannot be asked for."""
    return RefusedError(422, "invalid", f"{message} - at `{place}`")
