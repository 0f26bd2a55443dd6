"""Bring your own candidates: POST /rank and POST /events over HTTP, the load from another process.

The shape that a public re-ranker (Metarank 0.7.11) was measured in on the same kind of machine: 2,512 items, 18
features, 116 trees. It answered 100 items in 2.8/5.9 ms (p50/p99) and 500 in 13.1/18.4 ms, 749 requests/s at most,
and took 1,500 to 2,700 events/s, in memory only; here every event is on the disk before it is answered.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench._load import Figures, load
from bench._rank_project import project
from bench._server import served
from shortlist.events.sqlite import SqliteLog
from shortlist.features.columns import Columns
from shortlist.features.table import FeatureTable
from shortlist.ranking.specs import LambdaMART
from shortlist.settings import Settings
from shortlist.training.rankers.fitting import RankingData, fit_ranker
from shortlist.training.releases import Manifest, Registry

PROJECT = Path(__file__).with_name("_rank_project.py")
ITEMS, USERS, TREES = 2_512, 10_000, 116
REQUESTS, ROWS = 600, 50
DAY_MS = 86_400_000
WHOLE = '"degraded":[]'
RATE = 100.0
"""Requests a second while latency is measured."""


def history(events: int, seed: int = 1) -> list[Mapping[str, Any]]:
    """A month of views and clicks on Zipf items, and the items themselves."""
    draw = np.random.default_rng(seed)
    now = int(time.time() * 1000)
    first = now - 30 * DAY_MS
    price, year = draw.gamma(2.0, 20.0, ITEMS), draw.integers(1990, 2026, ITEMS)
    told: list[Mapping[str, Any]] = [
        {
            "kind": "item",
            "at": first,
            "item": f"item-{i}",
            "category": f"category-{i % 40}",
            "price": float(p),
            "year": y,
        }
        for i, (p, y) in enumerate(zip(price, year.tolist(), strict=True))
    ]
    at = np.sort(draw.integers(first, now, events)).tolist()
    users = draw.integers(0, USERS, events).tolist()
    items = ((draw.zipf(1.2, events) - 1) % ITEMS).tolist()
    seconds, clicks = draw.gamma(2.0, 20.0, events).tolist(), draw.random(events) < 0.1
    for t, u, i, s, clicked in zip(at, users, items, seconds, clicks, strict=True):
        told.append({"kind": "view", "at": t, "user": f"user-{u}", "item": f"item-{i}", "seconds": s})
        if clicked:
            told.append({"kind": "click", "at": t, "user": f"user-{u}", "item": f"item-{i}"})
    return told


def prepare(folder: Path, events: int) -> int:
    """A log and a promoted release with 116 trees in `folder`; returns how many trees there are."""
    settings = Settings(folder=folder)
    settings.place("log").parent.mkdir(parents=True)
    log = SqliteLog(settings.place("log"), project.schemas)
    log.append(history(events))
    features = project.feature_set()
    table = FeatureTable(features)
    for batch in log.scan():
        table.update(batch)
    registry = Registry(settings.place("releases"))
    spec = LambdaMART(trees=TREES)
    with registry.draft() as draft:
        fitted = fit_ranker(spec, training_rows(table), None, draft / "rankers" / spec.name, seed=1)
        manifest = Manifest(
            project=project.name,
            seed=1,
            log_position=log.position,
            fingerprint=features.fingerprint,
            ranker=spec.name,
            rankers=(spec.name,),
            sources=("popular",),
            columns=fitted.columns,
            metrics={},
        )
        registry.promote(registry.publish(draft, manifest).version, "bench")
    log.close()
    return int(fitted.figures["trees"])


def training_rows(table: FeatureTable) -> RankingData:
    """Requests of 50 drawn items each; what has many clicks and suits the user is acted on more often."""
    draw = np.random.default_rng(2)
    now = int(time.time() * 1000)
    names = tuple(name for name in table.features.columns if not name.startswith(("seen_", "popularity_")))
    users = np.repeat(draw.integers(0, USERS, REQUESTS), ROWS)
    items = draw.integers(0, ITEMS, REQUESTS * ROWS)
    ids = {"user": [f"user-{u}" for u in users], "item": [f"item-{i}" for i in items]}
    read: Columns = table.read(ids, now, {}, names)
    taste = np.nan_to_num(read["user_view_share_item_category"]) * 5 + 20 * np.nan_to_num(read["item_ctr_30d"])
    gain = (taste + draw.normal(0.0, 1.0, len(items)) > 2.5).astype(np.float64)
    return RankingData(read.values, names, gain, np.repeat(np.arange(REQUESTS), ROWS))


def questions(count: int, size: int, seed: int) -> list[bytes]:
    """Requests to rank `size` different items for a drawn user."""
    draw = np.random.default_rng(seed)
    return [
        json.dumps(
            {
                "user": f"user-{draw.integers(0, USERS)}",
                "items": [f"item-{i}" for i in draw.choice(ITEMS, size, replace=False)],
            }
        ).encode()
        for _ in range(count)
    ]


def single_events(count: int) -> list[bytes]:
    """One event each."""
    draw = np.random.default_rng(4)
    now = int(time.time() * 1000)
    return [
        json.dumps(
            {
                "kind": "click",
                "at": now,
                "user": f"user-{draw.integers(0, USERS)}",
                "item": f"item-{draw.integers(0, ITEMS)}",
            }
        ).encode()
        for _ in range(count)
    ]


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure and compare."""
    seconds = 4.0 if arguments.quick else 20.0
    with tempfile.TemporaryDirectory() as folder:
        trees = prepare(Path(folder), 30_000 if arguments.quick else 100_000)
        with served(PROJECT, Path(folder)) as service:
            small, large = questions(400, 100, 1), questions(200, 500, 2)
            latency = {
                100: load(service.port, "/rank", small, seconds, rate=RATE, expected=WHOLE),
                500: load(service.port, "/rank", large, seconds, rate=RATE, expected=WHOLE),
            }
            most = max(
                (load(service.port, "/rank", small, seconds, connections=n, expected=WHOLE) for n in (2, 4)), key=_rps
            )
            events = max(
                (load(service.port, "/events", single_events(2_000), seconds, connections=n) for n in (32, 64)),
                key=_rps,
            )
            rss = service.rss_mb
    for name, seen in {"rank 100": latency[100], "rank 500": latency[500], "most": most, "events": events}.items():
        print(f"{name:10} {seen.rps:8.0f}/s  p50 {seen.p50_ms:6.2f} ms  p99 {seen.p99_ms:6.2f} ms")
        if not seen.holds:
            raise RuntimeError(f"{name}: some requests failed: {seen.statuses}")
    return {
        "p50_100_ms": round(latency[100].p50_ms, 2),
        "p99_100_ms": round(latency[100].p99_ms, 2),
        "p50_500_ms": round(latency[500].p50_ms, 2),
        "p99_500_ms": round(latency[500].p99_ms, 2),
        "max_rps": round(most.rps),
        "single_events_per_s": round(events.rps),
        "trees": trees,
        "rss_mb": round(rss),
    }


def _rps(seen: Figures) -> float:
    return seen.rps
