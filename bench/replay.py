"""Replay: a log into a training set, beside a bare kernel written by hand, DuckDB and Feast.

Drawn data: events with Zipf keys over 90 days, training rows at random log positions; per key 5 windows x (sum,
count, max). The bare kernel is for just these 15 features and starts from arrays: dense integer keys, times, values.
Ours starts from the log: it hashes and indexes string keys, and interprets the definitions. Both sort, both run on
one thread, in one process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numba import njit
from numpy.typing import NDArray

from bench.peers import environment
from shortlist.events.log import MemoryLog
from shortlist.events.schema import Entity
from shortlist.features.columns import Columns, Rows
from shortlist.features.definitions import EventType
from shortlist.features.program import FeatureSet
from shortlist.features.replay import replay
from shortlist.framing.durations import UNITS_MS, duration_ms

WINDOWS = ("5m", "1h", "1d", "7d", "30d")
START = 1_750_000_000_000
SPAN = 90 * UNITS_MS["d"]
FEAST_SCRIPT = Path(__file__).with_name("_feast_replay.py")

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Drawn:
    """Events in log order and training rows, as arrays."""

    key: Integers
    at: Integers
    amount: NDArray[np.float64]
    row_key: Integers
    row_position: Integers
    row_now: Integers


def draw(events: int, rows: int, keys: int, seed: int) -> Drawn:
    """Zipf (exponent 1) keys, arrival in time order; a row asks at the time of the event at its position."""
    rng = np.random.default_rng(seed)
    share = np.cumsum(1 / np.arange(1, keys + 1))
    shuffled = rng.permutation(keys)
    key = shuffled[np.searchsorted(share / share[-1], rng.random(events))]
    at = START + np.sort(rng.integers(0, SPAN, events))
    amount = np.round(rng.gamma(2.0, 30.0, events), 2)
    position = np.sort(rng.integers(1, events, rows))
    row_key = np.where(rng.random(rows) < 0.9, key[position], rng.integers(0, keys, rows))
    return Drawn(key, at, amount, row_key, position, at[position])


def declared() -> tuple[MemoryLog, FeatureSet]:
    """An empty log, and the 15 features."""
    user = Entity("user")
    pay = EventType("pay", user, amount=float)
    by = pay.by(user)
    features = [f for over in WINDOWS for f in (by.sum("amount", over), by.count(over), by.max("amount", over))]
    return MemoryLog([pay]), FeatureSet(features, (user,))


def names_of(keys: Integers) -> pa.Array:
    """Ids as text: "u0", "u1", ..."""
    unique = pa.array([f"u{i}" for i in range(int(keys.max()) + 1)])
    return unique.take(pa.array(keys))


HOPS = tuple(duration_ms(over) // 12 for over in WINDOWS)
RINGS = tuple(13 + -(-300_000 // hop) for hop in HOPS)
MOST = max(RINGS)


@njit(cache=True, error_model="numpy")
def bare_sorted(key, at, amount, keys):  # type: ignore[no-untyped-def]
    """A stable counting sort of events by key."""
    start = np.zeros(keys + 1, np.int64)
    for i in range(len(key)):
        start[key[i] + 1] += 1
    for k in range(keys):
        start[k + 1] += start[k]
    cursor = start[:-1].copy()
    position, when, value = np.empty(len(key), np.int64), np.empty(len(key), np.int64), np.empty(len(key))
    for i in range(len(key)):
        place = cursor[key[i]]
        cursor[key[i]] = place + 1
        position[place], when[place], value[place] = i, at[i], amount[i]
    return start, position, when, value


@njit(cache=True, error_model="numpy")
def bare(key, at, amount, row_key, row_position, row_now, keys):  # type: ignore[no-untyped-def]
    """Sums, counts and maxima in rings of tiles for 5 windows, for one key at a time; out[row, 3 * window + i]."""
    start, position, when, value = bare_sorted(key, at, amount, keys)
    read_start, _, read, _ = bare_sorted(row_key, np.arange(len(row_key)), np.zeros(len(row_key)), keys)
    out = np.empty((len(row_key), 15))
    tiles = np.empty((5, MOST, 3))
    head, tail, slot = np.empty(5, np.int64), np.empty(5, np.int64), np.empty(5, np.int64)
    for k in range(keys):
        head[:] = -(1 << 62)
        tail[:] = -(1 << 62)
        slot[:] = 0
        i = start[k]
        for j in range(read_start[k], read_start[k + 1] + 1):
            last = j == read_start[k + 1]
            if last:
                break
            r = read[j]
            while i < start[k + 1] and position[i] < row_position[r]:
                for w in range(5):
                    bucket = when[i] // HOPS[w]
                    ring = RINGS[w]
                    place = slot[w]
                    if bucket > head[w]:
                        step = bucket - head[w]
                        if step >= ring:
                            place = 0
                            tail[w] = bucket
                            tiles[w, 0, 0] = 0.0
                            tiles[w, 0, 1] = 0.0
                            tiles[w, 0, 2] = -np.inf
                        else:
                            for _ in range(step):
                                place = place + 1 if place + 1 < ring else 0
                                tiles[w, place, 0] = 0.0
                                tiles[w, place, 1] = 0.0
                                tiles[w, place, 2] = -np.inf
                            tail[w] = max(tail[w], bucket - ring + 1)
                        head[w] = bucket
                        slot[w] = place
                    elif bucket < head[w]:
                        back = head[w] - bucket
                        if back >= ring:
                            continue
                        for older in range(head[w] - tail[w] + 1, back + 1):
                            empty = (place - older) % ring
                            tiles[w, empty, 0] = 0.0
                            tiles[w, empty, 1] = 0.0
                            tiles[w, empty, 2] = -np.inf
                        tail[w] = min(tail[w], bucket)
                        place = (place - back) % ring
                    tiles[w, place, 0] += value[i]
                    tiles[w, place, 1] += 1.0
                    tiles[w, place, 2] = max(tiles[w, place, 2], value[i])
                i += 1
            for w in range(5):
                newest = row_now[r] // HOPS[w]
                oldest = max(newest - 12, tail[w])
                total, count, most = 0.0, 0.0, -np.inf
                place = slot[w] - (head[w] - oldest)
                if place < 0:
                    place += RINGS[w]
                for _ in range(min(newest, head[w]) - oldest + 1):
                    total += tiles[w, place, 0]
                    count += tiles[w, place, 1]
                    most = max(most, tiles[w, place, 2])
                    place = place + 1 if place + 1 < RINGS[w] else 0
                out[r, 3 * w] = total
                out[r, 3 * w + 1] = count
                out[r, 3 * w + 2] = most if most != -np.inf else np.nan
    return out


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `work` took, and what it returned."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def best_of(repeats: int, *works: Callable[[], Any]) -> list[tuple[float, Any]]:
    """The least time of each work and its result, the works taking turns, so that a noisy machine is fair."""
    best: list[tuple[float, Any]] = [(np.inf, None)] * len(works)
    for _ in range(repeats):
        for number, work in enumerate(works):
            best[number] = min(best[number], timed(work), key=lambda pair: pair[0])
    return best


def duckdb_seconds(drawn: Drawn, counts: NDArray[np.float64]) -> float:
    """Range windows in DuckDB, one thread: exact sliding windows over events and rows together.

    Raises AssertionError where a window of ours, which covers L to L + H, counts less than an exact one.
    """
    connection = duckdb.connect()
    connection.execute("SET threads = 1")
    events = pa.table({"key": drawn.key, "moment": drawn.at, "amount": drawn.amount})
    asked = pa.table({"key": drawn.row_key, "moment": drawn.row_now, "place": np.arange(len(drawn.row_key))})
    connection.register("events", events)
    connection.register("asked", asked)
    columns, windows = [], []
    for number, over in enumerate(WINDOWS):
        columns += [
            f"sum(amount) OVER w{number}",
            f"count(amount) OVER w{number} AS n{number}",
            f"max(amount) OVER w{number}",
        ]
        frame = f"RANGE BETWEEN {duration_ms(over)} PRECEDING AND 1 PRECEDING"
        windows.append(f"w{number} AS (PARTITION BY key ORDER BY moment {frame})")
    query = (
        "CREATE TABLE joined AS SELECT * FROM (SELECT place, " + ", ".join(columns) + " FROM ("
        "SELECT key, moment, amount, NULL AS place FROM events UNION ALL SELECT key, moment, NULL, place FROM asked) "
        "WINDOW " + ", ".join(windows) + ") WHERE place IS NOT NULL"
    )
    seconds, _ = timed(lambda: connection.execute(query))
    exact = connection.execute("SELECT n0, n1, n2, n3, n4 FROM joined ORDER BY place").fetchnumpy()
    if any((counts[number] < exact[f"n{number}"]).any() for number in range(len(WINDOWS))):
        raise AssertionError("a window covers less than its length")
    return seconds


def feast_seconds_per_row(events: int, rows: int, keys: int) -> float:
    """Feast's point-in-time join of one column per row of a smaller draw, in its own environment."""
    drawn = draw(events, rows, keys, seed=1)
    moment = pa.timestamp("ms", tz="UTC")
    python = environment("feast", "feast[redis]==0.67.0")
    with TemporaryDirectory() as place:
        paid = {"user": names_of(drawn.key), "event_timestamp": pa.array(drawn.at).cast(moment), "amount": drawn.amount}
        asked = {"user": names_of(drawn.row_key), "event_timestamp": pa.array(drawn.row_now).cast(moment)}
        pq.write_table(pa.table(paid), Path(place) / "events.parquet")
        pq.write_table(pa.table(asked), Path(place) / "rows.parquet")
        output = subprocess.run([python, FEAST_SCRIPT, place], check=True, capture_output=True, text=True).stdout
    return float(json.loads(output.splitlines()[-1])["seconds"]) / rows


