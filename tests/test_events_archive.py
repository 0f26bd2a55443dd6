"""Sealed parts: the same events in other files, and a log that knows what it lacks."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pytest

from shortlist.events import sqlite
from shortlist.events.log import LogError
from shortlist.events.schema import Entity, EventSchema
from shortlist.events.sqlite import SqliteLog

USER = Entity("user", age=int)
WATCH = EventSchema("watch", (USER,), {"seconds": float, "device": str | None})
SCHEMAS = [USER.schema, WATCH]


def watch(number: int, **more: Any) -> dict[str, Any]:
    return {"kind": "watch", "at": 1000 + number, "user": f"u{number % 7}", "seconds": float(number), **more}


def everything(log: SqliteLog) -> list[dict[str, Any]]:
    return [row for batch in log.scan() for row in batch.table.to_pylist()]


def test_sealing_changes_nothing_that_is_read(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", SCHEMAS)
    for n in range(0, 30, 3):
        log.append([watch(n, id=f"id{n}"), {"kind": "user", "at": 5, "user": "é", "age": n}, watch(n + 2)], received=n)
    before = everything(log)
    log.seal()
    assert [file.suffix for file in sorted((tmp_path / "log.db.parts").iterdir())] == [".parquet", ".ids"]
    assert everything(log) == before
    log.append([watch(99)], received=7)
    log.seal()
    log.seal()
    assert everything(log)[:-1] == before
    assert log.append([watch(0, id="id27")]).duplicates == 1
    log.close()
    log = SqliteLog(tmp_path / "log.db", SCHEMAS)
    assert everything(log)[:-1] == before
    assert log.append([watch(0, id="id3")]).duplicates == 1
    log.close()


def test_the_log_seals_itself_as_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "SEAL_EVENTS", 100)
    log = SqliteLog(tmp_path / "log.db", SCHEMAS)
    for n in range(50):
        log.append([watch(10 * n + k, id=f"{n}-{k}") for k in range(10)])
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("log.db.parts/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [value for batch in log.scan() for value in batch.numbers("watch.seconds")] == list(range(500))
    again = [watch(10 * n + k, id=f"{n}-{k}") for n in range(50) for k in range(10)]
    assert log.append(again).duplicates == 500, "whatever was appended while a part was written is known too"
    log.close()
    assert list(tmp_path.glob("log.db.parts/*.parquet"))


def test_scans_go_on_while_the_log_is_sealed_under_them(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", SCHEMAS)
    log.append([watch(0)])
    log.seal()
    log.append([watch(1)])
    scan = log.scan()
    assert len(next(scan)) == 1
    log.seal()
    assert [batch.offset.tolist() for batch in scan] == [[1]]
    log.close()


def test_readers_never_miss_an_event_while_chunks_become_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "SEAL_EVENTS", 20)
    log = SqliteLog(tmp_path / "log.db", SCHEMAS)
    reader = SqliteLog(tmp_path / "log.db", SCHEMAS, read_only=True)

    def write() -> None:
        for n in range(300):
            log.append([watch(5 * n + k) for k in range(5)])

    writer = Thread(target=write)
    writer.start()
    while writer.is_alive():
        for scan in (log.scan(), reader.scan()):
            found = [value for batch in scan for value in batch.numbers("watch.seconds")]
            assert found == list(range(len(found)))
    writer.join()
    log.close()


def test_lost_digests_are_made_again_from_the_part(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", SCHEMAS)
    log.append([watch(n, id=f"id{n}") for n in range(10)])
    log.seal()
    log.close()
    (digests,) = tmp_path.glob("log.db.parts/*.ids")
    content = digests.read_bytes()
    for damage in (b"", content[:-1], b"\0" * len(content), None):
        if damage is None:
            digests.unlink()
        else:
            digests.write_bytes(damage)
        log = SqliteLog(tmp_path / "log.db", SCHEMAS)
        assert log.append([watch(n, id=f"id{n}") for n in range(10)]).duplicates == 10
        log.close()
        assert digests.read_bytes() == content


def test_files_that_a_crash_left_unlisted_are_removed(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", SCHEMAS)
    log.append([watch(0)])
    log.seal()
    log.close()
    parts = tmp_path / "log.db.parts"
    kept = sorted(parts.iterdir())
    for name in ("part-000000000000001-000000000000002.parquet", "part-0.parquet.tmp", "part-0.parquet.ids"):
        (parts / name).write_bytes(b"half")
    (parts / "notes.txt").write_text("not ours")
    log = SqliteLog(tmp_path / "log.db", SCHEMAS)
    assert sorted(parts.iterdir()) == sorted([*kept, parts / "notes.txt"])
    assert len(everything(log)) == 1
    log.close()


@pytest.mark.parametrize("sealed", [False, True])
def test_kinds_and_fields_that_are_declared_later_are_null_before(tmp_path: Path, sealed: bool) -> None:
    log = SqliteLog(tmp_path / "log.db", SCHEMAS)
    log.append([watch(0, device="tv"), {"kind": "user", "at": 5, "user": "u"}])
    if sealed:
        log.seal()
    log.close()
    film = Entity("film", title=str)
    newer = EventSchema("watch", (USER,), {"seconds": float, "speed": float | None})
    log = SqliteLog(tmp_path / "log.db", [film.schema, newer])
    log.append(
        [{"kind": "watch", "at": 1, "user": "u", "seconds": 1.0, "speed": 2.0}, {"kind": "film", "at": 1, "film": "f"}]
    )
    table = pa.concat_tables([batch.table for batch in log.scan()])
    assert table.column("watch.speed").to_pylist() == [None, None, 2.0, None]
    assert table.column("film").to_pylist() == [None, None, None, "f"]
    assert "watch.device" not in table.column_names
    assert [kind for batch in log.scan() for kind in batch.strings("kind").to_pylist()] == [
        "watch",
        "user",
        "watch",
        "film",
    ]
    assert [flag for batch in log.scan() for flag in batch.of_kind("watch").tolist()] == [True, False, True, False]
    log.close()


@pytest.mark.parametrize("sealed", [False, True])
def test_a_field_of_another_type_is_read_where_it_can_be_and_refused_plainly_where_not(
    tmp_path: Path, sealed: bool
) -> None:
    log = SqliteLog(tmp_path / "log.db", SCHEMAS)
    log.append([watch(3, device="tv"), {"kind": "user", "at": 1, "user": "u", "age": 7}])
    if sealed:
        log.seal()
    log.close()
    wider = Entity("user", age=float)
    log = SqliteLog(tmp_path / "log.db", [wider.schema, EventSchema("watch", (wider,), {"seconds": float})])
    (batch,) = log.scan()
    assert batch.numbers("user.age").tolist()[1] == 7.0
    log.close()
    other = EventSchema("watch", (USER,), {"seconds": float, "device": int | None})
    with pytest.raises(LogError, match=r"watch\.device was stored as string and is declared as int64"):
        list(SqliteLog(tmp_path / "log.db", [USER.schema, other], read_only=True).scan())
