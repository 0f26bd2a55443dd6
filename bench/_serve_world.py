"""The world of `python -m bench serve`: a log, its state, and a release whose item vectors are drawn, not learned.

Towers over a million items take hours to learn; how long an answer takes does not depend on what they learned. So the
towers are fitted on a handful of users, and then given a drawn vector for every item (rank 32 plus noise) and a drawn
embedding for every user. Everything else is made as a user would: events into the log, a ranker fitted on rows, a
release published and promoted.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bench._serve_project import project, rankers, towers
from shortlist.events.sqlite import SqliteLog
from shortlist.features.hashing import Hashes
from shortlist.features.table import FeatureTable
from shortlist.ranking.specs import LambdaMART, RankerSpec
from shortlist.retrieval.models.towers import HISTORY, INDEX, USERS, VOCABULARY, attributes_of
from shortlist.retrieval.vectors.ladder import build_index
from shortlist.serving.recovery import take_snapshot
from shortlist.settings import Settings
from shortlist.training.rankers.fitting import RankingData, fit_ranker
from shortlist.training.releases import Manifest, Registry
from shortlist.training.towers.data import TowerExamples, TowerItems
from shortlist.training.towers.fitting import fit_towers

DAY_MS = 86_400_000
RANK, NOISE = 32, 0.1
BLOCK = 200_000
REQUESTS, ROWS = 800, 60


@dataclass(frozen=True)
class Size:
    """How large the world is."""

    items: int
    users: int
    events: int
    trees: int = 300


def make(folder: Path, size: Size, ranker: str) -> None:
    """The log, a snapshot of its state, and the champion release with one of the project's rankers."""
    settings = Settings(folder=folder)
    settings.place("log").parent.mkdir(parents=True)
    log = SqliteLog(settings.place("log"), project.schemas)
    table = FeatureTable(project.feature_set())
    log.subscribe(table.update)
    begun = time.perf_counter()
    for events in (*catalogue(size), *actions(size)):
        receipt = log.append(events)
        if receipt.refusals:
            raise RuntimeError(f"{len(receipt.refusals)} events were refused: {receipt.refusals[0].reason}")
    log.close()
    print(f"{table.position:,} events logged in {time.perf_counter() - begun:.0f} s", flush=True)
    take_snapshot(table, settings.place("state"))
    spec = rankers[ranker]
    publish(table, settings, replace(spec, trees=size.trees) if isinstance(spec, LambdaMART) else spec)


def catalogue(size: Size) -> list[pa.Table]:
    """The events that declare users and items, a month ago."""
    draw = np.random.default_rng(1)
    at = int(time.time() * 1000) - 31 * DAY_MS
    users = pa.table(
        {
            "kind": pa.array(["user"] * size.users),
            "at": np.full(size.users, at),
            "user": [f"user-{n}" for n in range(size.users)],
            "age": draw.integers(15, 90, size.users),
        }
    )
    items = pa.table(
        {
            "kind": pa.array(["item"] * size.items),
            "at": np.full(size.items, at),
            "item": [f"item-{n}" for n in range(size.items)],
            "category": [f"category-{n}" for n in draw.integers(0, 200, size.items)],
            "price": draw.gamma(2.0, 20.0, size.items),
            "year": draw.integers(1990, 2026, size.items),
            "length": draw.gamma(3.0, 30.0, size.items),
        }
    )
    return [part.slice(start, BLOCK) for part in (users, items) for start in range(0, len(part), BLOCK)]


def actions(size: Size) -> list[pa.Table]:
    """A month of views and clicks, Zipf items, nine views to a click."""
    draw = np.random.default_rng(2)
    now = int(time.time() * 1000)
    at = np.sort(draw.integers(now - 30 * DAY_MS, now, size.events))
    clicked = draw.random(size.events) < 0.1
    item = (draw.zipf(1.15, size.events) - 1) % size.items
    told = pa.table(
        {
            "kind": np.where(clicked, "click", "view"),
            "at": at,
            "user": [f"user-{n}" for n in draw.integers(0, size.users, size.events)],
            "item": [f"item-{n}" for n in item],
            "seconds": pa.array(draw.gamma(2.0, 20.0, size.events), mask=clicked),
        }
    )
    return [told.slice(start, BLOCK) for start in range(0, len(told), BLOCK)]


