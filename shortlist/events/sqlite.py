"""The embedded log: SQLite for what is new, Parquet parts for what is sealed.

Appends from any number of threads meet in one committer thread, which stores all that wait as one chunk with one flush
to the disk (group commit). A sealer thread turns old chunks into parts aside; only the change of the index is a
transaction. Beside FILE lie FILE.parts/, FILE.lock (who writes) and FILE.mark (what was acknowledged).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from threading import Event as Signal
from threading import Lock, Thread

import pyarrow as pa

from shortlist.events.archive import PART_EVENTS, Stored, decode_chunk, encode_chunk, read_part, to_store, write_part
from shortlist.events.batch import Batch, joined
from shortlist.events.committer import Committer
from shortlist.events.database import Database, full
from shortlist.events.door import Door, clock_ms
from shortlist.events.identity import Digests, SeenIds, digests_of, load_digests, save_digests, sorted_digests
from shortlist.events.log import (
    SCAN_EVENTS,
    Listener,
    LogCorruptError,
    LogError,
    Numbered,
    Progress,
    Receipt,
    Submitted,
    admit,
    selected,
)
from shortlist.events.schema import EventSchema
from shortlist.events.writer_files import Mark, WriteLock

DIRECT_EVENTS = 65_536
"""An append of so many events goes straight to a part."""
SEAL_EVENTS = 262_144
SEAL_CHUNKS = 16_384
SEAL_RETRY_S = 60.0

logger = logging.getLogger(__name__)


class SqliteLog:
    """The log in the file `path`. One process may write to it, others read (`read_only`) meanwhile.

    Raises LogError where the file cannot be opened, LogLockedError where another process writes to it,
    LogCorruptError where acknowledged events are missing.
    """

    def __init__(self, path: str | Path, schemas: Iterable[EventSchema], read_only: bool = False) -> None:
        self.path = Path(path)
        self.door = Door(schemas)
        self._folder = self.path.with_name(f"{self.path.name}.parts")
        self._writing = None if read_only else Writing(self.path, self._folder, self.door)
        if read_only and not self.path.exists():
            raise LogError(f"there is no log at {self.path}; append to it first, or name another file")

    @property
    def position(self) -> int:
        """The offset that the next event will get; a reader sees what the writing process has committed."""
        if self._writing is not None:
            return self._writing.committer.position
        with closing(Database(self.path, create=False)) as database:
            return database.position()

    def append(self, events: Submitted, received: int | None = None) -> Receipt:
        """See `EventLog.append`."""
        return self.submit(events, received).result()

    def submit(self, events: Submitted, received: int | None = None) -> Future[Receipt]:
        """See `EventLog.submit`. The door's check runs in the caller's thread."""
        admitted = admit(self.door, events, clock_ms() if received is None else received)
        return self._writer().committer.submit(admitted)

    def append_imported(self, events: Submitted, progress: Progress) -> Receipt:
        """See `EventLog.append_imported`."""
        return self._writer().committer.submit(admit(self.door, events, None), progress).result()

    def progress(self, source: str) -> Progress | None:
        """See `EventLog.progress`."""
        with closing(Database(self.path, create=False)) as database:
            return database.progress(source)

    def subscribe(self, listener: Listener, start: int | None = None) -> None:
        """See `EventLog.subscribe`."""
        committer = self._writer().committer

        def join() -> None:
            for batch in self.scan(committer.position if start is None else start):
                listener(batch)
            committer.listeners.append(listener)

        committer.run(join)

    def scan(self, start: int = 0, stop: int | None = None, columns: Sequence[str] | None = None) -> Iterator[Batch]:
        """See `EventLog.scan`."""
        schema = selected(self.door.columns, columns)
        end = self.position if stop is None else min(stop, self.position)
        return scan_files(self.path, self._folder, schema, max(0, start), end)

    def seal(self) -> None:
        """Move everything to sealed parts now; the log does it by itself as it grows."""
        self._writer().seal()

    def close(self) -> None:
        """See `EventLog.close`."""
        if self._writing is not None:
            self._writing.close()

    def _writer(self) -> Writing:
        if self._writing is None:
            raise LogError(f"{self.path} was opened to read only; append where it is open for writing")
        return self._writing


class Writing:
    """What only the writing process has: the lock, the committer's thread and the sealer's."""

    def __init__(self, path: Path, folder: Path, door: Door) -> None:
        if not path.parent.is_dir():
            raise LogError(f"{path} cannot be made: {path.parent} is no folder; make it first")
        self._path = path
        self._folder = folder
        self._schema = door.columns
        with ExitStack() as opened:
            opened.enter_context(closing(WriteLock(path.with_name(f"{path.name}.lock"))))
            self._database = opened.enter_context(closing(Database(path, create=True)))
            self._mark = opened.enter_context(closing(Mark(path.with_name(f"{path.name}.mark"))))
            position, self._seen = self._recover()
            self._files = opened.pop_all()
        self._sealing = Lock()
        self._wake = Signal()
        self._retry_at = 0.0
        self._closed = False
        self.committer = Committer(door, position, self._seen, self._store)
        self._sealer = Thread(target=self._seal_forever, name="shortlist-sealer", daemon=True)
        self._sealer.start()

    def seal(self) -> None:
        """Replace chunks by parts: written aside first, then listed in one transaction between two commits."""
        with self._sealing, closing(Database(self._path, create=False)) as reader:
            for run in contiguous(reader.chunks()):
                chunks = reader.payloads(run.first, run.stop)
                batch = joined([decode_chunk(chunk, data, self._schema, str(self._path)) for chunk, data in chunks])
                part, digests = self._write_part(batch.stored, run.first)
                replace = partial(self._list_part, part, digests, batch.strings("id").drop_null().to_pylist())
                self.committer.run(replace)

    def close(self) -> None:
        """Store what was submitted and let go of the files."""
        if self._closed:
            return
        self._closed = True
        self._wake.set()
        self._sealer.join()
        self.committer.close()
        self._files.close()

    def _recover(self) -> tuple[int, SeenIds]:
        """The position and the ids, after checking that nothing acknowledged is missing."""
        parts, chunks = self._database.parts(), self._database.chunks()
        position = 0
        for stored in sorted([*parts, *chunks], key=lambda stored: stored.first):
            if stored.first != position:
                raise LogCorruptError(
                    f"{self._path}: the events at offsets {position} to {stored.first} are missing; restore a backup"
                )
            position = stored.stop
        self._mark.check(position, self._path)
        self._mark.write(position)
        self._remove_unlisted({part.name for part in parts})
        seen = SeenIds()
        for part in parts:
            seen.seal(self._digests(part))
        for chunk, payload in self._database.payloads(0, position):
            batch = decode_chunk(chunk, payload, self._schema, str(self._path))
            seen.add(batch.strings("id").drop_null().to_pylist())
        self._unsealed_events = sum(chunk.count for chunk in chunks)
        self._unsealed_chunks = len(chunks)
        return position, seen

    def _remove_unlisted(self, listed: set[str]) -> None:
        """Files that a crash left between their writing and their listing; their events are still in chunks."""
        for file in self._folder.glob("part-*"):
            if file.name.removesuffix(".ids") not in listed:
                file.unlink()

    def _digests(self, part: Stored) -> Digests:
        path = self._folder / f"{part.name}.ids"
        digests = load_digests(path)
        size = (self._folder / part.name).stat().st_size if (self._folder / part.name).exists() else 0
        if digests is None or size != part.size:
            batch = read_part(self._folder, part, selected(self._schema, ["id"]))
            digests = sorted_digests(digests_of(batch.strings("id").drop_null().to_pylist()))
            save_digests(path, digests)
        return digests

    def _store(self, numbered: Numbered, progress: Sequence[Progress]) -> None:
        """Make a group durable; runs in the committer's thread."""
        table = numbered.table
        direct = len(table) >= DIRECT_EVENTS
        parts = self._write_parts(table) if direct else []
        try:
            with self._database.transaction():
                for part, _ in parts:
                    self._database.add_part(part)
                if len(table) and not direct:
                    self._database.add_chunk(offset_of(table), len(table), encode_chunk(to_store(table)))
                for step in progress:
                    self._database.set_progress(step)
        except LogError:
            self._discard([part for part, _ in parts])
            raise
        for _, digests in parts:
            self._seen.seal(digests)
        if len(table):
            self._mark.write(offset_of(table) + len(table))
        if not direct:
            self._seen.add(numbered.ids)
            self._unsealed_events += len(table)
            self._unsealed_chunks += 1
        due = self._unsealed_events >= SEAL_EVENTS or self._unsealed_chunks >= SEAL_CHUNKS
        if due and time.monotonic() >= self._retry_at:
            self._wake.set()

    def _write_parts(self, table: pa.Table) -> list[tuple[Stored, Digests]]:
        written: list[tuple[Stored, Digests]] = []
        try:
            for start in range(0, len(table), PART_EVENTS):
                part = self._write_part(table.slice(start, PART_EVENTS), offset_of(table) + start)
                written.append(part)
        except LogError:
            self._discard([part for part, _ in written])
            raise
        return written

    def _write_part(self, table: pa.Table, first: int) -> tuple[Stored, Digests]:
        ids = table.column("id").drop_null().to_pylist() if "id" in table.column_names else []
        digests = sorted_digests(digests_of(ids))
        try:
            part = write_part(self._folder, to_store(table), first)
            save_digests(self._folder / f"{part.name}.ids", digests)
        except OSError as error:
            raise full(self._folder, error) from error
        return part, digests

    def _discard(self, parts: Iterable[Stored]) -> None:
        for part in parts:
            (self._folder / part.name).unlink(missing_ok=True)
            (self._folder / f"{part.name}.ids").unlink(missing_ok=True)

    def _list_part(self, part: Stored, digests: Digests, ids: Sequence[str]) -> None:
        """Replace chunks by the part that holds their events; runs in the committer's thread."""
        try:
            with self._database.transaction():
                replaced = self._database.add_part(part)
        except LogError:
            self._discard([part])
            raise
        self._seen.seal(digests, ids)
        self._unsealed_events -= part.count
        self._unsealed_chunks -= replaced

    def _seal_forever(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._closed:
                return
            try:
                self.seal()
            except LogError as error:  # nothing is lost: the events stay in their chunks
                self._retry_at = time.monotonic() + SEAL_RETRY_S
                logger.warning("could not seal a part, the next attempt is in %.0f s: %s", SEAL_RETRY_S, error)


def offset_of(table: pa.Table) -> int:
    """The offset of a table's first event."""
    return int(table.column("offset")[0].as_py())


def contiguous(chunks: Iterable[Stored]) -> Iterator[Stored]:
    """Chunks joined to runs without a gap, of at most about PART_EVENTS events; checksum and size are not theirs."""
    run: Stored | None = None
    for chunk in chunks:
        if run is not None and chunk.first == run.stop and run.count + chunk.count <= PART_EVENTS:
            run = Stored(run.first, run.count + chunk.count, 0, 0)
            continue
        if run is not None:
            yield run
        run = chunk
    if run is not None:
        yield run


def scan_files(path: Path, folder: Path, schema: pa.Schema, start: int, stop: int) -> Iterator[Batch]:
    """The events of a log with offsets from `start` up to, not including, `stop`, as columns of `schema`."""
    if start >= stop:
        return
    with closing(Database(path, create=False)) as database:
        while start < stop:
            with database.transaction():  # a part that is being listed appears as its chunks leave, never in between
                part = database.part_at(start)
                chunks = [] if part else next_chunks(database, start, stop)
            if part:
                batch = read_part(folder, part, schema)
            elif chunks:
                batch = joined([decode_chunk(chunk, data, schema, str(path)) for chunk, data in chunks])
            else:
                raise LogCorruptError(f"{path}: the event at offset {start} is missing; restore the log from a backup")
            yield batch.slice(start, stop)
            start = batch.stop


def next_chunks(database: Database, start: int, stop: int) -> list[tuple[Stored, bytes]]:
    """The chunks from the one that holds `start`, as many as follow without a gap and make up one batch."""
    taken: list[tuple[Stored, bytes]] = []
    count = 0
    with closing(database.payloads(start, stop)) as payloads:
        for chunk, payload in payloads:
            gap = chunk.first > start if not taken else chunk.first != taken[-1][0].stop
            if gap or count >= SCAN_EVENTS:
                break
            taken.append((chunk, payload))
            count += chunk.count
    return taken
