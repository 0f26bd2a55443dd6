"""What can be wrong with a declared source that learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shortlist.events.schema import Entity, EventSchema, value_type
from shortlist.features.definitions import Aggregate
from shortlist.framing.problems import Problem, describe, nearest
from shortlist.framing.values import is_count
from shortlist.retrieval.specs import (
    MOST_CANDIDATES,
    FactorizationMachine,
    HistorySpec,
    MatrixFactorisation,
    SourceSpec,
    TwoTower,
)

Unbelieved = Any
"""A declaration as the user wrote it: its annotations are hopes."""
Learning = TwoTower | MatrixFactorisation | FactorizationMachine | HistorySpec
"""The sources that learn."""
PUBLISHED = ("config.json", "model.safetensors", "tokenizer.json")
"""What a sentence encoder is read from."""


def quota_problems(source: SourceSpec, place: str) -> Iterator[Problem]:
    """A quota that the merged list has room for; one that is no count is found with the other settings."""
    quota: Unbelieved = source.quota
    if is_count(quota, MOST_CANDIDATES + 1):
        what = f"{source.name}'s quota is {quota}, and all sources together have {MOST_CANDIDATES} places"
        expected = (
            f"expected at most {MOST_CANDIDATES}; more would be found and not ranked, and quotas are shares of it"
        )
        yield Problem(place, what, expected)


def source_problems(
    source: Learning, user: Unbelieved, item: Unbelieved, context: Any, place: str
) -> Iterator[Problem]:
    """A history of the user's items, and attributes and context values that are declared."""
    known = isinstance(user, Entity) and isinstance(item, Entity)
    if known and not isinstance(source, FactorizationMachine):
        yield from _of_history(source, user, item, place)
    if isinstance(source, TwoTower):
        yield from _of_text_encoder(source, place)
    if known and isinstance(source, TwoTower | FactorizationMachine):
        yield from _of_names(source, user, item, context, place)
        yield from _of_one_name_for_two(source, user, context, place)
    if known and isinstance(source, FactorizationMachine):
        yield from _of_amounts(source, user, item, place)


def _of_history(
    source: TwoTower | MatrixFactorisation | HistorySpec, user: Entity, item: Entity, place: str
) -> Iterator[Problem]:
    """A source's history is a list of the user's items."""
    history: Unbelieved = source.history
    wanted = f"expected the user's last items: EVENT.by({user.name}).last({item.name!r}, 50)"
    if not isinstance(history, Aggregate):
        yield Problem(place, f"{source.name}'s history is {describe(history)}", wanted)
    elif (history.operation, history.by, history.value) != ("last_n", (user.name,), item.name):
        yield Problem(history.place, f"{source.name}'s history is {history.name}", wanted)


def _of_names(
    source: TwoTower | FactorizationMachine, user: Entity, item: Entity, context: Any, place: str
) -> Iterator[Problem]:
    """What the source looks at is declared."""
    texts, asked = (source.item_text, source.context) if isinstance(source, TwoTower) else ((), ())
    for what, names, known in (
        (f"attribute of {user.name}", source.user_attributes, user.attributes),
        (f"attribute of {item.name}", source.item_attributes, item.attributes),
        (f"text of {item.name}", texts, _texts_of(item)),
        ("context value", asked, context),
    ):
        if isinstance(names, str):
            yield Problem(place, f"{source.name} names {what} as {names!r}", f"expected a list: ({names!r},)")
            continue
        for name in names:
            if name not in known:
                yield Problem(place, f"{source.name} names the {what} {name!r}", nearest(str(name), known))


def _of_one_name_for_two(
    source: TwoTower | FactorizationMachine, user: Entity, context: Any, place: str
) -> Iterator[Problem]:
    """What a source looks at is an attribute or a context value: of two with one name, serving reads the attribute."""
    if not isinstance(context, Mapping):  # said elsewhere
        return
    asked = source.context if isinstance(source, TwoTower) else ()
    for name in dict.fromkeys((*source.user_attributes, *asked)):
        if name in user.attributes and name in context:
            what = f"{source.name} names {name!r}, which is an attribute of {user.name} and a context value too"
            yield Problem(place, what, f"rename one of the two, such as the context value to 'request_{name}'")


def _of_amounts(machine: FactorizationMachine, user: Entity, item: Entity, place: str) -> Iterator[Problem]:
    """An amount is a number that an action of a user with an item has."""
    amounts: Unbelieved = machine.amounts
    if not isinstance(amounts, Mapping):
        yield Problem(place, f"{machine.name}'s amounts are {describe(amounts)}", 'expected {EVENT: "field"}')
        return
    for event, name in amounts.items():
        if not isinstance(event, EventSchema) or not {user, item} <= set(event.keys):
            wanted = f"expected an event type with {user.name} and {item.name}"
            yield Problem(place, f"{machine.name} has an amount of {describe(event)}", wanted)
            continue
        numbers = [each for each, kind in event.fields.items() if (value_type(kind) or ("",))[0] in ("int", "float")]
        if name not in numbers:
            what = f"{machine.name} names the amount {name!r} of {event.kind}"
            yield Problem(place, what, f"no number among its fields has that name; {nearest(str(name), numbers)}")


def _of_text_encoder(towers: TwoTower, place: str) -> Iterator[Problem]:
    """A text encoder is a folder, and reads something."""
    encoder: Unbelieved = towers.text_encoder
    if encoder is None:
        return
    what = f"{towers.name} has the text encoder {encoder!r}"
    if not isinstance(encoder, str):
        yield Problem(place, what, "expected the path of a folder")
    elif not towers.item_text:
        yield Problem(place, f"{what} and nothing for it to read", "name attributes in item_text")


def encoder_problems(towers: TwoTower, folder: Path, place: str) -> Iterator[Problem]:
    """A text encoder is there, whole; `folder` is where relative paths begin."""
    found = towers.beside(folder).text_encoder
    if found is None:
        return
    what = f"{towers.name} has the text encoder {towers.text_encoder!r}"
    lacking = [name for name in PUBLISHED if not (Path(found) / name).is_file()]
    if not Path(found).is_dir():
        expected = "expected a folder; a relative path begins at the project file's"
        yield Problem(place, f"{what}, and there is no folder {found}", expected)
    elif lacking:
        expected = f"expected {', '.join(PUBLISHED)}, as sentence-transformers publishes them"
        yield Problem(place, f"{what}, and {found} has no {' and no '.join(lacking)}", expected)


def _texts_of(entity: Entity) -> list[str]:
    """The attributes that have words."""
    types = {name: value_type(declared) for name, declared in entity.attributes.items()}
    return [name for name, known in types.items() if known and known[0] in ("str", "list[str]")]
