"""What can go wrong with files is said plainly: where, what was found, what to do. Nothing acknowledged is lost."""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shortlist.events.log import LogCorruptError, LogError, LogFullError, LogLockedError
from shortlist.events.schema import Entity, EventSchema
from shortlist.events.sqlite import DIRECT_EVENTS, SqliteLog

USER = Entity("user", age=int)
WATCH = EventSchema("watch", (USER,), {"seconds": float, "device": str | None})
SCHEMAS = [USER.schema, WATCH]


def watch(number: int, **more: Any) -> dict[str, Any]:
    return {"kind": "watch", "at": 1000 + number, "user": f"u{number % 7}", "seconds": float(number), **more}


def numbers(log: SqliteLog, start: int = 0) -> list[float]:
    return [value for batch in log.scan(start) for value in batch.numbers("watch.seconds").tolist()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of two sealed parts and two chunks, ten events each, closed."""
    log = SqliteLog(tmp_path / "log.db", SCHEMAS)
    for start in (0, 10, 20, 30):
        log.append([watch(n, id=f"id{n}") for n in range(start, start + 10)])
        if start < 20:
            log.seal()
    log.close()
    return tmp_path / "log.db"


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [lambda p: flip(p, 100), lambda p: flip(p, -20), cut, empty, Path.unlink])
def test_a_damaged_part_is_refused_and_what_follows_can_be_read(path: Path, damage: Callable[[Path], None]) -> None:
    part = sorted(path.with_name("log.db.parts").glob("*.parquet"))[1]
    damage(part)
    log = SqliteLog(path, SCHEMAS, read_only=True)
    with pytest.raises(LogCorruptError, match=r"part-0+10-0+20.parquet is damaged: .* restore it .* scan\(start=20\)"):
        numbers(log)
    assert numbers(log, 20) == list(range(20, 40))
    assert next(log.scan()).numbers("watch.seconds").tolist() == list(range(10))


def test_a_part_that_was_cut_says_by_how_much(path: Path) -> None:
    part = sorted(path.with_name("log.db.parts").glob("*.parquet"))[0]
    size = part.stat().st_size
    cut(part)
    with pytest.raises(LogCorruptError, match=f"it has {size - 100} bytes and was written with {size}"):
        numbers(SqliteLog(path, SCHEMAS, read_only=True))


def test_a_damaged_chunk_is_refused_and_what_lies_behind_it_can_be_read(path: Path) -> None:
    with sqlite3.connect(path) as database:
        payload = bytearray(database.execute("SELECT payload FROM chunk WHERE first = 20").fetchone()[0])
        payload[len(payload) // 2] ^= 1
        database.execute("UPDATE chunk SET payload = ? WHERE first = 20", (bytes(payload),))
    database.close()
    reason = r"log.db: the chunk of offsets 20 to 30 is damaged: its checksum does not match; .* scan\(start=30\)"
    log = SqliteLog(path, SCHEMAS, read_only=True)
    with pytest.raises(LogCorruptError, match=reason):
        numbers(log)
    assert numbers(log, 30) == list(range(30, 40))
    with pytest.raises(LogCorruptError, match=reason):
        SqliteLog(path, SCHEMAS)


def test_missing_events_are_found_when_the_log_is_opened_or_scanned(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM chunk WHERE first = 20")
    database.close()
    with pytest.raises(LogCorruptError, match="offsets 20 to 30 are missing"):
        SqliteLog(path, SCHEMAS)
    with pytest.raises(LogCorruptError, match="offset 20 is missing"):
        numbers(SqliteLog(path, SCHEMAS, read_only=True))


def test_an_acknowledged_tail_that_is_gone_is_found(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM chunk WHERE first = 30")
    database.close()
    with pytest.raises(LogCorruptError, match=r"ends at offset 30, but events up to offset 40 were acknowledged"):
        SqliteLog(path, SCHEMAS)
    path.with_name("log.db.mark").unlink()
    log = SqliteLog(path, SCHEMAS)
    assert log.position == 30
    log.close()


def crashed(folder: Path) -> Path:
    """A copy of a log whose process was killed: its last commits are in the write-ahead log only."""
    log = SqliteLog(folder / "live.db", SCHEMAS)
    for n in range(20):
        log.append([watch(n)])
    for ending in ("", "-wal", ".mark"):
        (folder / f"log.db{ending}").write_bytes((folder / f"live.db{ending}").read_bytes())
    log.close()
    return folder / "log.db"


def test_a_log_whose_process_was_killed_goes_on(tmp_path: Path) -> None:
    log = SqliteLog(crashed(tmp_path), SCHEMAS)
    assert numbers(log) == list(range(20))
    log.append([watch(20)])
    assert numbers(log) == list(range(21))
    log.close()


@pytest.mark.parametrize("damage", [lambda p: flip(p, -4000), cut, Path.unlink, lambda p: p.write_bytes(b"garbage")])
def test_a_damaged_write_ahead_log_is_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = crashed(tmp_path)
    damage(tmp_path / "log.db-wal")
    with pytest.raises(LogCorruptError, match="restore"):
        SqliteLog(path, SCHEMAS)


def test_a_torn_write_that_was_never_acknowledged_is_dropped_in_silence(tmp_path: Path) -> None:
    path = crashed(tmp_path)
    with (tmp_path / "log.db-wal").open("ab") as wal:
        wal.write(b"\x01" * 5000)
    log = SqliteLog(path, SCHEMAS)
    assert numbers(log) == list(range(20))
    log.close()


@pytest.mark.parametrize("content", [b"nonsense" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log.db"
    path.write_bytes(content)
    for read_only in (False, True):
        with pytest.raises(LogCorruptError, match=r"log.db is damaged: .*; restore"):
            list(SqliteLog(path, SCHEMAS, read_only=read_only).scan())
    assert path.read_bytes() == content


def test_a_database_that_was_cut_is_refused(path: Path) -> None:
    content = path.read_bytes()
    for size in (len(content) // 2, 4096, 0):
        path.write_bytes(content[:size])
        with pytest.raises(LogCorruptError, match="restore"):
            SqliteLog(path, SCHEMAS)


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE album(title TEXT)")
    database.close()
    content = path.read_bytes()
    with pytest.raises(LogError, match=r"other.db is no log of Shortlist; name another file"):
        SqliteLog(path, SCHEMAS)
    assert path.read_bytes() == content


def test_a_newer_format_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(LogError, match="has the log format 99, this version reads 1; upgrade"):
        SqliteLog(path, SCHEMAS)


def test_places_where_no_log_can_be(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="there is no log at"):
        SqliteLog(tmp_path / "none.db", SCHEMAS, read_only=True)
    with pytest.raises(LogError, match="is no folder; make it first"):
        SqliteLog(tmp_path / "nowhere" / "log.db", SCHEMAS)
    (tmp_path / "folder").mkdir()
    with pytest.raises(LogError, match="unable to open"):
        SqliteLog(tmp_path / "folder", SCHEMAS)


ROOT = Path(__file__).parents[1]
HOLD = """
import sys
from tests.test_events_faults import SCHEMAS, SqliteLog, watch
log = SqliteLog(sys.argv[1], SCHEMAS)
print(log.position, flush=True)
for line in sys.stdin:
    log.append([watch(log.position)])
    print(log.position, flush=True)
"""


def test_one_process_writes_and_others_read(path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "40\n"
        with pytest.raises(LogLockedError, match=f"log.db is being written by process {holder.pid}; stop it, or open"):
            SqliteLog(path, SCHEMAS)
        reader = SqliteLog(path, SCHEMAS, read_only=True)
        assert reader.position == 40
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "41\n"
        assert reader.position == 41
        assert numbers(reader) == list(range(41))
        with pytest.raises(LogError, match="opened to read only"):
            reader.append([watch(0)])
        reader.close()
        holder.kill()
    log = SqliteLog(path, SCHEMAS)
    with pytest.raises(LogLockedError):
        SqliteLog(path, SCHEMAS)
    assert numbers(log) == list(range(41))
    log.close()
    log.close()
    with pytest.raises(LogError, match="the log is closed"):
        log.append([watch(0)])


@pytest.mark.parametrize("count", [400, DIRECT_EVENTS])
def test_a_full_disk_refuses_the_append_and_the_log_goes_on_once_there_is_room(tmp_path: Path, count: int) -> None:
    """The largest size that a file may have stands in for the disk: writes beyond it fail like those beyond the end."""
    log = SqliteLog(tmp_path / "log.db", SCHEMAS)
    stored = log.append([watch(n, id=f"first{n}") for n in range(100)]).position
    events = [watch(n, id=f"{n}" * 20) for n in range(count)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(file.stat().st_size for file in tmp_path.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 10_000, before[1]))
    try:
        for _ in range(3):
            with pytest.raises(LogFullError, match=r"could not be written: .*; nothing of it is stored, make room"):
                log.append(events)
        assert log.position == stored
        assert numbers(log) == list(range(100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    receipt = log.append(events)
    assert (receipt.accepted, receipt.duplicates, receipt.position) == (count, 0, stored + count)
    assert numbers(log) == [*range(100), *range(count)]
    log.close()
    log = SqliteLog(tmp_path / "log.db", SCHEMAS)
    assert log.append(events).duplicates == count
    log.close()
