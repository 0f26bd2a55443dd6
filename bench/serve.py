"""POST /recommend over HTTP at a million items: retrieve 500 of them, read 50 columns of each, rank them with
300 trees or a deep cross network.

The load comes from another process. Beside it stand the bare parts, called in this process on one thread: the user's
vector, the index, the features of 500 candidates, the ranker; and an empty request over HTTP. They are called one after
another as often as requests come, because a part that rests between two requests finds the processor's caches taken
by others, alone or in a service; what each takes in a tight loop is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bench._load import highest_rate, load
from bench._serve_project import project, rankers, towers
from bench._serve_world import Size, make
from bench._server import served
from shortlist.features.table import FeatureTable
from shortlist.ranking.scoring import load_scorer
from shortlist.retrieval.models.towers import Towers
from shortlist.serving.recovery import SNAPSHOT
from shortlist.settings import Settings
from shortlist.training.releases import Registry

PROJECT = Path(__file__).with_name("_serve_project.py")
FULL = Size(items=1_000_000, users=100_000, events=3_000_000)
QUICK = Size(items=60_000, users=10_000, events=60_000, trees=50)
RATE, LIMIT_MS, CANDIDATES = 50.0, 50.0, 500
Result = TypeVar("Result")
WITHIN_HTTP = "user_vector"
"""The empty request computes it, too: it is shown, and not counted twice."""
WHOLE = '"degraded":[]'
"""What an answer says in which no stage was left out; the others count as failed."""


def options(parser: argparse.ArgumentParser) -> None:
    """Which ranker the release has."""
    parser.add_argument("--ranker", choices=list(rankers), default="trees", help="[trees]")


def questions(users: int, count: int = 2_000) -> list[bytes]:
    """Requests for ten items for drawn users."""
    draw = np.random.default_rng(9)
    return [json.dumps({"user": f"user-{n}", "k": 10}).encode() for n in draw.integers(0, users, count)]


@dataclass(frozen=True)
class Parts:
    """Median milliseconds of each bare part: at the rate of the requests, and in a tight loop."""

    paced: dict[str, float]
    hot: dict[str, float]


def parts(folder: Path, size: Size, ranker: str, calls: int) -> Parts:
    """What the parts of a request take, called one after another for drawn users."""
    settings = Settings(folder=folder)
    release = Registry(settings.place("releases")).fetch()
    table = FeatureTable(project.feature_set())
    table.restore(settings.place("state") / SNAPSHOT)
    tower = Towers.load(release.directory / "sources" / towers.name)
    scorer = load_scorer(release.path(f"rankers/{release.manifest.ranker}"))
    names = tuple(name for name in release.manifest.columns if name in table.features.columns)
    columns = (*names, f"{towers.name}_score")
    users = table.entities["user"].hashes[np.random.default_rng(6).integers(0, size.users, calls)]
    histories = [table.read({"user": user}, now_ms(), {}, [tower.history])[tower.history] for user in users[:, None]]

    def once(number: int) -> dict[str, float]:
        user, watch = users[number : number + 1], Watch()
        vector = watch.timed("user_vector", lambda: tower.user_vectors(user, histories[number], {})[0])
        rows, _ = watch.timed("index", lambda: tower.index.search(vector, CANDIDATES))
        ids = {"user": user, "item": tower.items[rows]}
        read = watch.timed("features", lambda: table.read(ids, now_ms(), {}, names))
        matrix = np.vstack([read.values, np.zeros(CANDIDATES)])
        watch.timed(ranker, lambda: scorer.score(matrix, columns))
        return watch.ms

    def medians(rest: float) -> dict[str, float]:
        taken = []
        for number in range(calls):
            time.sleep(rest)
            taken.append(once(number))
        return {name: float(np.median([each[name] for each in taken])) for name in taken[0]}

    medians(0.0)  # the first calls of everything
    return Parts(medians(1 / RATE), medians(0.0))


class Watch:
    """Measures calls by name."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}

    def timed(self, name: str, call: Callable[[], Result]) -> Result:
        """What the call returns; its milliseconds are kept."""
        begun = time.perf_counter()
        result = call()
        self.ms[name] = (time.perf_counter() - begun) * 1000
        return result


def now_ms() -> int:
    """Now, in ms since 1970 UTC."""
    return time.time_ns() // 1_000_000


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the world, serve it, load it."""
    size, seconds = (QUICK, 4.0) if arguments.quick else (FULL, 30.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, size, arguments.ranker)
        bare = parts(folder, size, arguments.ranker, 50 if arguments.quick else 300)
        with served(PROJECT, folder) as service:
            asked = questions(size.users)
            empty = load(service.port, "/rank", [b'{"items":[]}'], seconds / 2, rate=RATE).p50_ms
            seen = load(service.port, "/recommend", asked, seconds, rate=RATE, warm_seconds=2.0, expected=WHOLE)
            if not seen.holds:
                raise RuntimeError(f"answers failed or left stages out, so this says nothing: {seen.statuses}")
            each = 2.0 if arguments.quick else 8.0
            most = highest_rate(service.port, "/recommend", asked, LIMIT_MS, each, expected=WHOLE)
            rss, startup = service.rss_mb, service.startup_s
    paced = {**bare.paced, "http": empty}
    for part, ms in paced.items():
        print(f"{part:12} {ms:7.3f} ms" + (f", in a tight loop {bare.hot[part]:.3f} ms" if part in bare.hot else ""))
    total = sum(ms for part, ms in paced.items() if part != WITHIN_HTTP)
    print(f"{'all parts':12} {total:7.3f} ms; a request {seen.p50_ms:.3f} ms")
    return {
        "ranker": arguments.ranker,
        "p50_ms": round(seen.p50_ms, 2),
        "p99_ms": round(seen.p99_ms, 2),
        "max_rps": round(most, 1),
        "ratio_parts": round(seen.p50_ms / total, 3),
        "rss_mb": round(rss),
        "startup_s": round(startup, 1),
        "parts_ms": {part: round(ms, 3) for part, ms in paced.items()},
        "parts_hot_ms": {part: round(ms, 3) for part, ms in bare.hot.items()},
    }
