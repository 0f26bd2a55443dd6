"""Items that come, change and go are known to the towers from their event on, without another training."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from shortlist.events.labels import ObservedPositives
from shortlist.events.log import MemoryLog
from shortlist.events.schema import Entity
from shortlist.events.sqlite import SqliteLog
from shortlist.features.definitions import EventType
from shortlist.features.entities import Entities
from shortlist.features.hashing import Hashes, hash_strings
from shortlist.features.program import FeatureSet
from shortlist.features.table import FeatureTable
from shortlist.giving_way import Behind
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Deadline, Query
from shortlist.project import Project
from shortlist.retrieval.asker import Asker
from shortlist.retrieval.catalogue import Catalogue
from shortlist.retrieval.models.item_tower import FACTS, MODEL, TABLES, ItemTower
from shortlist.retrieval.models.towers import Towers, attributes_of
from shortlist.retrieval.models.words import words_of
from shortlist.retrieval.specs import Popular, TwoTower
from shortlist.retrieval.vectors import live_items
from shortlist.retrieval.vectors.index import Vectors
from shortlist.retrieval.vectors.live_items import Describer, LiveItems
from shortlist.retrieval.vectors.nearest import TowerSource
from shortlist.serving.limits import Limits
from shortlist.serving.recovery import recover, take_snapshot
from shortlist.serving.running import Running
from shortlist.training.releases import Manifest, Registry
from shortlist.training.rows import Judged, everyone, observed_positives
from shortlist.training.sources.fitting import Lesson, row_columns
from shortlist.training.towers.data import TowerExamples, TowerItems
from shortlist.training.towers.fitting import fit_towers
from tests import serving_world

FILMS, DAY = 120, 86_400_000
user = Entity("user")
film = Entity("film", genre=str, tags=list[str], year=int, title=str)
watch = EventType("watch", user, film)
history = watch.by(user).last("film", 8)
SPEC = TwoTower(
    history,
    item_attributes=("genre", "tags", "year"),
    item_text=("title",),
    dimensions=16,
    epochs=6,
    batch=128,
    quota=30,
)


def described(n: int, **changes: Any) -> dict[str, Any]:
    """Even films are dramas, odd ones comedies, by everything that is known of them."""
    odd = n % 2
    values = {
        "genre": ("drama", "comedy")[odd],
        "tags": [("sad", "funny")[odd], f"t{n % 3}"],
        "year": 1980 + 20 * odd + n % 7,
        "title": ("The Long Farewell", "A Merry Muddle")[odd],
        **changes,
    }
    return {"kind": "film", "at": DAY, "film": f"f{n}", **values}


class World:
    """A live table and a source over towers that were fitted on its films."""

    def __init__(self, directory: Path, behind: Behind | None = None) -> None:
        self.log = MemoryLog([watch, user.schema, film.schema])
        self.table = FeatureTable(FeatureSet([history], [user, film]))
        self.log.subscribe(self.table.update)
        self.catalogue = Catalogue(self.table, "film")
        self.add(*(described(n) for n in range(FILMS)))
        if not (directory / MODEL).exists():
            fit_towers(SPEC, *self.lesson(), directory, seed=1)
        self.towers = Towers.load(directory)
        self.tower = ItemTower.load(directory, self.towers)
        asker = Asker(self.table, "user")
        self.source = TowerSource("towers", self.towers, self.catalogue, asker, SPEC.quota, (), self.tower, behind)
        self.items = self.source.items

    def add(self, *events: dict[str, Any]) -> None:
        assert not self.log.append(events, received=200 * DAY).refusals

    def lesson(self) -> tuple[TowerExamples, TowerItems]:
        """Who likes dramas likes all of them, and nothing else."""
        draw = np.random.default_rng(0)
        who, n = draw.integers(0, 40, 4_000), 4_000
        what = draw.integers(0, FILMS // 2, n) * 2 + who % 2
        past = draw.integers(0, FILMS // 2, (n, 8)) * 2 + (who % 2)[:, None]
        name = np.array([f"f{n}" for n in range(FILMS)])
        hashes = hash_strings(name[past].ravel().tolist()).reshape(n, 8)
        columns = attributes_of(self.catalogue.entities, SPEC.item_attributes, self.catalogue.hashes())
        columns |= words_of(self.catalogue.entities, SPEC.item_text, self.catalogue.hashes())
        items = TowerItems(self.catalogue.hashes(), columns)
        users = hash_strings([f"u{one}" for one in who])
        return TowerExamples(users, hashes, hash_strings(name[what].tolist()), np.arange(n), {}), items

    def proposed(self, who: str = "u0") -> list[str]:
        query = Query(who, 10, 101 * DAY, "r", Deadline(math.inf))
        return [self.catalogue.entities.ids[item] for item in self.source.propose(query).items]

    def score(self, name: str, who: str = "u0") -> float:
        query = Query(who, 10, 101 * DAY, "r", Deadline(math.inf))
        self.source.propose(query)
        return float(self.source.item_vectors(self.catalogue.index_of([name]))[0] @ self.source.vector(query))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("towers")
    World(place)
    return place


@pytest.fixture
def world(directory: Path) -> World:
    world = World(directory)
    world.add(*({"kind": "watch", "at": 100 * DAY, "user": "u0", "film": f"f{n}"} for n in range(0, 16, 2)))
    return world


def test_the_item_tower_says_what_training_said(world: World) -> None:
    vectors = world.tower.vectors(world.catalogue.entities, world.towers.items)
    assert np.abs(vectors - world.towers.item_vectors).max() < 2e-3  # ids are kept in half precision
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_new_item_is_where_items_like_it_are(world: World) -> None:
    world.add(described(1_000), described(1_001))
    assert world.score("f1000") > 0.5 > 0.0 > world.score("f1001")
    assert world.score("f1000") > np.mean([world.score(f"f{n}") for n in range(1, 40, 2)]) + 0.5
    world.source.quota = 90
    names = world.proposed()
    assert "f1000" in names
    assert names.index("f1000") < (names.index("f1001") if "f1001" in names else 90)
    assert len(set(names)) == 90


def test_what_is_said_of_an_item_later_moves_it(world: World) -> None:
    world.add({"kind": "film", "at": DAY, "film": "bare"})
    bare = world.score("bare")
    world.add({**described(1_000), "film": "bare"})
    assert world.score("bare") > bare + 0.1
    learned = world.score("f1")
    world.add(described(0, film="f1"))
    assert world.score("f1") > learned + 0.1
    assert world.items.index.beside == 2


def test_the_same_said_again_changes_nothing(world: World) -> None:
    before = world.score("f1")
    world.add(*(described(n) for n in range(FILMS)))
    assert world.score("f1") == before
    assert world.items.index.beside == 0


def test_what_is_taken_out_is_not_searched_until_it_is_back(world: World) -> None:
    first, second, *_ = world.proposed()
    world.add({"kind": "film", "at": DAY, "film": first, "available": False})
    world.add({**described(1_000), "available": False})
    assert {first, "f1000"}.isdisjoint(world.proposed())
    assert world.proposed()[0] == second
    world.add({"kind": "film", "at": DAY, "film": first, "available": True})
    assert world.proposed()[0] == first
    world.source.quota = 500
    assert "f1000" not in world.proposed()
    world.add({"kind": "film", "at": DAY, "film": "f1000", "available": True})
    assert "f1000" in world.proposed()
    assert len(world.proposed()) == FILMS + 1


def test_what_was_taken_out_before_the_service_started_is_not_searched(directory: Path) -> None:
    world = World(directory)
    world.add(*({"kind": "film", "at": DAY, "film": f"f{n}", "available": n % 2 == 0} for n in range(FILMS)))
    items = LiveItems(world.towers, world.catalogue, world.tower)
    rows, _ = items.index.search(np.ones(16, np.float32), FILMS)
    assert sorted(items.alignment.items_of(rows).tolist()) == list(range(0, FILMS, 2))
    assert items.index.beside == 0


class Noted:
    """A tower that notes whom it describes."""

    def __init__(self, tower: Describer) -> None:
        self.tower, self.looks_at, self.asked = tower, tower.looks_at, list[int]()

    def vectors(self, items: Entities, hashes: Hashes, positions: NDArray[np.int64] | None = None) -> Vectors:
        self.asked += items.index_of(hashes).tolist()
        return self.tower.vectors(items, hashes, positions)


@pytest.mark.parametrize("from_a_snapshot", [False, True])
def test_a_release_that_is_loaded_again_knows_what_was_said_since_it_was_trained(
    world: World, tmp_path: Path, from_a_snapshot: bool
) -> None:
    told = [described(0, film="f1"), described(1_000), described(1, film="f2"), {**described(5), "available": False}]
    world.add(*told, {"kind": "film", "at": DAY, "film": "f8", "title": "A Merry Muddle"})
    world.proposed()
    items = np.arange(len(world.catalogue), dtype=np.int32)
    before, rows = world.source.item_vectors(items), world.items.alignment.rows_of(items)
    assert world.items.index.beside > 2
    if from_a_snapshot:
        take_snapshot(world.table, tmp_path)
    table, _ = recover(world.table.features, world.log, tmp_path)
    catalogue, tower = Catalogue(table, "film"), Noted(world.tower)
    again = LiveItems(world.towers, catalogue, tower, since=FILMS)
    assert np.array_equal(again.alignment.rows_of(items), rows)
    assert np.abs(again.index.vectors_of(rows) - before).max() < 1e-6
    assert not again.index.finds(again.alignment.rows_of(catalogue.index_of(["f5"])))[0]
    assert sorted(tower.asked) == sorted(catalogue.index_of(["f1", "f1000", "f2", "f8"]).tolist())
    again.follow()
    assert len(tower.asked) == 4


def test_a_release_of_which_nothing_has_changed_describes_nothing_when_it_is_loaded(world: World) -> None:
    tower = Noted(world.tower)
    items = LiveItems(world.towers, world.catalogue, tower, since=FILMS)
    items.follow()
    assert tower.asked == []
    assert items.index.beside == 0


def test_without_an_item_tower_what_is_unknown_stays_unknown(world: World) -> None:
    source = TowerSource("towers", world.towers, world.catalogue, Asker(world.catalogue.table, "user"), 500)
    world.add(described(1_000), {"kind": "film", "at": DAY, "film": "f3", "available": False})
    found = source.propose(Query("u0", 10, 101 * DAY, "r", Deadline(math.inf))).items
    assert len(found) == FILMS - 1
    assert not np.isin(world.catalogue.index_of(["f1000", "f3"]), found).any()
    world.add({"kind": "film", "at": DAY, "film": "f3", "available": True})
    found = source.propose(Query("u0", 10, 101 * DAY, "r", Deadline(math.inf))).items
    assert world.catalogue.index_of(["f3"])[0] in found


def test_much_at_once_is_worked_off_behind_the_requests(directory: Path) -> None:
    world = World(directory, behind=Behind())
    world.source.quota = 100_000
    world.add(*(described(n) for n in range(1_000, 4_000)))
    world.proposed()
    deadline = time.monotonic() + 20
    while len(world.proposed()) != FILMS + 3_000:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert world.score("f2000") > 0.25 > 0.0 > world.score("f2001")


def test_beside_requests_changes_are_looked_for_seldom_and_new_items_at_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_items, "LEISURE", 1e9)
    worlds = World(directory, behind=Behind()), World(directory)
    for world in worlds:
        world.add(described(1_000), described(1_002))
        assert world.score("f1000") > 0.25
        world.add(described(1_001, film="f1000"))
    assert worlds[0].score("f1000") > 0.25 > 0.0 > worlds[1].score("f1000")
    worlds[0].add(described(1_003))
    assert worlds[0].score("f1000") < 0.0


def test_beside_requests_a_change_shows_soon(directory: Path) -> None:
    world = World(directory, behind=Behind())
    world.add(described(1_000))
    assert world.score("f1000") > 0.25
    world.add(described(1_001, film="f1000"))
    deadline = time.monotonic() + 10
    while world.score("f1000") > 0.0:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_there_is_an_end_to_what_is_taken_in(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(directory)
    monkeypatch.setattr(live_items, "MOST", 5)
    monkeypatch.setattr(live_items, "BLOCK", 2)
    world.add(*(described(n) for n in range(1_000, 1_010)))
    world.source.quota = 500
    for _ in range(2):
        assert len(world.proposed()) == FILMS + 4
    assert "f1009" in world.proposed()
    assert caplog.text.count("train again") == 1


class Unsound:
    """A tower that makes no numbers of films of the year 0."""

    def __init__(self, tower: Describer) -> None:
        self.tower, self.looks_at = tower, tower.looks_at

    def vectors(self, items: Entities, hashes: Hashes, positions: NDArray[np.int64] | None = None) -> Vectors:
        vectors = self.tower.vectors(items, hashes, positions)
        year = items.attribute("year")
        assert isinstance(year, np.ndarray)
        return np.where((year[items.index_of(hashes)] == 0)[:, None], np.float32(np.nan), vectors)


def test_an_item_whose_vector_is_not_finite_has_none_and_harms_no_other(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    tower, asker = Unsound(world.tower), Asker(world.table, "user")
    world.source = TowerSource("towers", world.towers, world.catalogue, asker, 500, (), tower)
    learned = world.score("f2")
    world.add(described(1_000, year=0), described(1_002), described(1, film="f2", year=0))
    world.add(described(1, film="f4"), described(1_001, year=0, available=False))
    for _ in range(2):
        names = world.proposed()
        assert len(names) == FILMS + 1
        assert "f1002" in names
        assert "f1000" not in names
    assert world.score("f2") == learned
    assert world.score("f4") < 0.0
    world.add({"kind": "film", "at": DAY, "film": "f2", "available": False})
    assert "f2" not in world.proposed()
    world.add({"kind": "film", "at": DAY, "film": "f2", "available": True})
    assert "f2" in world.proposed()
    again = LiveItems(world.towers, world.catalogue, tower, since=FILMS)
    assert again.alignment.rows_of(world.catalogue.index_of(["f1000", "f1002"]))[0] == -1
    assert caplog.text.count("not finite") == 2  # each of the two that were loaded says so once
    world.add({"kind": "film", "at": DAY, "film": "f1000", "year": 1984})
    assert "f1000" in world.proposed()


def test_training_sees_what_serving_sees_of_a_new_item(world: World, directory: Path) -> None:
    world.add(described(1_000), {"kind": "film", "at": DAY, "film": "bare"})
    project = Project("p", user, film, [watch], ObservedPositives({watch: 1.0}), [history], sources=[SPEC])
    known = everyone(world.log, project, world.log.position)
    positives = observed_positives(world.log, project, known, world.log.position)
    lesson = Lesson(project, project.feature_set(), world.log, known, positives, world.log.position, 0)
    items, rows = world.catalogue.index_of(["f1000", "f2", "bare", "f1000"]), 4
    judged = Judged(
        np.repeat(hash_strings(["u0"]), rows),
        world.catalogue.hashes_of(items),
        np.zeros(rows, np.int64),
        np.full(rows, world.log.position),
        np.full(rows, 101 * DAY),
        np.zeros(rows),
        np.full(rows, np.nan),
    )
    said = row_columns(SPEC, lesson, directory, judged)["two_tower_score"]
    query = Query("u0", 10, 101 * DAY, "r", Deadline(math.inf))
    world.source.propose(query)
    served = world.source.describe(query, Candidates(items)).columns["towers_score"]
    assert said == pytest.approx(served, abs=1e-6)
    assert np.isfinite(served).all()


@pytest.mark.parametrize("name", [MODEL, TABLES, FACTS])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_item_tower_is_refused(directory: Path, tmp_path: Path, name: str, damage: str) -> None:
    shutil.copytree(directory, tmp_path / "copy")
    content = (tmp_path / "copy" / name).read_bytes()
    (tmp_path / "copy" / name).unlink()
    if damage == "cut":
        (tmp_path / "copy" / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="train again"):
        ItemTower.load(tmp_path / "copy", Towers.load(tmp_path / "copy"))


def served() -> Project:
    """The serving world's project, with towers."""
    project = serving_world.project()
    last = serving_world.watch.by(serving_world.user).last("film", 3).named("history")
    towers = replace(SPEC, history=last, item_attributes=("genres", "year"), item_text=(), quota=500)
    return replace(project, sources=[Popular(quota=20), towers])