def publish(table: FeatureTable, settings: Settings, spec: RankerSpec) -> None:
    """The release: drawn towers, their index, a ranker fitted on drawn rows."""
    registry = Registry(settings.place("releases"))
    with registry.draft() as draft:
        begun = time.perf_counter()
        draw_towers(table, draft / "sources" / towers.name)
        print(f"towers and index made in {time.perf_counter() - begun:.0f} s", flush=True)
        begun = time.perf_counter()
        fitted = fit_ranker(spec, training_rows(table), None, draft / "rankers" / spec.name, seed=1)
        seconds = time.perf_counter() - begun
        print(f"{spec.name} of {len(fitted.columns)} columns fitted in {seconds:.0f} s: {fitted.figures}", flush=True)
        manifest = Manifest(
            project=project.name,
            seed=1,
            log_position=table.position,
            fingerprint=table.features.fingerprint,
            ranker=spec.name,
            rankers=(spec.name,),
            sources=tuple(source.name for source in project.sources),
            columns=fitted.columns,
            metrics={},
        )
        registry.promote(registry.publish(draft, manifest).version, "bench")


def draw_towers(table: FeatureTable, directory: Path) -> None:
    """Towers fitted on a thousand items, then widened to everyone with drawn vectors."""
    users, items = table.entities["user"].hashes, table.entities["item"].hashes
    few, draw = items[:1_000], np.random.default_rng(3)
    category = attributes_of(table.entities["item"], ["category"], few)
    examples = TowerExamples(
        draw.choice(users, 2_000),
        draw.choice(few, (2_000, 50)).view(np.int64),
        draw.choice(few, 2_000),
        np.arange(2_000),
        {},
    )
    fit_towers(towers, examples, TowerItems(few, category), directory, epochs=1)
    widen(directory, np.sort(users), np.sort(items))


def widen(directory: Path, users: Hashes, items: Hashes) -> None:
    """Give every user an embedding and every item a vector: rank 32 plus noise, of length 1."""
    draw = np.random.default_rng(4)
    user_table, history_table = np.load(directory / USERS), np.load(directory / HISTORY)
    with np.load(directory / VOCABULARY, allow_pickle=False) as held:
        vocabulary = {name: held[name] for name in held.files}
    np.savez(directory / VOCABULARY, **{**vocabulary, "users": users, "items": items})
    np.save(directory / USERS, user_table[draw.integers(0, len(user_table), len(users) + 1)])
    np.save(directory / HISTORY, history_table[draw.integers(0, len(history_table), len(items) + 1)])
    build_index(low_rank(len(items), towers.dimensions, draw), k=towers.quota, seed=1).save(directory / INDEX)


def low_rank(count: int, dimensions: int, draw: np.random.Generator) -> NDArray[np.float32]:
    """Vectors of length 1 that are rank 32 plus noise: the easy set of `python -m bench retrieval`."""
    basis = draw.standard_normal((RANK, dimensions), np.float32)
    vectors = np.empty((count, dimensions), np.float32)
    for start in range(0, count, BLOCK):
        part = vectors[start : start + BLOCK]
        part[:] = draw.standard_normal((len(part), RANK), np.float32) @ basis / np.sqrt(RANK)
        part += NOISE * draw.standard_normal(part.shape, np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def training_rows(table: FeatureTable) -> RankingData:
    """Drawn requests with the columns of the project and a drawn similarity, and two actions that depend on these."""
    draw = np.random.default_rng(5)
    now = int(time.time() * 1000)
    names = tuple(name for name in table.features.columns if not name.startswith(("seen_", "popularity_")))
    users, items = table.entities["user"].hashes, table.entities["item"].hashes
    size = REQUESTS * ROWS
    ids = {
        "user": np.repeat(draw.choice(users, REQUESTS), ROWS),
        "item": items[(draw.zipf(1.15, size) - 1) % len(items)],
    }
    read = table.read(ids, now, {}, names)
    score = draw.normal(0.1, 0.1, size)
    taste = 5 * score + 10 * np.nan_to_num(read["item_ctr_7d"])
    clicked = taste + draw.normal(0.0, 0.5, size) > np.quantile(taste, 0.8)
    return RankingData(
        np.vstack([read.values, score]),
        (*names, f"{towers.name}_score"),
        clicked.astype(np.float64),
        np.repeat(np.arange(REQUESTS), ROWS),
        actions={"click": clicked, "view": clicked | (taste > np.quantile(taste, 0.5))},
        blend=project.objective.proxies,
    )
