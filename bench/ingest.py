"""Durable events a second: the log as a library, then over HTTP, and how soon an event is a feature.

The library part appends JSON batches of 1,000 events, as a server receives them, from one thread; every append returns
after its events are flushed to the disk. Beside it: a bare SQLite table with the same flushes, one row per event.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from bench._ingest_http import events_over_http
from shortlist.events.schema import Entity, EventSchema
from shortlist.events.sqlite import SqliteLog

USER, ITEM = Entity("user", country=str), Entity("item", title=str)
VIEW = EventSchema("view", (USER, ITEM), {"seconds": float, "device": str | None})
CLICK = EventSchema("click", (USER, ITEM))
SCHEMAS = [USER.schema, ITEM.schema, VIEW, CLICK]
BATCH = 1_000
BUDGET_PER_S = 100_000


def batches(count: int, seed: int = 0) -> list[bytes]:
    """Batches of BATCH events as JSON arrays: nine views to a click, Zipf items, every event with an id."""
    draw = np.random.default_rng(seed)
    now = int(time.time() * 1000)
    made: list[bytes] = []
    for place in range(count):
        users, items = draw.integers(0, 100_000, BATCH), draw.zipf(1.3, BATCH) % 50_000
        seconds = draw.gamma(2.0, 20.0, BATCH)
        events: list[dict[str, Any]] = []
        for n in range(BATCH):
            event = {"id": f"{seed}-{place}-{n}", "at": now, "user": f"user-{users[n]}", "item": f"item-{items[n]}"}
            view = {"kind": "view", "seconds": float(seconds[n]), "device": "tv"}
            events.append({**event, **(view if n % 10 else {"kind": "click"})})
        made.append(json.dumps(events).encode())
    return made


def library(bodies: list[bytes], folder: Path) -> float:
    """Events a second that one thread appends."""
    with closing(SqliteLog(folder / "log.db", SCHEMAS)) as log:
        start = time.perf_counter()
        for body in bodies:
            receipt = log.append(body)
            if receipt.accepted != BATCH:
                raise RuntimeError(f"{BATCH} events were appended and {receipt.accepted} accepted")
        return len(bodies) * BATCH / (time.perf_counter() - start)


def singles(folder: Path, threads: int, each: int) -> float:
    """Events a second that many threads append one by one, each flushed to the disk before the next."""
    body = '{"kind":"click","at":1,"user":"u","item":"i","id":"%d-%d"}'

    def work(thread: int) -> None:
        for n in range(each):
            log.append((body % (thread, n)).encode())

    with closing(SqliteLog(folder / "singles.db", SCHEMAS)) as log:
        workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return threads * each / (time.perf_counter() - start)


def bare_sqlite(bodies: list[bytes], folder: Path) -> float:
    """Events a second into a table of SQLite with an index on the id, a commit with full sync per batch."""
    with closing(sqlite3.connect(folder / "bare.db", isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE event(place INTEGER PRIMARY KEY, id TEXT UNIQUE, at INTEGER, content TEXT)")
        start = time.perf_counter()
        for body in bodies:
            rows = [(event["id"], event["at"], json.dumps(event)) for event in json.loads(body)]
            database.execute("BEGIN")
            database.executemany("INSERT OR IGNORE INTO event(id, at, content) VALUES (?, ?, ?)", rows)
            database.execute("COMMIT")
        return len(bodies) * BATCH / (time.perf_counter() - start)


def scan(folder: Path) -> float:
    """Events a second that are read back, every column."""
    with closing(SqliteLog(folder / "log.db", SCHEMAS, read_only=True)) as log:
        start = time.perf_counter()
        count = sum(len(batch.table) for batch in log.scan())
        return count / (time.perf_counter() - start)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures `library_events_per_s`, `http_events_per_s` and `visible_p99_ms`, and those of the parts beside them."""
    bodies = batches(300 if arguments.quick else 3_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = {
            "library_events_per_s": round(library(bodies, folder)),
            "scan_events_per_s": round(scan(folder)),
            "single_events_per_s": round(singles(folder, 16, 200 if arguments.quick else 2_000)),
            "bare_sqlite_events_per_s": round(bare_sqlite(bodies[: 300 if arguments.quick else 1_000], folder)),
        }
    over_http = events_over_http(arguments.quick)
    print(f"{'durable events a second':<44}{'measured':>12}{'budget':>12}")
    print(f"{'library, batches of 1,000':<44}{figures['library_events_per_s']:>12,}{BUDGET_PER_S:>12,}")
    print(f"{'bare SQLite table, the same batches':<44}{figures['bare_sqlite_events_per_s']:>12,}")
    print(f"{'library, single events from 16 threads':<44}{figures['single_events_per_s']:>12,}")
    print(f"{'scan of what was stored':<44}{figures['scan_events_per_s']:>12,}")
    print(f"{'HTTP, batches of 1,000':<44}{over_http['http_events_per_s']:>12,}")
    print(f"{'event to visible in features, p99 ms':<44}{over_http['visible_p99_ms']:>12}{100:>12}")
    return {**figures, **over_http}
