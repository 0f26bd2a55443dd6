"""The skew audit: silent while serving and replay agree, and exact about where they do not."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shortlist.events.log import MemoryLog
from shortlist.events.schema import Entity
from shortlist.features.context import encode as encode_context
from shortlist.features.definitions import EventType, Feature, Impression, request_feature
from shortlist.features.program import FeatureSet
from shortlist.features.table import FeatureTable
from shortlist.features.vectors import decode, encode
from shortlist.monitoring.skew import audit, upper_bound

user = Entity("user", age=int)
film = Entity("film", year=int)
watch = EventType("watch", user, film, seconds=float)
impression = Impression(user, film)


@request_feature
def budget_left(budget: Any, user_watch_sum_seconds_1h: Any) -> Any:
    return budget - user_watch_sum_seconds_1h


FEATURES: list[Feature] = [
    watch.by(user).sum("seconds", over="1h"),
    watch.by(film).count("1d"),
    watch.by(user).mean("seconds"),
    watch.by(user).last("film", 3),
    budget_left,
]
HOUR = 3_600_000


def features() -> FeatureSet:
    return FeatureSet(FEATURES, (user, film), {"budget": float})


def served_world(log: MemoryLog, spoil: Any = None) -> None:
    """Watches and impressions in turn; `spoil(values, turn)` may change what is logged as served."""
    known, rng = features(), np.random.default_rng(1)
    table = FeatureTable(known)
    log.subscribe(table.update)
    log.append([{"kind": "film", "at": 0, "film": f"f{n}", "year": 1990 + n} for n in range(4)], received=0)
    for turn in range(60):
        at = 1_000_000 + turn * HOUR // 7
        event = {"kind": "watch", "user": f"u{rng.integers(3)}", "film": f"f{rng.integers(5)}", "at": at}
        log.append([{**event, "seconds": float(rng.exponential())}], received=at)
        who, what, now = f"u{rng.integers(4)}", f"f{rng.integers(6)}", at + 5_000
        context = {"budget": float(rng.random())}
        columns = table.read({"user": [who], "film": [what]}, now, context, known.columns)
        values: NDArray[np.float64] = columns.values[:, 0].copy()
        if spoil is not None:
            spoil(values, turn)
        vector = {"vector": encode(known.fingerprint, values), "log_position": columns.position, "now": now}
        shown = {"kind": "impression", "at": now, "user": who, "film": what, "request": str(turn), "position": 1}
        log.append([{**shown, **vector, "context": encode_context(context)}], received=now)


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog([user.schema, film.schema, watch, impression])


def test_what_serving_read_is_what_replay_computes_bit_by_bit(log: MemoryLog) -> None:
    served_world(log)
    report = audit(features(), log, "user", "film")
    assert report.passed
    assert report.vectors == 60
    assert [comparison.feature for comparison in report.comparisons] == list(features().columns)
    assert all(comparison.compared == comparison.equal == 60 for comparison in report.comparisons)
    assert 0 < report.upper_bound < 0.02
    assert json.loads(json.dumps(report.to_dict()))["passed"] is True


def test_one_changed_bit_is_found_with_its_place(log: MemoryLog) -> None:
    name = "user_watch_sum_seconds_1h"
    row = features().columns.index(name)

    def spoil(values: NDArray[np.float64], turn: int) -> None:
        if turn in (20, 30):
            values[row] = np.nextafter(values[row], math.inf)
        if turn == 40:
            values[row] = math.nan

    served_world(log, spoil)
    report = audit(features(), log, "user", "film")
    assert not report.passed
    assert report.different == 3
    wrong = report.comparisons[row]
    assert (wrong.feature, wrong.different, wrong.missing_served, wrong.missing_replayed) == (name, 3, 1, 0)
    first = wrong.examples[0]
    assert first.served == np.nextafter(first.replayed, math.inf)
    assert report.to_dict()["features"][name]["examples"][2]["served"] is None
    assert all(comparison.different == 0 for comparison in report.comparisons if comparison is not wrong)


def test_damaged_vectors_and_those_of_other_features_are_counted_not_compared(log: MemoryLog) -> None:
    served_world(log)
    shown = {"kind": "impression", "at": 1, "user": "u1", "film": "f1", "request": "r", "position": 1}
    placed = {**shown, "log_position": 5, "now": 1}
    few = encode(features().fingerprint, np.zeros(2))
    log.append(
        [
            {**placed, "vector": encode("another", np.zeros(9))},
            {**placed, "vector": "not a vector"},
            {**placed, "vector": few},
            {**shown, "vector": encode(features().fingerprint, np.zeros(len(features().columns)))},
            shown,
        ],
        received=10**12,
    )
    report = audit(features(), log, "user", "film")
    assert (report.vectors, report.other_features, report.unreadable) == (60, 1, 3)
    assert not report.passed


def test_only_the_newest_are_compared_and_the_others_counted(log: MemoryLog) -> None:
    served_world(log)
    report = audit(features(), log, "user", "film", limit=10)
    assert (report.vectors, report.left_out) == (10, 50)


def test_a_log_without_vectors_proves_nothing(log: MemoryLog) -> None:
    report = audit(features(), log, "user", "film")
    assert (report.vectors, report.passed, report.upper_bound) == (0, False, 1.0)


def test_a_vector_survives_as_text_to_the_last_bit() -> None:
    values = np.array([0.1, -0.0, math.nan, math.inf, 5e-324])
    served = decode(encode("ab" * 32, values))
    assert (served.values.view(np.int64) == values.view(np.int64)).all()
    assert served.mark == "ab" * 8
    for damaged in ("", "{}", '{"features": "x", "values": "???"}', "[1]", '{"features":"x","values":"AAA="}'):
        with pytest.raises(ValueError, match="is no feature vector"):
            decode(damaged)


def slow_tail(different: int, compared: int, rate: float) -> float:
    return sum(math.comb(compared, k) * rate**k * (1 - rate) ** (compared - k) for k in range(different + 1))


@pytest.mark.parametrize(("different", "compared"), [(0, 1), (0, 100), (1, 20), (7, 50), (49, 50)])
def test_the_upper_bound_is_where_so_few_differences_become_improbable(different: int, compared: int) -> None:
    bound = upper_bound(different, compared)
    assert slow_tail(different, compared, bound) == pytest.approx(0.05, rel=1e-9)


def test_the_upper_bound_at_the_edges() -> None:
    assert upper_bound(0, 0) == upper_bound(5, 5) == 1.0
    assert upper_bound(0, 10**7) == pytest.approx(-math.log(0.05) / 10**7, rel=1e-3)
    assert upper_bound(90_000, 100_000) == pytest.approx(0.9 + 1.645 * math.sqrt(0.09 / 100_000), abs=1e-4)
