"""The law of features on drawn logs: replay = live to the last bit = a naive oracle; a snapshot changes nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shortlist.events.batch import Batch
from shortlist.events.log import MemoryLog
from shortlist.events.schema import Entity
from shortlist.features import replay as replay_module
from shortlist.features.columns import Columns, Rows
from shortlist.features.definitions import Aggregate, EventType, Ratio, ratio
from shortlist.features.hashing import hash_strings
from shortlist.features.program import FeatureSet
from shortlist.features.replay import replay
from shortlist.features.table import FeatureTable
from tests import oracles

user = Entity("user", plan=str, age=int)
film = Entity("film", genres=list[str], year=int)
watch = EventType("watch", user, film, seconds=float | None, device=str | None, finished=bool | None)
click = EventType("click", user, film, x=int)
mine, its = watch.by(user), watch.by(film)

FEATURES: list[Aggregate | Ratio] = [
    mine.count(),
    mine.count("5m"),
    mine.count("1h", hop="20m"),
    its.count("30d"),
    mine.sum("seconds"),
    mine.sum("seconds", "1h"),
    its.mean("seconds"),
    its.mean("seconds", "7d"),
    mine.mean("finished", "1d"),
    mine.std("seconds"),
    mine.std("seconds", "1d", hop="1h"),
    mine.min("seconds"),
    its.min("seconds", "1h"),
    click.by(user).max("x", "1d"),
    mine.max("seconds"),
    mine.first("seconds"),
    mine.last("seconds"),
    mine.last("device"),
    mine.first("film"),
    mine.last("film", 4),
    mine.last("seconds", 3),
    its.last("user", 2),
    mine.time_since(),
    watch.where("device", "==", "tv").by(film).time_since(),
    mine.distinct("film"),
    its.distinct("user", "1d"),
    mine.distinct("seconds", error=0.2),
    mine.top_k("device", 2),
    mine.top_k("film", 1),
    click.by(user).top_k("x", 2),
    mine.decayed_count("1h"),
    its.decayed_sum("seconds", "1d"),
    ratio(click.by(film).count("7d"), its.count("7d"), prior=20),
    ratio(click.by(user).count(), mine.count()),
    ratio(watch.where("finished", "==", True).by(film).count("1d"), its.count("1d"), prior=0.5),
    mine.share("film.genres", "30d"),
    mine.share("film.genres"),
    watch.by(user, film).count(),
    watch.by(user, film).last("seconds"),
    watch.by("film.genres").count("1d"),
    watch.by("film.genres").max("seconds"),
    watch.by("user.plan").last("device"),
    watch.by("user.plan", "film.genres").count("7d"),
    watch.by().count("1h"),
    watch.by().sum("seconds"),
    watch.where("seconds", ">", 1.5).where("device", "in", ["tv", "web"]).by(user).count("1d"),
    watch.where("seconds", "<=", 2).by(user).count(),
    watch.where("device", "!=", "tv").by(user, film).count("1h"),
    watch.where("film", ">=", "f1").by(user).count(),
    click.where("x", "in", [1, 2]).by(film).sum("x"),
]
SET = FeatureSet(FEATURES, (user, film))
SCHEMAS = [watch, click, user.schema, film.schema]
START = 1_700_000_000_000
HOUR, DAY = 3_600_000, 86_400_000
MAX_FUTURE = 300_000
AHEAD = [0, 1, -1, 25_000, -8 * DAY, -HOUR, -20 * 60_000, -60 * DAY, -DAY, -25_000, MAX_FUTURE, -2]
STEPS = [0, 1, 25_000, 299_999, HOUR, DAY, 9 * DAY]

ids = {"user": st.sampled_from(["u0", "u1", "ünïcode"]), "film": st.sampled_from(["f0", "f1", "f2"])}
maybe = {
    "seconds": st.none() | st.sampled_from([0.0, -1.5, 2.0, 0.1, 1e3]),
    "device": st.none() | st.sampled_from(["tv", "web", "phone", ""]),
    "finished": st.none() | st.booleans(),
}
happened = st.one_of(
    st.fixed_dictionaries({"kind": st.just("watch"), **ids, **maybe}),
    st.fixed_dictionaries({"kind": st.just("watch"), **ids, **maybe}),
    st.fixed_dictionaries({"kind": st.just("click"), **ids, "x": st.integers(0, 3)}),
    st.fixed_dictionaries(
        {"kind": st.just("film"), "film": ids["film"], "year": st.none() | st.integers(1990, 2000)}
        | {"genres": st.none() | st.lists(st.sampled_from(["drama", "war", "sci-fi"]), max_size=3)}
    ),
    st.fixed_dictionaries({"kind": st.just("user"), "user": ids["user"], "plan": st.none() | st.sampled_from("ab")}),
)
timed = st.tuples(happened, st.sampled_from(STEPS), st.sampled_from(AHEAD), st.booleans())
asked = st.tuples(
    st.sampled_from(["u0", "u1", "ünïcode", "stranger"]), st.sampled_from(["f0", "f1", "f2", "unseen"]),
    st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0, 1.0]),
    st.sampled_from([0, 0, 1, 299_999, HOUR, 3 * DAY, -HOUR, -8 * DAY]),
)  # fmt: skip


def crowded(seed: int, length: int, span: int) -> list[Any]:
    """A longer log of few keys, `span` choices of time: many ties, many events out of order, full lists."""
    rng = random.Random(seed)
    events: list[Any] = []
    for _ in range(length):
        kind = rng.choice(["watch"] * 6 + ["click", "click", "film", "user"])
        event: dict[str, Any] = {"kind": kind}
        if kind != "film":
            event["user"] = rng.choice(["u0", "u0", "u1"])
        if kind != "user":
            event["film"] = rng.choice(["f0", "f1", "f2", *(f"g{n}" for n in range(span))])
        if kind == "watch":
            event |= {
                "seconds": rng.choice([None, 0.0, -1.5, 2.0, 0.1, 3.25]),
                "finished": rng.choice([None, True, False]),
            }
            event["device"] = rng.choice([None, "tv", "web", "phone", *(f"d{n}" for n in range(4 * span))])
        if kind == "click":
            event["x"] = rng.randrange(4)
        if kind == "film":
            event["genres"] = rng.choices(["drama", "war", "sci-fi"], k=rng.randrange(4))
        if kind == "user":
            event["plan"] = rng.choice("ab")
        events.append((event, rng.choice(STEPS[:span]), rng.choice(AHEAD[-span:] + [0] * span), rng.random() < 0.1))
    return events


logs = st.lists(timed, max_size=6) | st.builds(crowded, st.integers(0, 2**32), st.integers(20, 60), st.integers(2, 7))


SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


class History:
    """A drawn log: what was appended and kept, when each event was received."""

    def __init__(self, drawn: list[Any]) -> None:
        self.log = MemoryLog(SCHEMAS)
        self.events: list[dict[str, Any]] = []
        self.received: list[int] = []
        clock = START
        for number, (event, step, ahead, twice) in enumerate(drawn):
            clock += step
            full = {name: value for name, value in event.items() if value is not None}
            full |= {"at": clock + ahead, "id": f"e{number}"}
            for _ in range(2 if twice else 1):
                receipt = self.log.append([full], received=clock)
                assert not receipt.refusals
            self.events.append(full)
            self.received.append(clock)

    def rows(self, drawn: list[Any]) -> list[tuple[str, str, int, int]]:
        """Drawn questions: (user, film, position, now); some ask for a time before what is known was received."""
        found = []
        for who, what, part, after in drawn:
            position = round(part * len(self.events))
            known = self.received[position - 1] if position else START
            found.append((who, what, position, known + after))
        return found


def batches(log: MemoryLog, start: int, stop: int, size: int) -> Iterator[Batch]:
    """The events from `start` to `stop`, `size` at a time."""
    for first in range(start, stop, size):
        yield from log.scan(first, min(first + size, stop))


def same_bits(one: Columns, row: int, other: Columns, its_row: int) -> list[str]:
    """The names of what differs between two rows."""
    wrong = [
        name
        for name, a, b in zip(one.names, one.values[:, row], other.values[:, its_row], strict=True)
        if a.tobytes() != b.tobytes()
    ]
    wrong += [n for n in one.lists if one.lists[n][row].tobytes() != other.lists[n][its_row].tobytes()]
    return wrong + ([] if one.names == other.names and one.lists.keys() == other.lists.keys() else ["names"])


def expect(feature: Aggregate | Ratio, wanted: Any, columns: Columns, row: int) -> None:
    """Assert that a column or list says what the oracle says: exactly, or within a stated tolerance."""
    found = columns[feature.name][row]
    if feature.name in columns.lists:
        words = wanted if isinstance(wanted, list) else [] if wanted is None else [wanted]
        if found.dtype == np.int64:
            hashes = hash_strings(words).view(np.int64)
            assert found.tolist() == [*hashes.tolist(), *[0] * (len(found) - len(words))], feature.name
        else:
            np.testing.assert_array_equal(found, [*words, *[math.nan] * (len(found) - len(words))])
        return
    operation = feature.operation if isinstance(feature, Aggregate) else "ratio"
    if wanted is None:
        assert math.isnan(found), feature.name
    elif operation in ("count", "min", "max", "first", "last", "time_since") and "." not in "".join(feature.by):  # type: ignore[union-attr]
        assert found == wanted, feature.name
    elif operation == "distinct":
        assert isinstance(feature, Aggregate)
        assert abs(found - wanted) <= 0.1 + 4 * feature.error * wanted, feature.name
    else:  # sums in tiles round differently; the root of a rounding error is far larger than it
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-6 if operation == "std" else 1e-9), feature.name


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(
    drawn=logs, questions=st.lists(asked, min_size=3, max_size=6), size=st.integers(1, 50),
    chunk=st.sampled_from([1 << 24, 7, 1]),
)  # fmt: skip
def test_replay_is_live_is_the_oracle(drawn: list[Any], questions: list[Any], size: int, chunk: int) -> None:
    history = History(drawn)
    rows = history.rows(questions)
    whole, part = replay_module.CHUNK, replay_module.PART
    replay_module.CHUNK, replay_module.PART = chunk, min(part, chunk)
    try:
        users, films, positions, times = map(list, zip(*rows, strict=True))
        replayed = replay(history.log, SET, Rows({"user": users, "film": films}, positions, times))
    finally:
        replay_module.CHUNK, replay_module.PART = whole, part
    table = FeatureTable(SET)
    for row in sorted(range(len(rows)), key=lambda row: positions[row]):
        for batch in batches(history.log, table.position, positions[row], size):
            table.update(batch)
        live = table.read({"user": [users[row]], "film": [films[row]]}, times[row])
        assert live.position == positions[row]
        assert same_bits(live, 0, replayed, row) == []
        who = {"user": users[row], "film": films[row]}
        for feature in FEATURES:
            expect(feature, oracles.feature(history.events, feature, who, positions[row], times[row]), live, 0)
    assert table.late == replayed.late
    for feature in FEATURES:
        if isinstance(feature, Aggregate) and feature.over is not None:
            assert table.late[feature.name] == oracles.late(history.events, feature, table.position), feature.name


@settings(max_examples=25, deadline=None, suppress_health_check=SLOW)
@given(drawn=logs, cut=st.floats(0, 1), times=st.lists(st.integers(START, START + 99 * DAY)))
def test_a_snapshot_midway_changes_nothing(drawn: list[Any], cut: float, times: list[int]) -> None:
    history = History(drawn)
    middle = round(cut * history.log.position)
    straight, before, after = FeatureTable(SET), FeatureTable(SET), FeatureTable(SET)
    for batch in history.log.scan():
        straight.update(batch)
    for batch in history.log.scan(0, middle):
        before.update(batch)
    with TemporaryDirectory() as place:
        before.snapshot(Path(place) / "state")
        after.restore(Path(place) / "state")
    assert after.position == middle
    for batch in history.log.scan():  # from 0: what is known already is skipped
        after.update(batch)
    everyone = {"user": ["u0", "u1", "ünïcode", "stranger"], "film": ["f0", "f1", "f2", "unseen"]}
    for now in (START, *times):
        one, other = straight.read(everyone, now), after.read(everyone, now)
        assert [same_bits(one, row, other, row) for row in range(4)] == [[]] * 4
    assert straight.late == after.late
    assert straight.entities["film"].ids == after.entities["film"].ids
