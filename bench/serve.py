"""POST /recommend over HTTP at a million items: retrieve 500 of them, read 50 columns of each, rank them with
300 trees or a deep cross network.

The load comes from another process. Beside it stand the bare parts, called in this process on one thread: the user's
vector, the index, the features of 500 candidates, the ranker; and an empty request over HTTP. They are called one after
another as often as requests come, because a part that rests between two requests finds the processor's caches taken
by others, alone or in a service; what each takes in a tight loop is printed beside it. Parts and requests are measured
in turn, and the ratio is the median of theirs: neighbours make one minute a third slower than another.
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
from shortlist.features.hashing import Ids
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
ROUNDS = 5
"""How often parts and requests are measured in turn: a minute of a shared machine is not like the next."""
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


class Bare:
    """The parts of a request on one thread, for drawn users, without the service around them."""

    def __init__(self, folder: Path, size: Size, ranker: str, calls: int) -> None:
        settings = Settings(folder=folder)
        release = Registry(settings.place("releases")).fetch()
        self.table = FeatureTable(project.feature_set())
        self.table.restore(settings.place("state") / SNAPSHOT)
        self.tower = Towers.load(release.directory / "sources" / towers.name)
        self.scorer = load_scorer(release.path(f"rankers/{release.manifest.ranker}"))
        self.ranker, self.calls = ranker, calls
        self.names = tuple(name for name in release.manifest.columns if name in self.table.features.columns)
        self.users = self.table.entities["user"].hashes[np.random.default_rng(6).integers(0, size.users, calls)]
        self.histories = [self.history(user) for user in self.users[:, None]]
        self.medians(0.0)  # the first calls of everything

    def history(self, user: Ids) -> Any:
        """What a user saw last, as the tower is given it."""
        return self.table.read({"user": user}, now_ms(), {}, [self.tower.history])[self.tower.history]

    def medians(self, rest: float) -> dict[str, float]:
        """Median milliseconds of each part, called one after another, with so many seconds between the users."""
        taken = []
        for number in range(self.calls):
            time.sleep(rest)
            taken.append(self.once(number))
        return {name: float(np.median([each[name] for each in taken])) for name in taken[0]}

    def once(self, number: int) -> dict[str, float]:
        """Milliseconds of each part for one user."""
        user, tower, watch = self.users[number : number + 1], self.tower, Watch()
        vector = watch.timed("user_vector", lambda: tower.user_vectors(user, self.histories[number], {})[0])
        rows, _ = watch.timed("index", lambda: tower.index.search(vector, CANDIDATES))
        ids = {"user": user, "item": tower.items[rows]}
        read = watch.timed("features", lambda: self.table.read(ids, now_ms(), {}, self.names))
        matrix = np.vstack([read.values, np.zeros(CANDIDATES)])
        watch.timed(self.ranker, lambda: self.scorer.score(matrix, (*self.names, f"{towers.name}_score")))
        return watch.ms


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


@dataclass(frozen=True)
class Round:
    """Median milliseconds of the parts and of a whole request, measured within seconds of each other."""

    parts: dict[str, float]
    request: float

    @property
    def total(self) -> float:
        """The sum of the parts, none counted twice."""
        return sum(ms for part, ms in self.parts.items() if part != WITHIN_HTTP)


def one_round(bare: Bare, port: int, asked: list[bytes], seconds: float) -> Round:
    """The parts, the empty request and the whole one, in turn."""
    parts = bare.medians(1 / RATE)
    empty = load(port, "/rank", [b'{"items":[]}'], seconds / 2, rate=RATE).p50_ms
    seen = load(port, "/recommend", asked, seconds, rate=RATE, expected=WHOLE)
    return Round({**parts, "http": empty}, seen.p50_ms)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the world, serve it, load it."""
    quick = arguments.quick
    size, seconds, calls = (QUICK, 4.0, 50) if quick else (FULL, 30.0, 100)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, size, arguments.ranker)
        bare = Bare(folder, size, arguments.ranker, calls)
        with served(PROJECT, folder) as service:
            asked = questions(size.users)
            seen = load(service.port, "/recommend", asked, seconds, rate=RATE, warm_seconds=2.0, expected=WHOLE)
            if not seen.holds:
                raise RuntimeError(f"answers failed or left stages out, so this says nothing: {seen.statuses}")
            turns, brief = (2, 2.0) if quick else (ROUNDS, 6.0)
            rounds = [one_round(bare, service.port, asked, brief) for _ in range(turns)]
            most = highest_rate(service.port, "/recommend", asked, LIMIT_MS, 2.0 if quick else 8.0, expected=WHOLE)
            rss, startup = service.rss_mb, service.startup_s
    hot = bare.medians(0.0)
    parts = {part: float(np.median([each.parts[part] for each in rounds])) for part in rounds[0].parts}
    for part, ms in parts.items():
        print(f"{part:12} {ms:7.3f} ms" + (f", in a tight loop {hot[part]:.3f} ms" if part in hot else ""))
    for each in rounds:
        print(f"{'all parts':12} {each.total:7.3f} ms; a request {each.request:.3f} ms")
    return {
        "ranker": arguments.ranker,
        "p50_ms": round(seen.p50_ms, 2),
        "p99_ms": round(seen.p99_ms, 2),
        "max_rps": round(most, 1),
        "ratio_parts": round(float(np.median([each.request / each.total for each in rounds])), 3),
        "rss_mb": round(rss),
        "startup_s": round(startup, 1),
        "parts_ms": {part: round(ms, 3) for part, ms in parts.items()},
        "parts_hot_ms": {part: round(ms, 3) for part, ms in hot.items()},
    }
