"""Features of one request: the user's, and 20 windowed features of each of 500 candidates, read in process.

The whole `FeatureTable.read` call is timed, one thread, a table that is larger than the processor's caches, a random
user and random candidates each time. Beside it Feast with Redis on the same machine: 20 stored values of 500 entities.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bench.peers import environment
from shortlist.events.log import MemoryLog
from shortlist.events.schema import Entity
from shortlist.features.definitions import EventType
from shortlist.features.program import FeatureSet
from shortlist.features.table import FeatureTable
from shortlist.framing.durations import UNITS_MS

START = 1_750_000_000_000
CANDIDATES = 500
FEAST_SCRIPT = Path(__file__).with_name("_feast_online.py")


def declared() -> tuple[MemoryLog, FeatureSet]:
    """An empty log, and 20 windowed features of a film, 5 of a user and a list of 50."""
    user, film = Entity("user"), Entity("film")
    watch, shown = EventType("watch", user, film, seconds=float), EventType("shown", user, film)
    features = []
    for over in ("1h", "1d", "7d", "30d"):
        its, seen = watch.by(film), shown.by(film)
        features += [its.count(over), its.sum("seconds", over), its.mean("seconds", over), its.max("seconds", over)]
        features.append(seen.count(over))
    mine = watch.by(user)
    features += [mine.count("1d"), mine.count("30d"), mine.mean("seconds", "30d"), mine.time_since()]
    features += [mine.decayed_count("7d"), mine.last("film", 50)]
    return MemoryLog([watch, shown]), FeatureSet(features, (user, film))


def filled(events: int, users: int, films: int) -> tuple[FeatureTable, int, float]:
    """A table after so many drawn events (Zipf films, 30 days), the time of the last, and the seconds of updating."""
    rng = np.random.default_rng(1)
    log, features = declared()
    table = FeatureTable(features)
    share = np.cumsum(1 / np.arange(1, films + 1))
    film = rng.permutation(films)[np.searchsorted(share / share[-1], rng.random(events))]
    film[:films] = np.arange(films)
    at = START + np.sort(rng.integers(0, 30 * UNITS_MS["d"], events))
    watched = rng.random(events) < 0.3
    drawn = pa.table(
        {
            "kind": np.where(watched, "watch", "shown"),
            "at": at,
            "user": ids("u", users).take(pa.array(rng.integers(0, users, events))),
            "film": ids("f", films).take(pa.array(film)),
            "seconds": pa.array(rng.gamma(2.0, 600.0, events), mask=~watched),
        }
    )
    if log.append(drawn, received=int(at[-1])).accepted != events:
        raise AssertionError("the log refused drawn events")
    start = time.perf_counter()
    for batch in log.scan():
        table.update(batch)
    return table, int(at[-1]), time.perf_counter() - start


def ids(prefix: str, count: int) -> pa.Array:
    """Ids as text: "u0", "u1", ..."""
    return pa.array([f"{prefix}{number}" for number in range(count)])


def read_times(table: FeatureTable, now: int, users: int, repeats: int) -> NDArray[np.float64]:
    """Milliseconds of each of `repeats` reads."""
    rng = np.random.default_rng(2)
    films = table.entities["film"].hashes
    times = np.empty(repeats)
    for number in range(repeats):
        asked: dict[str, Any] = {
            "user": [f"u{rng.integers(users)}"],
            "film": films[rng.integers(0, len(films), CANDIDATES)],
        }
        start = time.perf_counter()
        columns = table.read(asked, now + number)
        times[number] = (time.perf_counter() - start) * 1000
        if columns.values.shape != (25, CANDIDATES):
            raise AssertionError(f"read {columns.values.shape} values")
    return times[repeats // 10 :]


@contextmanager
def redis(directory: str) -> Iterator[int]:
    """A Redis server on a free loopback port, stopped at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", directory, "--save", ""]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait()


def feast_times(entities: int) -> dict[str, float]:
    """p50_ms and p99_ms of Feast reading 20 stored values of 500 entities from Redis."""
    python = environment("feast", "feast[redis]==0.67.0")
    with TemporaryDirectory() as directory, redis(directory) as port:
        sizes = [str(entities), "20", str(CANDIDATES)]
        command = [str(python), str(FEAST_SCRIPT), directory, str(port), *sizes]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time reads of ours, then Feast's."""
    quick = arguments.quick
    events, users, films = (500_000, 50_000, 20_000) if quick else (5_000_000, 100_000, 100_000)
    table, now, seconds = filled(events, users, films)
    times = read_times(table, now, users, 1_000 if quick else 10_000)
    p50, p99 = np.percentile(times, [50, 99])
    size = sum(state.rows.nbytes for state in table.states) / 2**20
    print(f"{events:,} events of {users:,} users and {films:,} films, {size:,.0f} MiB of state, one thread")
    print(f"  update, in batches                 {events / seconds:12,.0f} events/s")
    print(f"  read: 1 user, {CANDIDATES} x 20 windowed       p50 {p50:.3f} ms   p99 {p99:.3f} ms")
    figures = {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3), "update_per_s": round(events / seconds)}
    if shutil.which("redis-server") is None:
        print("  Feast with Redis: left out, there is no redis-server on this machine")
        return figures
    theirs = feast_times(2_000 if quick else 10_000)
    shown = f"p50 {theirs['p50_ms']:.1f} ms   p99 {theirs['p99_ms']:.1f} ms"
    print(f"  Feast, Redis: {CANDIDATES} x 20 stored values     {shown}")
    return {
        **figures,
        "feast_p50_ms": round(theirs["p50_ms"], 1),
        "speedup_feast": round(theirs["p50_ms"] / float(p50), 1),
    }
