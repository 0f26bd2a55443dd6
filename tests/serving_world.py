"""A small catalogue with its log, trained rankers and published releases: what the tests of serving stand on."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shortlist.events.labels import ObservedPositives
from shortlist.events.schema import Entity
from shortlist.events.sqlite import SqliteLog
from shortlist.features.definitions import EventType, request_feature
from shortlist.features.table import FeatureTable
from shortlist.project import Project
from shortlist.ranking.specs import LogisticRegression
from shortlist.retrieval.specs import Popular
from shortlist.serving.limits import Limits
from shortlist.serving.running import Running
from shortlist.settings import Settings
from shortlist.training.rankers.fitting import RankingData, fit_ranker
from shortlist.training.releases import Manifest, Registry

FILMS, USERS = 200, 40
DAY_MS = 86_400_000

user = Entity("user", age=int)
film = Entity("film", genres=list[str], year=int)
watch = EventType("watch", user, film, seconds=float | None)


@request_feature
def film_age(now: Any, film_year: Any) -> Any:
    """Years since the film came out."""
    return now / 31_556_952_000 + 1970 - film_year


def project() -> Project:
    return Project(
        name="films",
        user=user,
        item=film,
        events=[watch],
        labels=ObservedPositives({watch: 1.0}),
        features=[
            watch.by(user).count().named("watched"),
            watch.by(film).count().named("popularity"),
            watch.by(film).count("1d").named("hot"),
            watch.by(user).share("film.genres"),
            watch.by(user).last("film", 3).named("history"),
            film_age,
        ],
        sources=[Popular(quota=50)],
        rankers=[LogisticRegression()],
        context={"device": str | None, "minutes": float},
    )


def settings_of(folder: Path, **changes: Any) -> Settings:
    return replace(Settings(port=0, folder=folder), **changes)


def fill(folder: Path, films: int = FILMS, users: int = USERS) -> None:
    """A log in which low-numbered films are the popular ones and user-0 has watched film-0 to film-9."""
    path = settings_of(folder).place("log")
    path.parent.mkdir(parents=True, exist_ok=True)
    log = SqliteLog(path, project().schemas)
    now = int(time.time() * 1000) - DAY_MS
    draw = np.random.default_rng(7)
    events: list[dict[str, Any]] = [
        {"kind": "film", "at": now, "film": f"film-{n}", "genres": [f"g{n % 5}", f"g{n % 3}"], "year": 1990 + n % 30}
        for n in range(films)
    ]
    events += [{"kind": "user", "at": now, "user": f"user-{n}", "age": 20 + n} for n in range(users)]
    if films and users:
        chosen = (draw.zipf(1.4, 2_000) - 1) % films
        who = draw.integers(1, users, 2_000) if users > 1 else np.zeros(2_000, np.int64)
        events += [
            {"kind": "watch", "at": now + 1 + place, "user": f"user-{u}", "film": f"film-{f}", "seconds": 60.0}
            for place, (u, f) in enumerate(zip(who.tolist(), chosen.tolist(), strict=True))
        ]
        events += [
            {"kind": "watch", "at": now + 5_000, "user": "user-0", "film": f"film-{n}"} for n in range(min(10, films))
        ]
    if events:
        log.append(events)
    log.close()


def publish(folder: Path, seed: int = 0, promote: bool = True, fingerprint: str = "") -> str:
    """Train a ranker on drawn pairs and publish it; returns the version."""
    features = project().feature_set()
    log = SqliteLog(settings_of(folder).place("log"), project().schemas, read_only=True)
    table = FeatureTable(features)
    for batch in log.scan():
        table.update(batch)
    draw = np.random.default_rng(seed)
    users = [f"user-{n}" for n in draw.integers(0, USERS, 400)]
    films = [f"film-{n}" for n in draw.integers(0, FILMS, 400)]
    read = table.read({"user": users, "film": films}, int(time.time() * 1000), {}, features.columns)
    gain = (np.nan_to_num(read["popularity"]) > draw.integers(5, 20)).astype(float)
    gain[::20] = 1.0 - gain[::20]
    data = RankingData(read.values, features.columns, gain, np.repeat(np.arange(20), 20))
    registry = Registry(settings_of(folder).place("releases"))
    ranker = LogisticRegression()
    with registry.draft() as draft:
        fit_ranker(ranker, data, None, draft / "rankers" / ranker.name, seed)
        manifest = Manifest(
            project="films",
            seed=seed,
            log_position=log.position,
            fingerprint=fingerprint or features.fingerprint,
            ranker=ranker.name,
            rankers=(ranker.name,),
            sources=("popular",),
            columns=features.columns,
            metrics={"ndcg@10": 0.2 + seed / 100, "popularity.ndcg@10": 0.1, "recall@100": None},
        )
        release = registry.publish(draft, manifest)
    if promote:
        registry.promote(release.version, "for the test")
    return release.version


def running(folder: Path, limits: Limits | None = None, **settings: Any) -> Running:
    return Running(project(), settings_of(folder, **settings), limits or Limits(watch_seconds=0.05))
