"""Only these: requests that want one category or region get the best of it, however rare it is, from every source."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from shortlist.events.labels import ObservedPositives
from shortlist.events.log import MemoryLog
from shortlist.events.schema import Entity
from shortlist.features.definitions import EventType
from shortlist.features.program import FeatureSet
from shortlist.features.table import FeatureTable
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Deadline, Query
from shortlist.pipeline.stages import Filter, Source
from shortlist.retrieval.asker import Asker
from shortlist.retrieval.catalogue import Catalogue
from shortlist.retrieval.eligibility import Available, NotSeen, Where
from shortlist.retrieval.fresh import FreshSource
from shortlist.retrieval.models.factors import Factors
from shortlist.retrieval.models.item_weights import HistorySource, ItemWeights
from shortlist.retrieval.popular import PopularSource
from shortlist.retrieval.popularity import Popularity
from shortlist.retrieval.specs import Popular, popularity_features, retrieval_features, seen_features
from shortlist.retrieval.vectors.ladder import build_index
from shortlist.retrieval.vectors.nearest import ENOUGH, TowerSource
from shortlist.serving.cache import key_of
from tests.serving_world import fill, publish, running

user = Entity("user")
film = Entity("film", genre=str, regions=list[str], year=int, offered=bool)
watch = EventType("watch", user, film)
history = watch.by(user).last("film", 20)
labels = ObservedPositives({watch: 1.0})
DAY, FILMS = 86_400_000, 6_000


class World:
    """A catalogue in which every hundredth film is rare, and sources over it."""

    def __init__(self, films: int = FILMS) -> None:
        self.log = MemoryLog([watch, user.schema, film.schema])
        needed = [history, *retrieval_features([Popular()], labels, {watch: None}, user, film)]
        self.table = FeatureTable(FeatureSet(needed, [user, film]))
        self.log.subscribe(self.table.update)
        self.catalogue = Catalogue(self.table, "film")
        self.where = Where(self.catalogue)
        seen = {feature.name: limit for feature, limit in seen_features({watch: None}, user, film)}
        not_seen = NotSeen(self.catalogue, "user", seen)
        self.filters: list[Filter] = [Available(self.catalogue), self.where, not_seen]
        self.add(*(described(n) for n in range(films)))

    def add(self, *events: dict[str, Any]) -> None:
        receipt = self.log.append(events, received=200 * DAY)
        assert not receipt.refusals

    def ask(self, **where: Any) -> Query:
        query = Query("me", 10, 101 * DAY, "r", Deadline(math.inf), where={n: tuple(v) for n, v in where.items()})
        for name, value in self.where.learn(query).items():
            query.learn(name, value)
        return query

    def meant(self, **where: Any) -> list[int]:
        mask = self.where.allowed(self.ask(**where))
        assert mask.shape == (len(self.catalogue),)
        everything = Candidates(np.arange(len(self.catalogue), dtype=np.int32))
        assert np.array_equal(self.where.keep(self.ask(**where), everything), mask)
        return np.flatnonzero(mask).tolist()

    def sources(self, quota: int) -> dict[str, Source]:
        hashes, draw = self.catalogue.hashes(), np.random.default_rng(0)
        vectors = draw.standard_normal((len(hashes), 16), dtype=np.float32)
        factors = Factors(history.name, hashes, vectors, build_index(vectors, k=50, exact_below=1_000))
        assert factors.index.codes is not None
        starts = np.arange(len(hashes) + 1, dtype=np.int64) * 3_000
        columns = np.concatenate([draw.permutation(len(hashes))[:3_000] for _ in hashes[:50]]).astype(np.int32)
        few = np.minimum(starts, len(columns))
        weights = ItemWeights(hashes, few, columns, draw.random(len(columns), np.float32))
        popular = popularity_features(labels, film, Popular().half_life)
        names, gains = [feature.name for feature, _ in popular], [gain for _, gain in popular]
        counted = Popularity(self.catalogue, names, gains, Popular().half_life)
        asker = Asker(self.catalogue.table, "user")
        return {
            "popular": PopularSource("popular", counted, quota, self.filters),
            "fresh": FreshSource("fresh", self.catalogue, quota, self.filters),
            "nearest": TowerSource("factors", factors, self.catalogue, asker, quota, self.filters),
            "weights": HistorySource("w", weights, self.catalogue, asker, history.name, quota, self.filters),
        }


def described(n: int, **changes: Any) -> dict[str, Any]:
    values = {
        "genre": "rare" if n % 100 == 7 else f"g{n % 3}",
        "regions": [f"r{n % 2}", f"r{n % 5 + 2}"],
        "year": 1990 + n % 10,
        "offered": n % 10 != 0,
        **changes,
    }
    return {"kind": "film", "at": DAY, "film": f"f{n}", **values}


@pytest.fixture(scope="module")
def world() -> World:
    world = World()
    world.add(*({"kind": "watch", "at": 100 * DAY, "user": "me", "film": f"f{n}"} for n in range(20)))
    world.add(*({"kind": "watch", "at": 100 * DAY, "user": f"u{n}", "film": f"f{n * 3}"} for n in range(900)))
    return world


def test_values_of_texts_lists_numbers_and_flags_are_found(world: World) -> None:
    films = range(FILMS)
    assert world.meant(genre=["rare"]) == [n for n in films if n % 100 == 7]
    assert world.meant(genre=["rare", "g1", "unheard of"]) == [n for n in films if n % 100 == 7 or n % 3 == 1]
    assert world.meant(regions=["r1"]) == [n for n in films if n % 2 == 1]
    assert world.meant(year=[1991.0, 1992]) == [n for n in films if n % 10 in (1, 2)]
    assert world.meant(offered=[False], regions=["r0"]) == [n for n in films if n % 10 == 0]
    assert world.meant(genre=["unheard of"]) == []


@pytest.mark.parametrize("few", [True, False])
def test_what_events_change_is_known_at_once(few: bool) -> None:
    world = World(400)
    before = world.meant(genre=["g1"])
    changed = before[:3] if few else before[:90]
    world.add(*(described(n, genre="g9") for n in changed), {"kind": "film", "at": DAY, "film": "new", "genre": "g9"})
    world.add({"kind": "watch", "at": DAY, "user": "x", "film": "never described"})
    assert world.meant(genre=["g9"]) == [*changed, 400]
    assert world.meant(genre=["g1"]) == before[len(changed) :]
    world.add(described(400, genre="g1"))
    for _ in range(3):  # so many versions that the table forgets those that are superseded
        world.add(*(described(n) for n in range(400)))
    for _ in range(5):
        world.add(*(described(n, year=2000) for n in range(400)))
    assert world.meant(genre=["g9"]) == [400]
    assert world.meant(year=[2000]) == list(range(400))


def test_a_world_without_items_has_none_that_are_meant() -> None:
    assert World(0).meant(genre=["g1"]) == []


@pytest.mark.parametrize("source", ["popular", "fresh", "nearest", "weights"])
@pytest.mark.parametrize(
    "where", [{"genre": ["rare"]}, {"genre": ["g1"]}, {"genre": ["rare"], "year": [1997]}, {"genre": ["nowhere"]}]
)
def test_every_source_proposes_the_best_of_what_is_meant(
    world: World, source: str, where: dict[str, list[Any]]
) -> None:
    """As many, and the same, as it would propose if it proposed everything and then dropped what is not meant."""
    quota = 40
    found = world.sources(quota)[source].propose(world.ask(**where)).items
    everything = world.sources(FILMS)[source].propose(world.ask()).items
    meant = everything[np.isin(everything, world.meant(**where))]
    expected = min(quota, len(meant))
    assert (ENOUGH * expected if source == "nearest" else expected) <= len(found) <= expected
    assert np.isin(found, world.meant(**where)).all()
    if source == "popular":  # ties may fall either way
        views = np.bincount([n * 3 for n in range(900)], minlength=FILMS)
        assert views[found].tolist() == views[meant[:quota]].tolist()
    else:
        assert np.isin(found, meant[:quota]).sum() >= 0.98 * len(found)


@pytest.mark.parametrize("source", ["popular", "fresh", "nearest", "weights"])
def test_no_source_looks_at_much_more_than_what_is_meant(world: World, source: str) -> None:
    class Counting:
        name, asked = "counting", 0

        def keep(self, query: Query, candidates: Candidates) -> NDArray[np.bool_]:  # noqa: ARG002
            Counting.asked += len(candidates)
            return np.ones(len(candidates), np.bool_)

    world.filters.insert(0, Counting())
    found = world.sources(40)[source].propose(world.ask(genre=["rare"]))
    world.filters.pop(0)
    assert len(found) >= 20
    assert Counting.asked <= 2 * len(world.meant(genre=["rare"]))


def test_answers_that_are_kept_are_kept_by_what_was_asked(world: World) -> None:
    keys = {key_of("r", world.ask(**where)) for where in ({}, {"genre": ["g1"]}, {"genre": ["g2"]}, {"year": [1991]})}
    assert len(keys) == 4
    assert key_of("r", world.ask(genre=["g1", "g2"])) == key_of("r", world.ask(genre=["g2", "g1"]))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    place: Path = tmp_path_factory.mktemp("served")
    fill(place)
    publish(place)
    with running(place, deadline_ms=10_000.0) as server:
        server.wait_ready()
        with httpx.Client(base_url=server.url) as one:
            yield one


def ask(client: httpx.Client, **body: Any) -> list[str]:
    answer = client.post("/recommend", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["degraded"] == []
    return [ranked["item"] for ranked in answer.json()["items"]]


def test_a_request_says_what_it_wants(client: httpx.Client) -> None:
    of_1999 = {f"film-{n}" for n in range(200) if n % 30 == 9}
    assert set(ask(client, user="user-1", k=1_000, where={"year": [1999]})) <= of_1999
    assert set(ask(client, user="newcomer", k=1_000, where={"year": [1999]})) == of_1999
    both = ask(client, user="newcomer", k=3, where={"year": [1999, 1993], "genres": ["g4"]})
    assert len(both) == 3
    assert {int(name[5:]) % 30 in (9, 3) for name in both} == {True}
    assert ask(client, user="newcomer", where={"genres": ["no such genre"]}) == []


def test_what_is_new_or_taken_out_changes_what_is_meant(client: httpx.Client) -> None:
    event = {"kind": "film", "at": int(time.time() * 1000), "film": "premiere", "year": 2050}
    assert ask(client, user="user-1", where={"year": [2050]}) == []
    client.post("/events", json=event)
    assert ask(client, user="user-1", where={"year": [2050]}) == ["premiere"]
    client.post("/events", json={**event, "available": False})
    assert ask(client, user="user-1", where={"year": [2050]}) == []


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ({"genre": ["g1"]}, "'film' has no attribute 'genre'; did you mean 'genres'? - at `$.where`"),
        ({"available": [True]}, "'film' has no attribute 'available'; known: genres, year - at `$.where`"),
        ({"year": ["1999"]}, "the values of 'year' are numbers, found '1999' - at `$.where.year`"),
        ({"year": [True]}, "the values of 'year' are numbers, found True - at `$.where.year`"),
        ({"genres": ["g1", 4]}, "the values of 'genres' are strings, found 4.0 - at `$.where.genres`"),
        ({"genres": []}, "Expected `array` of length >= 1 - at `$.where[...]`"),
        ({"genres": "g1"}, "Expected `array`, got `str` - at `$.where[...]`"),
        ({"genres": [None]}, "got `null`"),
        ({"genres": ["g1"] * 1_001}, "1001 values of 'genres'; at most 1000 - at `$.where.genres`"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_with_the_reason(
    client: httpx.Client, where: dict[str, Any], reason: str
) -> None:
    answer = client.post("/recommend", json={"user": "user-1", "where": where})
    assert answer.status_code == 422
    assert reason in answer.json()["error"]["message"]


def test_an_item_that_nobody_knows_is_never_meant(world: World) -> None:
    postings = world.catalogue.postings("genre")
    assert postings.holds(np.array([-1, 7], np.int32), postings.values_for(["rare"])).tolist() == [False, True]
