"""The structs that depend on the project: the context of a request, and one event of each kind."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from shortlist.events.door import Finite, Integer
from shortlist.events.schema import EventSchema, value_type
from shortlist.project import Project
from shortlist.serving.messages import Id

PYTHON: Mapping[str, Any] = {"str": str, "int": Integer, "float": Finite, "bool": bool, "list[str]": list[str]}


def context_type(project: Project) -> type[msgspec.Struct]:
    """The struct of a request's context: every declared value, all optional, no other."""
    members = [(name, python_type(declared) | None, None) for name, declared in project.context.items()]
    return msgspec.defstruct(
        "Context", members, forbid_unknown_fields=True, omit_defaults=True, namespace={"__doc__": CONTEXT}
    )


CONTEXT = "What is known of this request; request features are computed from it. What is absent is missing."


def event_types(project: Project) -> Any:
    """The union of one struct per kind of event that the project's log takes, for the description of `/events`."""
    return reduce(or_, (event_type(schema) for schema in project.schemas))


def event_type(schema: EventSchema) -> type[msgspec.Struct]:
    """The struct of one kind of event in its flat JSON form."""
    required: list[Any] = [("at", Annotated[int, Meta(description="When it happened, ms since 1970 UTC.")])]
    optional: list[Any] = [("id", Annotated[str | None, Meta(description="Given twice, it counts once.")], None)]
    required += [(key.name, Id) for key in schema.keys]
    for name, declared in schema.fields.items():
        known = value_type(declared)
        is_optional = known is not None and known[1]
        (optional if is_optional else required).append(
            (name, python_type(declared) | None, None) if is_optional else (name, python_type(declared))
        )
    names = [member[0] for member in (*required, *optional)]
    safe = [(f"v{number}", *member[1:]) for number, member in enumerate((*required, *optional))]
    return msgspec.defstruct(
        f"Event_{schema.kind}",
        safe,
        rename={f"v{number}": name for number, name in enumerate(names)},
        tag=schema.kind,
        tag_field="kind",
        forbid_unknown_fields=True,
        omit_defaults=True,
        namespace={"__doc__": f"An event of the kind {schema.kind!r}."},
    )


def python_type(declared: Any) -> Any:
    """The Python type of a declared field, without its None."""
    known = value_type(declared)
    return PYTHON[known[0]] if known else str
