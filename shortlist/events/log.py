"""The log: everything that is known is an event in it, and an offset is what "known by then" means."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa

from shortlist.events.batch import Batch, joined
from shortlist.events.columnar import admit_table
from shortlist.events.door import Admitted, Door, Row, clock_ms
from shortlist.events.identity import SeenIds
from shortlist.events.reasons import Refusal
from shortlist.events.schema import Event, EventSchema
from shortlist.framing.problems import nearest

Submitted: TypeAlias = Iterable[Event | Mapping[str, Any]] | pa.Table | bytes | Admitted
"""What a log takes: events, flat mappings, JSON (object, array or lines), an Arrow table with the events' columns or
anything that turns into one (a frame of pandas or polars), and what its own door has admitted before."""
Listener = Callable[[Batch], None]


class LogError(Exception):
    """The log cannot do what was asked; the message says where, what was found and what to do."""


class LogFullError(LogError):
    """There is no room on the disk. Nothing of the append is stored; the log works again once there is room."""


class LogCorruptError(LogError):
    """What is stored is not what was written."""


class LogLockedError(LogError):
    """Another process writes to this log."""


@dataclass(frozen=True)
class Receipt:
    """What became of an append: counts of events, and each refused one with its reason.

    `position` is an offset up to which everything of this append is known (features that have reached it include it).
    """

    accepted: int
    duplicates: int
    position: int
    refusals: list[Refusal] = field(default_factory=list)


@dataclass(frozen=True)
class Progress:
    """How far an import has come: `rows` of the source `source`, whose content has the digest `digest`, are stored."""

    source: str
    digest: str
    rows: int


class EventLog(Protocol):
    """An append-only log of events, in the order in which they were learned."""

    door: Door

    def append(self, events: Submitted, received: int | None = None) -> Receipt:
        """Check and store events; returns when they are durable and every listener has seen them.

        `received` is when they were learned, ms UTC: the clock's time where it is not given. An event whose id is in
        the log already is a duplicate and is not stored again. Raises LogError.
        """

    def submit(self, events: Submitted, received: int | None = None) -> Future[Receipt]:
        """`append` without waiting: for servers that await many appends at once (`asyncio.wrap_future`)."""

    def scan(self, start: int = 0, stop: int | None = None, columns: Sequence[str] | None = None) -> Iterator[Batch]:
        """The events with offsets from `start` up to, not including, `stop` (default: all that are known), in order.

        `columns`: only these beside offset, at, received and kind, which is faster. Raises KeyError for an unknown one,
        LogError (LogCorruptError) where what is stored cannot be read.
        """

    @property
    def position(self) -> int:
        """The offset that the next event will get: the number of events known."""

    def append_imported(self, events: Submitted, progress: Progress) -> Receipt:
        """Append history: each event counts as received when it happened; `progress` is stored with it, atomically."""

    def progress(self, source: str) -> Progress | None:
        """How far the import of `source` has come; None where there was none."""

    def subscribe(self, listener: Listener, start: int | None = None) -> None:
        """Call `listener` with every batch committed from now on, once, in offset order, before `append` returns.

        With `start` it first gets the events stored from that offset on, and no append slips in between. A listener
        must not append. Where it raises, the events stay stored and whoever appended them gets its exception.
        """

    def close(self) -> None:
        """Finish what was submitted and let go of the files."""


@dataclass(frozen=True)
class Numbered:
    """Events with their offsets, ready to be stored; `ids` become known once they are durable."""

    table: pa.Table
    receipts: list[Receipt]
    ids: set[str]


def admit(door: Door, events: Submitted, received: int | None) -> Admitted:
    """Check whatever a log takes."""
    if isinstance(events, Admitted):
        return events
    if hasattr(events, "__arrow_c_stream__"):
        return admit_table(door, pa.table(events), received)
    if isinstance(events, bytes):
        return door.admit_json(events, received)
    return door.admit(events, received)


def number(door: Door, group: Sequence[Admitted], seen: SeenIds, position: int) -> Numbered:
    """Drop duplicates, give offsets from `position` on, and join a group of submissions into one table."""
    tables: list[pa.Table] = []
    rows: list[Row] = []
    learned: list[tuple[int | None, int]] = []
    receipts: list[Receipt] = []
    pending: set[str] = set()
    for admitted in group:
        ids = admitted.ids
        kept = seen.fresh(ids, pending)
        accepted = len(admitted) if kept is None else len(kept)
        if admitted.table is not None:
            tables += [door.tabulate(rows)] if rows else []
            rows = []
            tables.append(admitted.table if kept is None else admitted.table.take(pa.array(kept, pa.int64())))
        else:
            rows += admitted.rows if kept is None else [admitted.rows[place] for place in kept]
        learned.append((admitted.received, accepted))
        position += accepted
        receipts.append(Receipt(accepted, len(admitted) - accepted, position, admitted.refusals))
    tables += [door.tabulate(rows)] if rows else []
    table = pa.concat_tables(tables, promote_options="default") if tables else door.columns.empty_table()
    return Numbered(with_envelope(table, learned, position - len(table)), receipts, pending)


def with_envelope(table: pa.Table, learned: list[tuple[int | None, int]], first: int) -> pa.Table:
    """The events with the columns `offset` and `received` before their own."""
    at = table.column("at")
    counts = [count for _, count in learned]
    given = np.repeat(np.array([when is not None for when, _ in learned]), counts)
    times = np.repeat(np.array([when or 0 for when, _ in learned], np.int64), counts)
    received = pa.array(times) if given.all() else pa.array(np.where(given, times, at.to_numpy()))
    offsets = pa.array(np.arange(first, first + len(table), dtype=np.int64))
    head = {"offset": offsets, "id": table.column("id"), "at": at, "received": received, "kind": table.column("kind")}
    own = {name: table.column(name) for name in table.column_names if name not in head}
    return pa.table({**head, **own})


ALWAYS = ("offset", "at", "received", "kind")
"""The columns that every scan has."""

SCAN_EVENTS = 131_072
"""How many events a scan joins into one batch, at least, where they were stored in smaller ones."""


def selected(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """The part of the log's schema that a scan of `columns` has. Raises KeyError for a column that it lacks."""
    if columns is None:
        return schema
    for name in columns:
        if name not in schema.names:
            raise KeyError(f"the log has no column {name!r}; {nearest(name, schema.names)}")
    return pa.schema([column for column in schema if column.name in ALWAYS or column.name in columns])


