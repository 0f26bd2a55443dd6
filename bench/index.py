"""The index while it lives: built, added to, swapped under load, and searched among a part of its rows.

Two threads search one after the other, at a steady rate, the easy vectors of `python -m bench retrieval`: first alone,
then while ten thousand items are added, and while another index is read from disk and takes the first one's place.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from bench.retrieval import DIMENSIONS, K, easy, figures, recall, timed
from shortlist.giving_way import give_way
from shortlist.retrieval.vectors.index import Among, Index, Vectors
from shortlist.retrieval.vectors.ladder import build_index
from shortlist.retrieval.vectors.live_index import LiveIndex

ADDED, AT_ONCE, HELD_OUT = 10_000, 1_024, 256
SHARES = {"1%": 0.01, "10%": 0.1, "50%": 0.5}
SEARCHERS, RATE = 2, 15.0
"""Threads, and searches of each in a second."""


@dataclass
class Load:
    """Threads that keep searching whatever `index` is at that moment; (when, milliseconds) of each search."""

    index: LiveIndex
    queries: Vectors
    taken: list[tuple[float, float]] = field(default_factory=list)
    failed: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._search, args=(n,)) for n in range(SEARCHERS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _search(self, number: int) -> None:
        faiss.omp_set_num_threads(1)
        due = time.perf_counter() + number / RATE / SEARCHERS
        while not self._over.wait(max(0.0, due - time.perf_counter())):
            query, started = self.queries[len(self.taken) % len(self.queries)], time.perf_counter()
            try:
                rows, _ = self.index.search(query, K)
                self.failed += len(set(rows.tolist())) != K
            except Exception as error:
                print(f"  failed: {error!r}", flush=True)
                self.failed += 1
            self.taken.append((started, (time.perf_counter() - started) * 1000))
            due += 1 / RATE

    def during(self, begun: float, ended: float) -> list[float]:
        """The milliseconds of the searches that ran in this time."""
        return [ms for started, ms in self.taken if started <= ended and started + ms / 1000 >= begun]


def added(live: LiveIndex, vectors: Vectors) -> tuple[float, float]:
    """Seconds to add vectors, some at a time, and the most until one of them was found."""
    begun, latest = time.perf_counter(), 0.0
    for start in range(0, len(vectors), AT_ONCE):
        part, came = vectors[start : start + AT_ONCE], time.perf_counter()
        rows = live.add(part)
        found, _ = live.search(part[-1], 1)
        latest = max(latest, time.perf_counter() - came)
        if found[0] != rows[-1]:
            raise RuntimeError("a vector that was added is not the nearest to itself")
    return time.perf_counter() - begun, latest


def swapped(directory: Path, load: Load) -> float:
    """Seconds to read the other index and let it take the place of the one that is searched, as the service does."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(1, "loading", give_way) as loading:
        load.index = loading.submit(lambda: LiveIndex(Index.load(directory))).result()
    return time.perf_counter() - begun


def filtered(index: LiveIndex, vectors: Vectors, queries: Vectors) -> dict[str, Any]:
    """Recall and milliseconds among drawn parts of the rows, and milliseconds among all of them."""
    draw, answer = np.random.default_rng(5), {}
    for name, share in SHARES.items():
        mask = draw.random(len(vectors)) < share
        among, own = Among.mask(mask), np.flatnonzero(mask)
        truth = own[Index.exact(vectors[own]).search(queries, K)[0]].astype(np.int32)
        found = index.search(queries, K, among)[0]
        taken, _ = timed(lambda one, among=among: index.search(one, K, among), queries)  # type: ignore[misc]
        answer[name] = {"recall": round(recall(found, truth), 4), **figures(taken)}
        print(f"  among {name:4} {answer[name]}", flush=True)
    taken, _ = timed(lambda one: index.search(one, K), queries)
    return {"filtered": answer, "unfiltered": figures(taken)}


def paced(load: Load, seconds: float, work: Callable[[], Any]) -> tuple[Any, list[float]]:
    """What some work comes to, and the searches while it was done and for so many seconds after."""
    begun = time.perf_counter()
    done = work()
    time.sleep(seconds)
    return done, load.during(begun, time.perf_counter())


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Build, search alone, search while things change."""
    n, asked, seconds = (100_000, 50, 5.0) if arguments.quick else (1_000_000, 200, 30.0)
    vectors, drawn = easy(n + ADDED, HELD_OUT + asked)
    new, vectors, queries = vectors[n:], vectors[:n], drawn[HELD_OUT:]
    begun = time.perf_counter()
    index = build_index(vectors, drawn[:HELD_OUT], k=K)
    build_s = time.perf_counter() - begun
    print(f"{n} vectors: {index.rung} built in {build_s:.1f} s", flush=True)
    faiss.omp_set_num_threads(1)
    answer = filtered(LiveIndex(index), vectors, queries)
    with tempfile.TemporaryDirectory() as name, Load(LiveIndex(index), queries) as load:
        index.save(Path(name))
        time.sleep(2.0)  # what was written is on its way to the disk
        _, alone = paced(load, seconds, lambda: None)
        (add_s, retrievable_s), adding = paced(load, 1.0, lambda: added(load.index, new))
        swap_s, swapping = paced(load, 1.0, lambda: swapped(Path(name), load))
    p99, slowest = float(np.percentile(alone, 99)), max(*adding, *swapping)
    for title, taken in (("alone", alone), ("adding", adding), ("swapping", swapping)):
        print(f"  {title:9} {len(taken)} searches, {figures(np.array(taken))}, slowest {max(taken):.1f} ms", flush=True)
    return {
        "vectors": n,
        "dimensions": DIMENSIONS,
        "k": K,
        "rung": index.rung,
        "build_s": round(build_s, 1),
        "add_10000_s": round(add_s, 3),
        "retrievable_s": round(retrievable_s, 4),
        "swap_s": round(swap_s, 2),
        "p99_before_ms": round(p99, 2),
        "slowest_ms": round(slowest, 2),
        "slowest_over_p99": round(slowest / p99, 2),
        "failed": load.failed,
        **answer,
    }
