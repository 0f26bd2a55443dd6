"""Labels: what was shown and acted on, against an oracle that looks at every pair."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist.events.labelling import LabelledRows, join_labels
from shortlist.events.labels import Labels, ObservedPositives
from shortlist.events.log import MemoryLog
from shortlist.events.report import data_report
from shortlist.events.schema import Entity, EventSchema

USER = Entity("user")
FILM = Entity("film", title=str)
SHOWN = EventSchema("impression", (USER, FILM), {"request": str, "position": int})
CLICK = EventSchema("click", (USER, FILM))
WATCH = EventSchema("watch", (USER, FILM), {"seconds": float, "device": str | None})
SCHEMAS = [USER.schema, FILM.schema, SHOWN, CLICK, WATCH]
LABELS = Labels(SHOWN, {CLICK: 1.0, WATCH: 3.0}, within="10ms")


def shown(at: int, user: str = "u", film: str = "f", request: str = "r") -> dict[str, Any]:
    return {"kind": "impression", "at": at, "user": user, "film": film, "request": request, "position": 1}


def click(at: int, user: str = "u", film: str = "f") -> dict[str, Any]:
    return {"kind": "click", "at": at, "user": user, "film": film}


def watch(at: int, user: str = "u", film: str = "f", seconds: float = 1.0) -> dict[str, Any]:
    return {"kind": "watch", "at": at, "user": user, "film": film, "seconds": seconds}


def logged(*events: dict[str, Any], until: int = 1000) -> MemoryLog:
    log = MemoryLog(SCHEMAS)
    for event in events:
        log.append([event], received=event["at"])
    log.append([{"kind": "user", "at": until, "user": "clock"}], received=until)
    return log


def joined(*events: dict[str, Any], until: int = 1000) -> LabelledRows:
    return join_labels(logged(*events, until=until), LABELS, "user", "film")


def test_acted_on_is_positive_and_the_rest_of_the_slate_negative() -> None:
    rows = joined(shown(0, film="a"), shown(0, film="b"), shown(0, film="c"), click(3, film="b"), watch(5, film="b"))
    assert rows.item.to_pylist() == ["a", "b", "c"]
    assert rows.gain.tolist() == [0, 3, 0]
    assert rows.request.to_pylist() == ["r", "r", "r"]
    assert (rows.position.tolist(), rows.now.tolist(), rows.left_out) == ([0, 1, 2], [0, 0, 0], 0)
    happened = {kind: rows.actions[kind].tolist() for kind in rows.actions}
    assert happened == {"click": [False, True, False], "watch": [False, True, False]}


def test_the_place_in_the_slate_is_known_where_it_was_logged() -> None:
    second = {**shown(0, film="b"), "position": 2}
    assert joined(shown(0, film="a"), second, click(1, film="b")).rank.tolist() == [1, 2]
    bare = EventSchema("impression", (USER, FILM), {"request": str})
    log = MemoryLog([USER.schema, FILM.schema, bare, CLICK])
    log.append([{"kind": "impression", "at": 0, "user": "u", "film": "f", "request": "r"}], received=0)
    log.append([click(20)], received=20)
    rows = join_labels(log, Labels(bare, {CLICK: 1.0}, within="10ms"), "user", "film")
    assert np.isnan(rows.rank).tolist() == [True]


def test_what_is_worth_nothing_is_noted_and_changes_no_gain() -> None:
    log = logged(shown(0, film="a"), shown(0, film="b"), watch(1, film="a"), click(2, film="a"), watch(3, film="b"))
    clicks = Labels(SHOWN, {CLICK: 1.0}, within="10ms")
    rows = join_labels(log, clicks, "user", "film", also=[WATCH, CLICK])
    assert rows.gain.tolist() == [1, 0] == join_labels(log, clicks, "user", "film").gain.tolist()
    assert {kind: rows.actions[kind].tolist() for kind in rows.actions} == {
        "click": [True, False], "watch": [True, True],
    }  # fmt: skip


def test_how_much_of_an_action_there_was_is_known_where_it_is_asked_for() -> None:
    log = logged(
        *(shown(0, film=film) for film in "abcd"),
        *(watch(3, film="b", seconds=2.0), watch(4, film="b", seconds=7.0), watch(5, film="b", seconds=5.0)),
        *(click(3, film="c"), watch(11, film="d", seconds=9.0)),  # the last one is too late
    )
    rows = join_labels(log, Labels(SHOWN, {CLICK: 1.0}, within="10ms"), "user", "film", amounts={WATCH: "seconds"})
    assert rows.amounts["watch"] == pytest.approx([math.nan, 7.0, math.nan, math.nan], nan_ok=True)
    assert rows.gain.tolist() == [0, 0, 1, 0]  # what is only measured is worth nothing
    assert rows.rank.tolist() == [1, 1, 1, 1]
    assert not joined(shown(0)).amounts


def test_the_window_is_closed_at_its_end() -> None:
    assert joined(shown(0), click(10)).gain.tolist() == [1]
    assert joined(shown(0), click(11)).gain.tolist() == [0]
    assert joined(click(0), shown(1)).gain.tolist() == [0]


def test_an_action_belongs_to_the_latest_impression_before_it() -> None:
    assert joined(shown(0), shown(4), click(4)).gain.tolist() == [0, 1]
    assert joined(shown(0), shown(4), click(3)).gain.tolist() == [1, 0]
    assert joined(click(5), shown(4)).gain.tolist() == [1], "the action may come in first"


def test_other_users_and_items_do_not_matter() -> None:
    assert joined(shown(0, "ab", "c"), click(1, "a", "bc"), click(1, "ab", "d"), click(1, "x", "c")).gain.tolist() == [
        0
    ]


def test_impressions_whose_window_is_open_are_left_out_and_counted() -> None:
    rows = joined(shown(0), shown(5), click(6), until=14)
    assert (rows.position.tolist(), rows.gain.tolist(), rows.left_out) == ([0], [0], 1)
    assert len(joined(shown(0), shown(5), until=15)) == 2


def test_a_past_position_never_knows_what_came_later() -> None:
    log = logged(shown(0), shown(2, film="g"), watch(20, film="x"), click(8), until=50)
    assert join_labels(log, LABELS, "user", "film").gain.tolist() == [1, 0]
    assert join_labels(log, LABELS, "user", "film", stop=3).gain.tolist() == [0, 0]
    assert join_labels(log, LABELS, "user", "film", stop=2).left_out == 2
    assert join_labels(log, LABELS, "user", "film", start=1).position.tolist() == [1]


def test_nothing_logged_gives_no_rows() -> None:
    for labels in (LABELS, ObservedPositives({CLICK: 1.0})):
        rows = join_labels(MemoryLog(SCHEMAS), labels, "user", "film")
        assert (len(rows), len(rows.user), rows.left_out) == (0, 0, 0)


EVENT = st.builds(
    lambda make, at, user, film: make(at, user, film),
    st.sampled_from([shown, click, watch]),
    st.integers(0, 40),
    st.sampled_from("uv"),
    st.sampled_from("fg"),
)


@settings(deadline=None)
@given(st.lists(EVENT, max_size=30), st.integers(0, 60))
def test_the_join_agrees_with_a_look_at_every_pair(events: list[dict[str, Any]], until: int) -> None:
    log = logged(*events, until=until)
    rows = join_labels(log, LABELS, "user", "film")
    end = max([until, *(event["at"] for event in events)])
    expected = []
    for offset, event in enumerate(events):
        if event["kind"] != "impression" or event["at"] + 10 > end:
            continue
        gain, kinds = 0.0, set()
        for action in events:
            if action["kind"] != "impression":
                earlier = [
                    (other["at"], place)
                    for place, other in enumerate(events)
                    if other["kind"] == "impression"
                    and (other["user"], other["film"]) == (action["user"], action["film"])
                    and other["at"] <= action["at"] <= other["at"] + 10
                ]
                if earlier and max(earlier)[1] == offset:
                    gain = max(gain, {"click": 1.0, "watch": 3.0}[action["kind"]])
                    kinds.add(action["kind"])
        expected.append((offset, gain, "click" in kinds, "watch" in kinds))
    found = rows.position, rows.gain, rows.actions["click"], rows.actions["watch"]
    assert list(zip(*(column.tolist() for column in found), strict=True)) == expected


@pytest.mark.parametrize(
    ("where", "positions"),
    [
        (None, [0, 1, 2, 3]),
        (("seconds", ">=", 2.0), [0, 2, 3]),
        (("seconds", "==", 1.0), [0, 1]),
        (("seconds", "!=", 1.0), [0, 2, 3]),
        (("seconds", "<", 2.0), [0, 1]),
        (("seconds", "in", [1.0, 3.0]), [0, 1, 3]),
        (("device", "==", "tv"), [0, 3]),
    ],
)
def test_observed_positives_are_the_actions_that_satisfy_the_condition(where: Any, positions: list[int]) -> None:
    log = logged(click(1), watch(2, seconds=1), watch(3, seconds=2), {**watch(4, seconds=3), "device": "tv"}, shown(5))
    rows = join_labels(log, ObservedPositives({CLICK: 1.0, WATCH: 2.0}, where), "user", "film")
    assert rows.position.tolist() == positions
    assert rows.gain.tolist() == [1.0 if position == 0 else 2.0 for position in positions]
    assert rows.now.tolist() == [position + 1 for position in positions]
    assert rows.request.null_count == len(positions)


def test_the_report_says_what_the_log_holds() -> None:
    log = logged(shown(0), shown(995), click(2), watch(3, "v", "g"), {**watch(4), "device": "tv"})
    log.append([click(5)], received=105)
    report = data_report(log, LABELS, "user", "film")
    kinds = {kind.kind: kind for kind in report.kinds}
    assert (report.position, report.entities) == (7, {"film": 2, "user": 3})
    assert (kinds["watch"].events, kinds["watch"].coverage) == (2, {"seconds": 1.0, "device": 0.5})
    assert (kinds["click"].first_at, kinds["click"].last_at, kinds["click"].delay_ms_p99) == (2, 5, 99.0)
    assert (kinds["film"].events, kinds["film"].first_at, kinds["film"].coverage["title"]) == (0, None, 0.0)
    assert (report.labels.gains, report.labels.left_out, report.labels.positive_rate) == ({3.0: 1}, 1, 1.0)
    assert report.labels.has_impressions
    assert math.isnan(data_report(MemoryLog(SCHEMAS), LABELS, "user", "film").labels.positive_rate)