def publish(folder: Path) -> None:
    """The serving world's release, with towers for whom user n likes films whose number is n modulo 5."""
    version = serving_world.publish(folder)
    settings, draw, n = serving_world.settings_of(folder), np.random.default_rng(0), 4_000
    table = FeatureTable(served().feature_set())
    log = SqliteLog(settings.place("log"), served().schemas, read_only=True)
    for batch in log.scan():
        table.update(batch)
    films = table.entities["film"]
    who = draw.integers(0, 40, n)
    what = [f"film-{5 * one + person % 5}" for one, person in zip(draw.integers(0, 40, n), who, strict=True)]
    columns = attributes_of(films, ("genres", "year"), films.hashes)
    users = hash_strings([f"user-{one}" for one in who])
    examples = TowerExamples(users, np.zeros((n, 3), np.uint64), hash_strings(what), np.arange(n), {})
    registry = Registry(settings.place("releases"))
    before = registry.fetch(version)
    with registry.draft() as draft:
        shutil.copytree(before.directory / "rankers", draft / "rankers")
        spec = served().sources[1]
        fit_towers(spec, examples, TowerItems(films.hashes, columns), draft / "sources" / spec.name)
        manifest = replace(
            before.manifest, fingerprint=served().feature_set().fingerprint, sources=("popular", spec.name)
        )
        assert isinstance(manifest, Manifest)
        registry.promote(registry.publish(draft, manifest).version, "with towers")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("served")
    serving_world.fill(folder)
    publish(folder)
    settings = serving_world.settings_of(folder, deadline_ms=10_000.0)
    with Running(served(), settings, Limits(watch_seconds=0.05)) as server:
        server.wait_ready()
        with httpx.Client(base_url=server.url) as one:
            yield one


