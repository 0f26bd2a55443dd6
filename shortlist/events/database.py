"""The SQLite file of the embedded log: chunks not sealed yet, the index of parts, and how far imports have come.

Knows transactions and errors, no events. WAL with full sync: a commit that returns is on the disk.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from shortlist.events.archive import Stored
from shortlist.events.log import LogCorruptError, LogError, LogFullError, LogLockedError, Progress

APPLICATION_ID = 0x53484C54
FORMAT = 1
TABLES = """
CREATE TABLE chunk(first INTEGER PRIMARY KEY, count INTEGER NOT NULL, crc INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE TABLE part(first INTEGER PRIMARY KEY, count INTEGER NOT NULL, crc INTEGER NOT NULL, size INTEGER NOT NULL);
CREATE TABLE progress(source TEXT PRIMARY KEY, digest TEXT NOT NULL, rows INTEGER NOT NULL);
"""


def explained(path: Path, error: sqlite3.Error) -> LogError:
    """The error of the log that says what SQLite's error means and what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return full(path, error)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return LogCorruptError(f"{path} is damaged: {error}; restore the log's files from a backup")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LogLockedError(f"{path}: {error}; another program holds the database, end it and try again")
    return LogError(f"{path}: {error}")


def full(path: Path, error: Exception) -> LogFullError:
    """The error for a disk that takes nothing more."""
    return LogFullError(f"{path} could not be written: {error}; nothing of it is stored, make room and try again")


class Database:
    """One connection to the log's file. Every method raises LogError."""

    def __init__(self, path: Path, create: bool) -> None:
        self.path = path
        mode = "rwc" if create else "rw"
        with self._explain():
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
            )
        try:
            with self._explain():
                self._prepare(create)
        except LogError:
            self._connection.close()
            raise

    def _prepare(self, create: bool) -> None:
        run = self._connection.execute
        run("PRAGMA busy_timeout = 10000")
        empty = run("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if create and empty:
            run("PRAGMA page_size = 16384")
            run("PRAGMA journal_mode = WAL")
            run("PRAGMA synchronous = FULL")
            run(f"PRAGMA application_id = {APPLICATION_ID}")
            run(f"PRAGMA user_version = {FORMAT}")
            self._connection.executescript(f"BEGIN; {TABLES} COMMIT;")
        found, version = (run(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        if found != APPLICATION_ID:
            raise LogError(f"{self.path} is no log of Shortlist; name another file")
        if version != FORMAT:
            raise LogError(f"{self.path} has the log format {version}, this version reads {FORMAT}; upgrade Shortlist")
        run("PRAGMA synchronous = FULL")
        run("PRAGMA wal_autocheckpoint = 1000")
        if not create:
            run("PRAGMA query_only = 1")

    @contextmanager
    def _explain(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise explained(self.path, error) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside becomes durable together when it ends, or not at all where it raises."""
        with self._explain():
            self._connection.execute("BEGIN")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def add_chunk(self, first: int, count: int, payload: bytes) -> None:
        """Store a chunk."""
        row = (first, count, zlib.crc32(payload), payload)
        self._connection.execute("INSERT INTO chunk VALUES (?, ?, ?, ?)", row)

    def add_part(self, part: Stored) -> int:
        """List a part, and drop the chunks that it replaces; returns how many these were."""
        self._connection.execute("INSERT INTO part VALUES (?, ?, ?, ?)", (part.first, part.count, part.crc, part.size))
        range_ = (part.first, part.stop)
        return self._connection.execute("DELETE FROM chunk WHERE first >= ? AND first < ?", range_).rowcount

    def set_progress(self, progress: Progress) -> None:
        """Store how far an import has come."""
        row = (progress.source, progress.digest, progress.rows)
        self._connection.execute("INSERT OR REPLACE INTO progress VALUES (?, ?, ?)", row)

    def progress(self, source: str) -> Progress | None:
        """How far the import of `source` has come."""
        with self._explain():
            found = self._connection.execute("SELECT * FROM progress WHERE source = ?", (source,)).fetchone()
        return Progress(*found) if found else None

    def parts(self) -> list[Stored]:
        """Every part, in offset order."""
        with self._explain():
            rows = self._connection.execute("SELECT first, count, crc, size FROM part ORDER BY first").fetchall()
        return [Stored(*row) for row in rows]

    def chunks(self) -> list[Stored]:
        """Every chunk, without its payload, in offset order."""
        query = "SELECT first, count, crc, length(payload) FROM chunk ORDER BY first"
        with self._explain():
            return [Stored(*row) for row in self._connection.execute(query).fetchall()]

    def position(self) -> int:
        """The offset after the last event that is stored."""
        last = "SELECT first + count FROM {table} ORDER BY first DESC LIMIT 1"
        query = f"SELECT ({last.format(table='chunk')}), ({last.format(table='part')})"
        with self._explain():
            return max(stop or 0 for stop in self._connection.execute(query).fetchone())

    def part_at(self, offset: int) -> Stored | None:
        """The part that holds `offset`."""
        query = "SELECT first, count, crc, size FROM part WHERE first <= ? ORDER BY first DESC LIMIT 1"
        with self._explain():
            row = self._connection.execute(query, (offset,)).fetchone()
        part = Stored(*row) if row else None
        return part if part and part.stop > offset else None

    def payloads(self, start: int, stop: int) -> Generator[tuple[Stored, bytes]]:
        """The chunks that hold offsets from `start` up to, not including, `stop`, in order."""
        query = "SELECT first, count, crc, length(payload), payload FROM chunk WHERE first < ? AND first >= "
        query += "coalesce((SELECT max(first) FROM chunk WHERE first <= ?), 0) ORDER BY first"
        with self._explain():
            for *row, payload in self._connection.execute(query, (stop, start)):
                stored = Stored(*row)
                if stored.stop > start:
                    yield stored, payload

    def close(self) -> None:
        """Close the connection."""
        with self._explain():
            self._connection.close()
