"""The contract of an event log, for each log there is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist.events.batch import Batch
from shortlist.events.door import Admitted
from shortlist.events.log import EventLog, MemoryLog, Progress
from shortlist.events.schema import Entity, EventSchema
from shortlist.events.sqlite import DIRECT_EVENTS, SqliteLog

USER = Entity("user", age=int)
FILM = Entity("film", title=str, genres=list[str])
WATCH = EventSchema("watch", (USER, FILM), {"seconds": float, "device": str | None})
SCHEMAS = [USER.schema, FILM.schema, WATCH]
LOGS: dict[str, Callable[[Path], EventLog]] = {
    "memory": lambda _: MemoryLog(SCHEMAS),
    "sqlite": lambda folder: SqliteLog(folder / "log.db", SCHEMAS),
}


@pytest.fixture(params=LOGS)
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EventLog]:
    log = LOGS[request.param](tmp_path)
    yield log
    log.close()


def watch(number: int, **more: Any) -> dict[str, Any]:
    event = {"kind": "watch", "at": 1000 + number, "user": f"u{number % 7}", "film": f"f{number % 5}"}
    return {**event, "seconds": float(number), **more}


def numbers(log: EventLog, start: int = 0, stop: int | None = None) -> list[float]:
    return [value for batch in log.scan(start, stop) for value in batch.numbers("watch.seconds").tolist()]


def watches(first: int, count: int) -> pa.Table:
    """`count` watches as a table, without ids."""
    places = np.arange(first, first + count)
    users = pa.array([f"u{n}" for n in range(7)]).take(pa.array(places % 7))
    kinds = pa.array(["watch"]).dictionary_encode().take(pa.array(np.zeros(count, np.int64)))
    return pa.table({"kind": kinds, "at": 1000 + places, "user": users, "film": users, "seconds": places.astype(float)})


def test_offsets_rise_by_one_and_scans_are_half_open(log: EventLog) -> None:
    assert (log.position, list(log.scan())) == (0, [])
    first = log.append([watch(n) for n in range(3)], received=5000)
    second = log.append([watch(3), {"kind": "nothing"}, watch(4)], received=6000)
    assert (first.accepted, first.position, second.accepted, second.position) == (3, 3, 2, 5)
    assert [refusal.line for refusal in second.refusals] == [2]
    assert log.position == 5
    assert numbers(log) == [0, 1, 2, 3, 4]
    assert numbers(log, 1, 4) == [1, 2, 3]
    assert numbers(log, 2) == [2, 3, 4]
    assert numbers(log, 4, 99) == [4]
    assert numbers(log, 5) == numbers(log, 3, 3) == numbers(log, 4, 2) == []
    (batch,) = log.scan()
    assert batch.offset.tolist() == [0, 1, 2, 3, 4]
    assert batch.received.tolist() == [5000] * 3 + [6000] * 2
    assert batch.at.tolist() == [1000, 1001, 1002, 1003, 1004]
    assert (batch.start, batch.stop) == (0, 5)


def test_a_batch_has_every_column_of_the_schema(log: EventLog) -> None:
    log.append([watch(0), {"kind": "film", "at": 1, "film": "f", "genres": ["a", "b"]}])
    (batch,) = log.scan()
    assert batch.table.schema == log.door.columns
    assert batch.of_kind("film").tolist() == [False, True]
    assert batch.of_kind("user").tolist() == batch.of_kind("nothing").tolist() == [False, False]
    assert [batch.kinds[code] for code in batch.kind_codes] == ["watch", "film"]
    assert batch.strings("film.genres").to_pylist() == [None, ["a", "b"]]
    assert batch.strings("film").to_pylist() == ["f0", "f"]
    assert np.isnan(batch.numbers("user.age")).all()
    assert (batch.has("film.genres"), batch.has("user.age")) == (True, False)
    with pytest.raises(KeyError, match=r"no column 'film\.genre'"):
        batch.strings("film.genre")


def test_a_scan_of_chosen_columns_has_these_and_the_envelope(log: EventLog) -> None:
    log.append([watch(0, id="a")])
    (batch,) = log.scan(columns=["user"])
    assert batch.table.column_names == ["offset", "at", "received", "kind", "user"]
    assert batch.strings("user").to_pylist() == ["u0"]
    with pytest.raises(KeyError, match="did you mean 'user'"):
        log.scan(columns=["usr"])


def test_an_id_is_stored_once_in_one_batch_or_many(log: EventLog) -> None:
    receipt = log.append([watch(0, id="a"), watch(1, id="a"), watch(2, id="b"), watch(3), watch(4, id="")])
    assert (receipt.accepted, receipt.duplicates) == (4, 1)
    receipt = log.append([watch(5, id="b"), watch(6, id="c")])
    assert (receipt.accepted, receipt.duplicates, receipt.position) == (1, 1, 5)
    assert numbers(log) == [0, 2, 3, 4, 6]


def test_imported_history_was_received_when_it_happened(log: EventLog) -> None:
    assert log.progress("file") is None
    log.append_imported([watch(0), watch(1)], Progress("file", "digest", 2))
    (batch,) = log.scan()
    assert batch.received.tolist() == batch.at.tolist() == [1000, 1001]
    assert log.progress("file") == Progress("file", "digest", 2)
    log.append_imported([], Progress("file", "digest", 3))
    assert log.progress("file") == Progress("file", "digest", 3)
    assert log.position == 2


def test_an_append_that_was_admitted_before_keeps_its_order_of_kinds(log: EventLog) -> None:
    events = [
        watch(0),
        {"kind": "film", "at": 1, "film": "f"},
        watch(2),
        {"kind": "user", "at": 1, "user": "u"},
        watch(4),
    ]
    admitted: Admitted = log.door.admit(events, 5000)
    log.append(admitted)
    (batch,) = log.scan()
    assert [batch.kinds[code] for code in batch.kind_codes] == ["watch", "film", "watch", "user", "watch"]


def test_listeners_see_every_batch_once_in_order_before_append_returns(log: EventLog) -> None:
    log.append([watch(n) for n in range(3)])
    late: list[Batch] = []
    whole: list[Batch] = []
    log.subscribe(late.append)
    log.subscribe(whole.append, start=1)
    for n in range(3, 6):
        receipt = log.append([watch(n)])
        assert late[-1].stop == whole[-1].stop == receipt.position
    assert [value for batch in late for value in batch.numbers("watch.seconds")] == [3, 4, 5]
    assert [value for batch in whole for value in batch.numbers("watch.seconds")] == [1, 2, 3, 4, 5]


def test_a_listener_that_raises_is_heard_of_and_keeps_nobody_else_from_the_batch(log: EventLog) -> None:
    heard: list[int] = []

    def broken(_: Batch) -> None:
        raise RuntimeError("no room in the table")

    log.subscribe(broken)
    log.subscribe(lambda batch: heard.append(batch.stop))
    with pytest.raises(RuntimeError, match="no room in the table"):
        log.append([watch(0, id="a")])
    assert heard == [1]
    assert numbers(log) == [0]


def test_many_threads_append_at_once(log: EventLog) -> None:
    seen: list[Batch] = []
    log.subscribe(seen.append)
    positions: list[int] = []

    def work(thread: int) -> None:
        for n in range(50):
            receipt = log.append([watch(thread * 50 + n, id=f"{thread}-{n}")])
            positions.append(receipt.position)
            assert log.position >= receipt.position

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.position == 400
    assert sorted(positions) == list(range(1, 401))
    assert sorted(numbers(log)) == list(range(400))
    assert seen[0].start == 0
    assert all(before.stop == after.start for before, after in pairwise(seen))
    assert seen[-1].stop == 400


def test_a_server_can_await_many_appends_without_threads(log: EventLog) -> None:
    async def serve() -> list[int]:
        waiting = [asyncio.wrap_future(log.submit([watch(n)])) for n in range(100)]
        return [receipt.accepted for receipt in await asyncio.gather(*waiting)]

    assert sum(asyncio.run(serve())) == 100
    assert sorted(numbers(log)) == list(range(100))


def test_a_submission_that_is_cancelled_harms_nobody(log: EventLog) -> None:
    futures: list[Future[Any]] = [log.submit([watch(n)]) for n in range(200)]
    cancelled = sum(future.cancel() for future in futures)
    assert log.append([watch(1000)]).accepted == 1
    assert log.position == 201 - cancelled


def test_a_large_table_is_stored_whole_and_in_order(log: EventLog) -> None:
    log.append([watch(0)])
    count = DIRECT_EVENTS + 10
    assert log.append(watches(1, count)).accepted == count
    log.append([watch(count + 1)])
    assert numbers(log) == list(range(count + 2))
    assert numbers(log, count - 1) == [count - 1, count, count + 1]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["append", "table", "reopen", "seal"])), max_size=6)
    )
)
def test_appends_are_idempotent_however_they_come(calls: list[list[tuple[int, str]]]) -> None:
    """Oracle: the first event of each id, in order, across batches, restarts and sealing."""
    with TemporaryDirectory() as folder:
        disk = SqliteLog(Path(folder, "log.db"), SCHEMAS)
        memory = MemoryLog(SCHEMAS)
        expected: dict[str, float] = {}
        for place, call in enumerate(calls):
            events = [watch(place * 100 + n, id=f"é{number}") for n, (number, _) in enumerate(call)]
            ways = {way for _, way in call}
            fresh = {event["id"] for event in events} - set(expected)
            for event in events:
                expected.setdefault(event["id"], event["seconds"])
            for log in (disk, memory):
                names = list(watch(0, id=""))
                given = (
                    pa.table({name: [event[name] for event in events] for name in names}) if "table" in ways else events
                )
                receipt = log.append(given)
                assert (receipt.accepted, receipt.duplicates) == (len(fresh), len(events) - len(fresh))
            if "seal" in ways:
                disk.seal()
            if "reopen" in ways:
                disk.close()
                disk = SqliteLog(Path(folder, "log.db"), SCHEMAS)
        assert numbers(disk) == numbers(memory) == list(expected.values())
        disk.close()