def explained(client: httpx.Client, who: str) -> dict[str, Any]:
    answer = client.post("/recommend", json={"user": who, "k": 1_000, "explain": True, "log": False})
    assert answer.status_code == 200, answer.text
    slate: dict[str, Any] = answer.json()
    assert slate["degraded"] == []
    return {item["item"]: item["columns"] for item in slate["explanation"]["items"]}


def test_a_service_that_starts_again_knows_changed_items_as_before(tmp_path: Path) -> None:
    serving_world.fill(tmp_path)
    publish(tmp_path)
    settings, found = serving_world.settings_of(tmp_path, deadline_ms=10_000.0), list[float]()
    told = {"kind": "film", "at": int(time.time() * 1000), "film": "film-4", "genres": ["g2", "g1"], "year": 1994}
    for events in ([], [told], []):
        with Running(served(), settings, Limits(watch_seconds=0.05)) as server:
            server.wait_ready()
            with httpx.Client(base_url=server.url) as client:
                if events:
                    assert client.post("/events", json=events).json()["accepted"] == 1
                found.append(explained(client, "user-4")["film-4"]["two_tower_score"])
    learned, changed, again = found
    assert changed < learned - 0.1
    assert again == pytest.approx(changed, abs=1e-6)


def test_over_http_a_new_item_is_retrieved_by_the_towers_from_its_event_on(client: httpx.Client) -> None:
    assert "alike" not in explained(client, "user-4")
    now = int(time.time() * 1000)
    told = [
        {"kind": "film", "at": now, "film": "alike", "genres": ["g4", "g1"], "year": 1994},
        {"kind": "film", "at": now, "film": "unlike", "genres": ["g2", "g1"], "year": 1994},
    ]
    begun = time.monotonic()
    assert client.post("/events", json=told).json()["accepted"] == 2
    columns = explained(client, "user-4")
    assert time.monotonic() - begun < 1.0
    assert columns["alike"]["two_tower_rank"] is not None
    assert columns["alike"]["two_tower_rank"] < columns["unlike"]["two_tower_rank"]
    assert columns["alike"]["two_tower_score"] > columns["unlike"]["two_tower_score"] + 0.2
    gone = {"kind": "film", "at": now, "film": "alike", "available": False}
    assert client.post("/events", json=gone).json()["accepted"] == 1
    assert "alike" not in explained(client, "user-4")