def in_larger_batches(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same events in batches of about SCAN_EVENTS or more, so that work per batch does not count."""
    waiting: list[Batch] = []
    count = 0
    for batch in batches:
        waiting.append(batch)
        count += len(batch)
        if count >= SCAN_EVENTS:
            yield joined(waiting)
            waiting, count = [], 0
    if waiting:
        yield joined(waiting)


def tell(listeners: Iterable[Listener], batch: Batch) -> None:
    """Call every listener, then raise the first exception that one of them raised."""
    failed: list[Exception] = []
    for listener in listeners:
        try:
            listener(batch)
        except Exception as error:  # the others must see the batch all the same
            failed.append(error)
    if failed:
        raise failed[0]


class MemoryLog:
    """A log that is gone with its process: for tests, simulations and notebooks."""

    def __init__(self, schemas: Iterable[EventSchema]) -> None:
        self.door = Door(schemas)
        self._batches: list[Batch] = []
        self._starts: list[int] = []
        self._position = 0
        self._seen = SeenIds()
        self._progress: dict[str, Progress] = {}
        self._listeners: list[Listener] = []
        self._lock = Lock()

    @property
    def position(self) -> int:
        """The offset that the next event will get."""
        return self._position

    def append(self, events: Submitted, received: int | None = None) -> Receipt:
        """See `EventLog.append`."""
        return self._store(admit(self.door, events, clock_ms() if received is None else received))

    def submit(self, events: Submitted, received: int | None = None) -> Future[Receipt]:
        """See `EventLog.submit`; memory is never waited for, so the future is done already."""
        future: Future[Receipt] = Future()
        future.set_result(self.append(events, received))
        return future

    def append_imported(self, events: Submitted, progress: Progress) -> Receipt:
        """See `EventLog.append_imported`."""
        return self._store(admit(self.door, events, None), progress)

    def progress(self, source: str) -> Progress | None:
        """See `EventLog.progress`."""
        return self._progress.get(source)

    def subscribe(self, listener: Listener, start: int | None = None) -> None:
        """See `EventLog.subscribe`."""
        with self._lock:
            for batch in self.scan(self._position if start is None else start):
                listener(batch)
            self._listeners.append(listener)

    def scan(self, start: int = 0, stop: int | None = None, columns: Sequence[str] | None = None) -> Iterator[Batch]:
        """See `EventLog.scan`."""
        schema = selected(self.door.columns, columns)
        end = self._position if stop is None else min(stop, self._position)
        first = max(0, bisect_right(self._starts, start) - 1)
        last = bisect_right(self._starts, end - 1)
        parts = (batch.slice(start, end) for batch in self._batches[first:last])
        return in_larger_batches(Batch(part.stored, schema) for part in parts if len(part))

    def close(self) -> None:
        """Nothing to finish and nothing to let go of."""

    def _store(self, admitted: Admitted, progress: Progress | None = None) -> Receipt:
        with self._lock:
            numbered = number(self.door, [admitted], self._seen, self._position)
            self._seen.add(numbered.ids)
            if progress is not None:
                self._progress[progress.source] = progress
            if len(numbered.table):
                batch = Batch(numbered.table, self.door.columns)
                self._batches.append(batch)
                self._starts.append(self._position)
                self._position = batch.stop
                tell(self._listeners, batch)
            return numbered.receipts[0]
