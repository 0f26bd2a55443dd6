"""POST /recommend over HTTP at a million items: retrieve 500 of them, read 50 columns of each, rank with 300 trees.

The load comes from another process. Beside it stand the bare parts, each called alone in this process on one thread:
the user's vector, the index, the features of 500 candidates, the trees, and an empty request over HTTP.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench._load import highest_rate, load
from bench._serve_project import project, towers
from bench._serve_world import Size, make
from bench._server import served
from shortlist.features.table import FeatureTable
from shortlist.ranking.scoring import load_scorer
from shortlist.retrieval.towers import Towers
from shortlist.serving.recovery import SNAPSHOT
from shortlist.settings import Settings
from shortlist.training.releases import Registry

PROJECT = Path(__file__).with_name("_serve_project.py")
FULL = Size(items=1_000_000, users=100_000, events=3_000_000)
QUICK = Size(items=60_000, users=10_000, events=60_000, trees=50)
RATE, LIMIT_MS, CANDIDATES = 50.0, 50.0, 500
WHOLE = '"degraded":[]'
"""What an answer says in which no stage was left out; the others count as failed."""


def questions(users: int, count: int = 2_000) -> list[bytes]:
    """Requests for ten items for drawn users."""
    draw = np.random.default_rng(9)
    return [json.dumps({"user": f"user-{n}", "k": 10}).encode() for n in draw.integers(0, users, count)]


def parts(folder: Path, size: Size, calls: int) -> dict[str, float]:
    """Median milliseconds of each bare part."""
    settings = Settings(folder=folder)
    release = Registry(settings.place("releases")).fetch()
    table = FeatureTable(project.feature_set())
    table.restore(settings.place("state") / SNAPSHOT)
    tower = Towers.load(release.directory / "sources" / towers.name)
    scorer = load_scorer(release.path(f"rankers/{release.manifest.ranker}"))
    names = tuple(name for name in release.manifest.columns if name in table.features.columns)
    users = table.entities["user"].hashes[np.random.default_rng(6).integers(0, size.users, calls)]
    now = int(time.time() * 1000)
    histories = [table.read({"user": user}, now, {}, [tower.history])[tower.history] for user in users[:, None]]
    vectors = [tower.user_vectors(user, one, {})[0] for user, one in zip(users[:, None], histories, strict=True)]
    found = [tower.index.search(vector, CANDIDATES)[0] for vector in vectors]
    ids = [{"user": user, "item": tower.items[rows]} for user, rows in zip(users[:, None], found, strict=True)]
    read = [table.read(one, now, {}, names).values for one in ids]
    matrices = [np.vstack([block, np.zeros(CANDIDATES)]) for block in read]
    columns = (*names, f"{towers.name}_score")
    return {
        "user_vector": median(calls, lambda n: tower.user_vectors(users[n : n + 1], histories[n], {})),
        "index": median(calls, lambda n: tower.index.search(vectors[n], CANDIDATES)),
        "features": median(calls, lambda n: table.read(ids[n], now, {}, names)),
        "trees": median(calls, lambda n: scorer.score(matrices[n], columns)),
    }


def median(calls: int, call: Callable[[int], object]) -> float:
    """The median milliseconds of a call with 0, 1, 2, …"""
    taken = []
    for number in range(calls):
        started = time.perf_counter()
        call(number)
        taken.append((time.perf_counter() - started) * 1000)
    return float(np.median(taken))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the world, serve it, load it."""
    size, seconds = (QUICK, 4.0) if arguments.quick else (FULL, 30.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, size)
        bare = parts(folder, size, 50 if arguments.quick else 300)
        with served(PROJECT, folder) as service:
            asked = questions(size.users)
            bare["http"] = load(service.port, "/rank", [b'{"items":[]}'], seconds / 2, rate=RATE).p50_ms
            seen = load(service.port, "/recommend", asked, seconds, rate=RATE, warm_seconds=2.0, expected=WHOLE)
            if not seen.holds:
                raise RuntimeError(f"answers failed or left stages out, so this says nothing: {seen.statuses}")
            each = 2.0 if arguments.quick else 8.0
            most = highest_rate(service.port, "/recommend", asked, LIMIT_MS, each, expected=WHOLE)
            rss, startup = service.rss_mb, service.startup_s
    for part, ms in bare.items():
        print(f"{part:12} {ms:7.3f} ms")
    total = sum(bare.values())
    print(f"{'all parts':12} {total:7.3f} ms; a request {seen.p50_ms:.3f} ms")
    return {
        "p50_ms": round(seen.p50_ms, 2),
        "p99_ms": round(seen.p99_ms, 2),
        "max_rps": round(most, 1),
        "ratio_parts": round(seen.p50_ms / total, 3),
        "rss_mb": round(rss),
        "startup_s": round(startup, 1),
        "parts_ms": {part: round(ms, 3) for part, ms in bare.items()},
    }