def options(parser: argparse.ArgumentParser) -> None:
    """Which peers to leave out."""
    parser.add_argument("--without-feast", action="store_true")
    parser.add_argument("--without-duckdb", action="store_true")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time everything, and check that all agree."""
    quick = arguments.quick
    events, rows, keys = (1_000_000, 100_000, 10_000) if quick else (10_000_000, 1_000_000, 100_000)
    drawn = draw(events, rows, keys, seed=1)
    asked = Rows({"user": names_of(drawn.row_key)}, drawn.row_position, drawn.row_now)
    log, features = logged(drawn)
    small = draw(1000, 100, 10, seed=2)
    bare(small.key, small.at, small.amount, small.row_key, small.row_position, small.row_now, 10)

    def by_hand() -> NDArray[np.float64]:
        result: NDArray[np.float64] = bare(
            drawn.key, drawn.at, drawn.amount, drawn.row_key, drawn.row_position, drawn.row_now, keys
        )
        return result

    (bare_s, expected), (ours_s, columns) = best_of(5, by_hand, lambda: replay(log, features, asked))
    check(columns, expected)
    print(f"{events:,} events, {rows:,} rows, {keys:,} keys, 15 features, one thread; seconds, best of 5 in turns")
    print(f"  bare kernel, from arrays with dense keys {bare_s:9.2f}")
    print(f"  replay, from the log                     {ours_s:9.2f}   {ours_s / bare_s:.2f}x the bare kernel")
    figures: dict[str, Any] = {"seconds": round(ours_s, 3), "ratio_bare": round(ours_s / bare_s, 2)}
    if not arguments.without_duckdb:
        seconds = duckdb_seconds(drawn, columns.values[1::3])
        print(f"  DuckDB range windows                     {seconds:9.2f}   {seconds / ours_s:.0f}x ours")
        figures["speedup_duckdb"] = round(seconds / ours_s, 1)
    if not arguments.without_feast:
        size = (10_000, 1_000, 100) if quick else (50_000, 5_000, 500)
        per_row = feast_seconds_per_row(*size)
        ratio = per_row / (ours_s / rows)
        print(f"  Feast point-in-time join, per row        {per_row * 1e6:7.0f}us   {ratio:.0f}x ours per row")
        print(f"    (one column, {size[0]:,} events and {size[1]:,} rows: its join grows with their product per key)")
        figures["speedup_feast"] = round(ratio, 1)
    return figures


def logged(drawn: Drawn) -> tuple[MemoryLog, FeatureSet]:
    """The drawn events in a log, and the 15 features."""
    log, features = declared()
    kind = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(drawn.key), np.int8)), pa.array(["pay"]))
    table = pa.table({"kind": kind, "at": drawn.at, "user": names_of(drawn.key), "amount": drawn.amount})
    if log.append(table, received=int(drawn.at[-1])).accepted != len(drawn.key):
        raise AssertionError("the log refused drawn events")
    return log, features


def check(columns: Columns, expected: NDArray[np.float64]) -> None:
    """Raise AssertionError where ours and the bare kernel differ in any bit of counts, sums or maxima."""
    if not np.array_equal(columns.values, expected.T, equal_nan=True):
        raise AssertionError("replay and the bare kernel differ")
