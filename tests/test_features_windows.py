"""Windows at their edges: what is in, what is out, what is late."""

from __future__ import annotations

import numpy as np
import pytest

from shortlist.events.log import MemoryLog
from shortlist.events.schema import Entity
from shortlist.features.columns import Rows
from shortlist.features.definitions import EventType
from shortlist.features.program import FeatureSet
from shortlist.features.replay import replay
from shortlist.features.table import FeatureTable
from shortlist.features.windows import Window, window_of

user = Entity("user")
pay = EventType("pay", user, amount=float)
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
NOON = 1_700_006_400_000 // HOUR * HOUR


def table_of(features: FeatureSet, times: list[int]) -> FeatureTable:
    """The table after one payment of 1.0 at each time, each received in order, as soon as the door lets it in."""
    log, table = MemoryLog([pay]), FeatureTable(features)
    log.subscribe(table.update)
    for at in times:
        assert log.append([{"kind": "pay", "at": at, "user": "ada", "amount": 1.0}], received=max(times)).accepted == 1
    return table


def ask(table: FeatureTable, now: int) -> float:
    return float(table.read({"user": ["ada"]}, now).values[0, 0])


def test_the_head_is_exact_and_the_tail_is_rounded_to_one_hop() -> None:
    features = FeatureSet([pay.by(user).count("1h", hop="20m")])
    table = table_of(features, [NOON, NOON + 20 * MINUTE, NOON + 40 * MINUTE])
    assert ask(table, NOON - 1) == 0  # it has not happened yet
    assert ask(table, NOON) == 1
    assert ask(table, NOON + 40 * MINUTE) == 3
    assert ask(table, NOON + 80 * MINUTE - 1) == 3  # covers L to L + H: the first hop leaves as a whole
    assert ask(table, NOON + 80 * MINUTE) == 2
    assert ask(table, NOON + 100 * MINUTE) == 1
    assert ask(table, NOON + 120 * MINUTE) == 0


def test_a_tile_that_was_passed_by_is_empty_when_an_event_comes_back_to_it() -> None:
    features = FeatureSet([pay.by(user).sum("amount", "1h", hop="20m")])
    old = [NOON + step * MINUTE for step in range(0, 400, 10)]
    table = table_of(features, [*old, NOON + 9 * DAY, NOON + 9 * DAY - 50 * MINUTE, NOON + 9 * DAY - 20 * MINUTE])
    assert ask(table, NOON + 9 * DAY) == 3


def test_an_event_dated_ahead_does_not_push_the_tail_out() -> None:
    features = FeatureSet([pay.by(user).count("5m", hop="1m")])
    table = table_of(features, [NOON - 5 * MINUTE, NOON, NOON + 5 * MINUTE])
    assert ask(table, NOON) == 2
    assert ask(table, NOON + 5 * MINUTE) == 2
    assert table.late == {"user_pay_count_5m": 0}


def test_late_events_are_counted_and_left_out_in_replay_too() -> None:
    features = FeatureSet([pay.by(user).count("5m"), pay.by(user).count("30d"), pay.by(user).count()])
    table = table_of(features, [NOON, NOON - DAY, NOON - 31 * MINUTE, NOON - 60 * DAY])
    assert table.late == {"user_pay_count_5m": 3, "user_pay_count_30d": 1}
    assert table.read({"user": ["ada"]}, NOON).values[:, 0].tolist() == [1, 3, 4]


def test_a_time_before_what_is_known_sees_what_the_ring_still_holds() -> None:
    features = FeatureSet([pay.by(user).count("1h", hop="20m")])
    table = table_of(features, [NOON, NOON + HOUR, NOON + 2 * HOUR])
    assert ask(table, NOON + 2 * HOUR) == 2
    assert ask(table, NOON + HOUR) == 1  # the first event's tile is given up
    assert ask(table, NOON) == 0


def test_late_means_older_than_the_ring() -> None:
    features = FeatureSet([pay.by(user).count("1h", hop="20m")])  # 3 hops, the head, one for events dated ahead
    assert table_of(features, [NOON, NOON - 4 * 20 * MINUTE]).late == {"user_pay_count_1h": 0}
    assert table_of(features, [NOON, NOON - 4 * 20 * MINUTE - 1]).late == {"user_pay_count_1h": 1}


def test_replay_counts_the_same_late_events() -> None:
    log = MemoryLog([pay])
    times = [NOON, NOON - DAY, NOON - 31 * MINUTE, NOON - 60 * DAY]
    log.append([{"kind": "pay", "at": at, "user": "ada", "amount": 1.0} for at in times], received=NOON)
    features = FeatureSet([pay.by(user).count("5m"), pay.by(user).count("30d")])
    columns = replay(log, features, Rows({"user": ["ada", "ada"]}, [4, 1], [NOON, NOON]))
    assert columns.late == {"user_pay_count_5m": 3, "user_pay_count_30d": 1}
    np.testing.assert_array_equal(columns.values, [[1, 1], [3, 1]])


def test_default_hops() -> None:
    by = pay.by(user)
    assert window_of(by.count("30d")) == Window(30 * DAY, 30 * DAY // 12)
    assert window_of(by.count("1s")) == Window(1000, 100)  # a twelfth of a second is no whole number of ms
    assert window_of(by.count()) is None
    assert Window(HOUR, HOUR // 12).ring == 12 + 1 + 1
    assert Window(5 * MINUTE, 25_000).ring == 12 + 1 + 12


@pytest.mark.parametrize(("over", "hop"), [("7d", "5h"), ("1h", "2h"), ("90d", "1s"), ("soon", None), (None, "1h")])
def test_windows_that_cannot_be_are_refused(over: str | None, hop: str | None) -> None:
    with pytest.raises(ValueError, match=r"hop|duration"):
        window_of(pay.by(user).count(over, hop))


def test_ties_go_to_the_log_order() -> None:
    by = pay.by(user)
    table = FeatureTable(FeatureSet([by.first("amount"), by.last("amount"), by.last("amount", 3)]))
    log = MemoryLog([pay])
    log.subscribe(table.update)
    for at, amount in [(NOON, 1.0), (NOON, 2.0), (NOON + 1, 3.0), (NOON, 4.0), (NOON + 1, 5.0), (NOON - 1, 6.0)]:
        log.append([{"kind": "pay", "at": at, "user": "ada", "amount": amount}], received=NOON)
        if amount == 2.0:
            assert table.read({"user": ["ada"]}, NOON)["user_pay_first_amount"].tolist() == [1.0]
    columns = table.read({"user": ["ada"]}, NOON)
    assert columns.values[:, 0].tolist() == [6.0, 5.0]
    assert columns["user_pay_last_n_amount_3"].tolist() == [[5.0, 3.0, 4.0]]
