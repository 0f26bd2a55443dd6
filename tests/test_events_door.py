"""The door: what fits is let in as it was given, what does not is refused with its reason, in every form alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist.events.columnar import admit_table
from shortlist.events.door import Admitted, Door
from shortlist.events.log import MemoryLog
from shortlist.events.schema import Entity, Event, EventSchema

USER = Entity("user", age=int)
FILM = Entity("film", title=str, genres=list[str])
WATCH = EventSchema("watch", (USER, FILM), {"seconds": float, "device": str | None, "tags": list[str] | None})
CLICK = EventSchema("click", (USER,), {"place": int, "ok": bool | None})
SCHEMAS = [USER.schema, FILM.schema, WATCH, CLICK]
NOW = 1_700_000_000_000
GOOD = {"kind": "watch", "at": NOW, "user": "u", "film": "f", "seconds": 1.5}

Form = Callable[[Door, list[dict[str, Any]]], Admitted]


def as_json_lines(door: Door, events: list[dict[str, Any]]) -> Admitted:
    return door.admit_json(b"\n".join(json.dumps(event).encode() for event in events), NOW)


def as_json_array(door: Door, events: list[dict[str, Any]]) -> Admitted:
    return door.admit_json(json.dumps(events).encode(), NOW)


def as_mappings(door: Door, events: list[dict[str, Any]]) -> Admitted:
    return door.admit(events, NOW)


def as_table(door: Door, events: list[dict[str, Any]]) -> Admitted:
    names = dict.fromkeys(name for event in events for name in event)
    return admit_table(door, pa.table({name: [event.get(name) for event in events] for name in names}), NOW)


FORMS: list[Form] = [as_json_lines, as_json_array, as_mappings, as_table]


def refusal(form: Form, event: dict[str, Any]) -> str:
    """The reason for which an event is refused, while the good ones around it are let in."""
    admitted = form(Door(SCHEMAS, max_bytes=1000), [GOOD, event, GOOD])
    assert len(admitted) == 2
    assert [found.line for found in admitted.refusals] == [2]
    return admitted.refusals[0].reason


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "wach"}, "unknown kind 'wach'; did you mean 'watch'?"),
        ({"kind": None}, "kind"),
        ({"film": None}, "key 'film' is missing"),
        ({"film": ""}, "key 'film' is empty"),
        ({"seconds": None}, "field 'seconds' is missing; watch requires a number"),
        ({"at": None}, "'at'"),
        ({"at": -1}, "absurd time: 'at' is -1, before 1970"),
        ({"at": NOW + 300_001}, "absurd time: 'at' is 1700000300001"),
        ({"age": 3}, "watch has no key or field 'age'"),
        ({"device": "x" * 2000}, "oversized: its texts take 20"),
        ({"tags": ["x" * 600, "y" * 600]}, "oversized"),
    ],
)
def test_the_reason_is_named_and_the_others_are_let_in(form: Form, change: dict[str, Any], reason: str) -> None:
    assert reason in refusal(form, {**GOOD, **change})


@pytest.mark.parametrize("form", FORMS[:3])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seconds": "long"}, "field 'seconds' must be a number, found 'long'"),
        ({"seconds": True}, "field 'seconds' must be a number, found True"),
        ({"user": 7}, "key 'user' must be a string, found 7"),
        ({"tags": ["a", 1]}, "field 'tags' must be a list of strings, found ['a', 1]"),
        ({"id": 7}, "'id' must be a string, found 7"),
        ({"at": "yesterday"}, "'at' must be a whole number of ms since 1970 UTC, found 'yesterday'"),
        ({"at": 1.5}, "'at' must be a whole number"),
        ({"kind": ["watch"]}, "unknown kind ['watch']"),
        ({"tagz": []}, "watch has no key or field 'tagz'; did you mean 'tags'?"),
    ],
)
def test_a_wrong_type_is_named_with_what_was_found(form: Form, change: dict[str, Any], reason: str) -> None:
    assert reason in refusal(form, {**GOOD, **change})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    for form in (as_mappings, as_table)[: 1 if isinstance(value, int) else 2]:
        assert "field 'seconds' must be finite" in refusal(form, {**GOOD, "seconds": value})


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1])
def test_whole_numbers_beyond_64_bits_are_refused(value: int) -> None:
    admitted = Door(SCHEMAS).admit([{"kind": "click", "at": 1, "user": "u", "place": value}], NOW)
    assert "must be a whole number of 64 bits" in admitted.refusals[0].reason


def test_text_that_is_no_unicode_is_refused() -> None:
    assert "no valid unicode" in refusal(as_mappings, {**GOOD, "user": "\ud800"})
    body = b'{"kind":"click","at":1,"user":"\xff","place":1}\n{"kind":"click","at":1,"user":"\xc3\xa9","place":1}'
    admitted = Door(SCHEMAS).admit_json(body, NOW)
    assert len(admitted) == 1
    assert admitted.refusals[0].line == 1


def test_every_reason_of_one_event_is_told_at_once() -> None:
    reason = refusal(as_mappings, {"kind": "watch", "at": -1, "user": "", "colour": 1})
    for part in ("absurd time", "key 'user' is empty", "key 'film' is missing", "no key or field 'colour'"):
        assert part in reason


@pytest.mark.parametrize(
    ("body", "line"),
    [(b"{", 1), (b"[1, {]", 1), (b"[1]", 1), (b"nonsense", 1), (b'"text"', 1), (b"\n\n{}\n", 3), (b"[" * 10_000, 1)],
)
def test_malformed_json_is_refused_by_line(body: bytes, line: int) -> None:
    admitted = Door(SCHEMAS).admit_json(body, NOW)
    assert not len(admitted)
    assert admitted.refusals[0].line == line


def test_nothing_at_all_is_nothing() -> None:
    for body in (b"", b"\n", b"[]"):
        admitted = Door(SCHEMAS).admit_json(body, NOW)
        assert (len(admitted), admitted.refusals) == (0, [])


def test_one_object_may_run_over_several_lines() -> None:
    assert len(Door(SCHEMAS).admit_json(json.dumps(GOOD, indent=2).encode(), NOW)) == 1


def test_numpy_values_pandas_and_polars_are_let_in() -> None:
    log = MemoryLog(SCHEMAS)
    event = {"kind": "click", "at": np.int64(1), "user": "u", "place": np.int32(3), "ok": np.bool_(True)}
    assert log.append([event]).accepted == 1
    columns = {"kind": ["click"], "at": [1], "user": ["u"], "place": [3], "ok": [True]}
    assert log.append(pl.DataFrame(columns)).accepted == 1
    assert log.append(pd.DataFrame(columns)).accepted == 1
    (batch,) = log.scan()
    assert batch.numbers("click.place").tolist() == [3.0, 3.0, 3.0]
    assert batch.numbers("click.ok").tolist() == [1.0, 1.0, 1.0]


def test_types_of_columns_are_checked_like_those_of_values() -> None:
    door = Door(SCHEMAS)
    table = pa.table(
        {"kind": ["click"] * 3, "at": [1] * 3, "user": [1, 2, 3], "place": pa.array([1, 2**63, 3], pa.uint64())}
    )
    admitted = admit_table(door, table, NOW)
    assert [found.line for found in admitted.refusals] == [1, 2, 3]
    assert "key 'user' must be a string, found 1" in admitted.refusals[0].reason
    assert "whole number of 64 bits" in admitted.refusals[1].reason


def test_a_table_takes_timestamps_and_dictionaries() -> None:
    moments = pa.array([1_500_000, 1_999_999], pa.timestamp("us", "UTC"))
    kinds = pa.array(["click", "click"]).dictionary_encode()
    table = pa.table({"kind": kinds, "at": moments, "user": kinds, "place": pa.array([1, 2], pa.int8())})
    admitted = admit_table(Door(SCHEMAS), table, NOW)
    assert admitted.refusals == []
    assert admitted.table is not None
    assert admitted.table.column("at").to_pylist() == [1500, 1999]


def test_declarations_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="declared twice"):
        Door([WATCH, EventSchema("watch", (USER,))])
    with pytest.raises(ValueError, match="'at' twice, or it is reserved"):
        Door([EventSchema("watch", (USER,), {"at": int})])
    with pytest.raises(ValueError, match="no column can hold"):
        Door([EventSchema("watch", (USER,), {"when": dict})])


TEXT = st.text(st.characters(codec="utf-8"), max_size=20) | st.text(min_size=1000, max_size=1010, alphabet='aé𝄞\0\n"')
NAME = TEXT.filter(bool)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
TIME = st.integers(0, NOW)
WATCHES = st.builds(
    lambda at, user, film, rest: Event("watch", at, {"user": user, "film": film}, rest),
    TIME, NAME, NAME,
    st.fixed_dictionaries({"seconds": FINITE}, optional={"device": TEXT, "tags": st.lists(TEXT, max_size=3)}),
)  # fmt: skip
CLICKS = st.builds(
    lambda at, user, rest: Event("click", at, {"user": user}, rest),
    TIME, NAME, st.fixed_dictionaries({"place": st.integers(-(2**63), 2**63 - 1)}, optional={"ok": st.booleans()}),
)  # fmt: skip
FILMS = st.builds(
    lambda at, film, rest: Event("film", at, {"film": film}, rest),
    TIME, NAME, st.fixed_dictionaries({}, optional={"title": TEXT, "genres": st.lists(TEXT, max_size=3)}),
)  # fmt: skip
EVENTS = st.lists(WATCHES | CLICKS | FILMS, max_size=12)


def scanned(log: MemoryLog) -> list[dict[str, Any]]:
    """The events of a log in the flat form in which they were given."""
    found: list[dict[str, Any]] = []
    for batch in log.scan():
        for row in batch.table.to_pylist():
            values = {name.split(".")[-1]: value for name, value in row.items() if value is not None}
            found.append({name: value for name, value in values.items() if name not in ("offset", "received")})
    return found


def tabled(events: list[Mapping[str, Any]]) -> pa.Table:
    types = {"at": pa.int64(), "seconds": pa.float64(), "place": pa.int64(), "ok": pa.bool_()}
    names = dict.fromkeys(name for event in events for name in event)
    lists = {"tags", "genres"}
    columns = {
        name: pa.array(
            [event.get(name) for event in events],
            pa.list_(pa.string()) if name in lists else types.get(name, pa.string()),
        )
        for name in names
    }
    return pa.table(columns)


@settings(deadline=None)
@given(EVENTS)
def test_what_is_admitted_is_scanned_back_equal(events: list[Event]) -> None:
    flat = [event.to_dict() for event in events]
    forms: list[Any] = [events, flat, json.dumps(flat).encode(), tabled(list(flat))]
    for form in forms:
        log = MemoryLog(SCHEMAS)
        receipt = log.append(form, NOW)
        assert (receipt.accepted, receipt.refusals) == (len(events), [])
        assert scanned(log) == flat
