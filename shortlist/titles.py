"""What items are called, for people who read a slate."""

from __future__ import annotations

from shortlist.events.log import EventLog
from shortlist.events.schema import Entity, value_type


def title_attribute(item: Entity) -> str | None:
    """The attribute that names an item: `title` or `name`, else its first text; None where it has none."""
    texts = [name for name, declared in item.attributes.items() if (value_type(declared) or ("",))[0] == "str"]
    return next((name for name in ("title", "name") if name in texts), texts[0] if texts else None)


def titles(log: EventLog, item: Entity) -> dict[str, str]:
    """The latest title of every item that has one."""
    attribute = title_attribute(item)
    found: dict[str, str] = {}
    if attribute is None:
        return found
    column = item.schema.column(attribute)
    for batch in log.scan(columns=[item.name, column]):
        told = batch.take(batch.of_kind(item.name))
        pairs = zip(told.strings(item.name).to_pylist(), told.strings(column).to_pylist(), strict=True)
        found.update((name, title) for name, title in pairs if title is not None)
    return found
