"""The answer cache: given again while it is right, never when an event or a release has made it wrong."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from shortlist.events.batch import Batch
from shortlist.events.log import MemoryLog
from shortlist.events.sqlite import SqliteLog
from shortlist.features.table import FeatureTable
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Deadline, Query, Slate
from shortlist.serving.cache import AnswerCache
from shortlist.serving.impressions import Impressions
from shortlist.serving.limits import Limits
from shortlist.serving.running import Running
from shortlist.serving.service import Service
from shortlist.slate.specs import Explore
from tests import slate_world as slates
from tests.serving_world import fill, project, publish, running, settings_of

pytestmark = pytest.mark.usefixtures("wherever")

DAY = 86_400.0


@dataclass
class Shelf:
    """A cache with a clock that is set by hand, and a log that it listens to."""

    most: int = 100
    now: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.cache = AnswerCache("user", "film", 60.0, self.count, self.most, lambda: self.now)
        self.log = MemoryLog(project().schemas)
        self.log.subscribe(self.cache.learn)

    def count(self, outcome: str) -> None:
        self.counts[outcome] += 1

    def tell(self, **event: Any) -> None:
        assert self.log.append([{"at": 1, **event}]).accepted == 1

    def ask(self, user: str | None, shown: str = "film-1", release: str = "r1", **changes: Any) -> tuple[str, ...]:
        """What is answered: what the cache has, else `shown`, which is then kept."""
        query = question(user, **changes)
        kept = self.cache.find(release, query)
        if kept is not None:
            assert kept[0].request == query.request
            return kept[0].items
        return self.answer(query, shown)

    def answer(self, query: Query, shown: str, degraded: tuple[str, ...] = ()) -> tuple[str, ...]:
        slate = Slate(query.request, (shown,), (1.0,), (1.0,), degraded=degraded)
        self.cache.observe(query, slate, Candidates(np.array([1], np.int32)))
        return slate.items


NUMBERS = iter(range(10**9))


def question(user: str | None, **changes: Any) -> Query:
    given: dict[str, Any] = {
        "k": 10,
        "now": 0,
        "request": f"q{next(NUMBERS)}",
        "deadline": Deadline.after(1e3),
        **changes,
    }
    return Query(user=user, **given)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def test_the_same_question_gets_the_same_answer_for_a_while(shelf: Shelf) -> None:
    assert [shelf.ask("ann", shown) for shown in ("a", "b")] == [("a",), ("a",)]
    shelf.now = 59.0
    assert shelf.ask("ann", "b") == ("a",)
    shelf.now = 60.0
    assert shelf.ask("ann", "c") == ("c",)
    assert shelf.counts == {"miss": 2, "hit": 2}


@pytest.mark.parametrize(
    "other",
    [
        {"user": "bob"},
        {"user": None},
        {"k": 11},
        {"exclude": frozenset(["film-3"])},
        {"context": {"device": "tv"}},
        {"context": {"minutes": 3.0}},
        {"release": "r2"},
    ],
    ids=str,
)
def test_another_question_gets_an_answer_of_its_own(shelf: Shelf, other: dict[str, Any]) -> None:
    shelf.ask("ann", "a")
    assert shelf.ask(**{"user": "ann", "shown": "b", **other}) == ("b",)
    assert shelf.ask("ann", "c") == ("a",)


def test_the_order_in_which_a_context_is_written_does_not_matter(shelf: Shelf) -> None:
    shelf.ask("ann", "a", context={"device": "tv", "minutes": 3.0})
    assert shelf.ask("ann", "b", context={"minutes": 3.0, "device": "tv"}) == ("a",)


def test_explanations_and_own_items_are_never_kept(shelf: Shelf) -> None:
    for changes in ({"explain": True}, {"items": ("film-1",)}):
        assert [shelf.ask("ann", shown, **changes) for shown in ("a", "b")] == [("a",), ("b",)]
    assert len(shelf.cache) == 0


def test_an_answer_without_a_stage_is_not_kept(shelf: Shelf) -> None:
    query = question("ann")
    assert shelf.cache.find("r1", query) is None
    shelf.answer(query, "worse", degraded=("features",))
    assert shelf.ask("ann", "better") == ("better",)


@pytest.mark.parametrize("event", [{"kind": "watch", "film": "film-1"}, {"kind": "user", "age": 30}], ids=str)
def test_an_event_about_a_user_drops_the_answers_of_that_user_only(shelf: Shelf, event: dict[str, Any]) -> None:
    shelf.ask("ann", "a")
    shelf.ask("ann", "a", k=3)
    shelf.ask("bob", "a")
    shelf.tell(user="ann", **event)
    assert [shelf.ask("ann", "b"), shelf.ask("ann", "b", k=3), shelf.ask("bob", "b")] == [("b",), ("b",), ("a",)]


def explored(query: Query, rules: slates.Shelf, films: int) -> tuple[Slate, Candidates]:
    """A slate of two films, the second of which is drawn from all but the first."""
    decision = rules.decide([float(films), *[1.0] * (films - 1)], 2, request=query.request)
    shown = decision.order[:2]
    names = tuple(f"film-{one}" for one in shown)
    slate = Slate(query.request, names, (1.0, 1.0), tuple(decision.propensities.tolist()))
    return slate, Candidates(shown.astype(np.int32))


def test_a_draw_that_is_given_again_has_no_propensity(shelf: Shelf) -> None:
    rules, query = slates.Shelf([Explore(1)], slates.films([{}] * 5)), question("ann")
    assert shelf.cache.find("r1", query) is None
    slate, shown = explored(query, rules, films=5)
    assert slate.propensities == (1.0, 0.25)
    shelf.cache.observe(query, slate, shown)
    for _ in range(2):
        kept = shelf.cache.find("r1", question("ann"))
        assert kept is not None
        assert (kept[0].items, kept[0].propensities) == (slate.items, (1.0, None))


def test_inverse_propensities_of_what_is_logged_are_unbiased_although_draws_are_shown_again() -> None:
    """Everybody asks until a click drops the answer; drawn films that nobody clicks are shown most often."""
    clicked, shelf = np.linspace(0.05, 0.75, 8), Shelf(most=10_000)
    rules, films = slates.Shelf([Explore(1)], slates.films([{}] * 9)), 9
    writer = Impressions(shelf.log, "user", "film", "f" * 64, 0.0, lambda *_: None)
    chance, estimates = np.random.default_rng(3), [list[float]() for _ in clicked]
    for number in range(8_000):
        query = question(f"user-{number % 400}", request=f"visit-{number}")
        kept = shelf.cache.find("r1", query)
        slate, shown = kept or explored(query, rules, films)
        if kept is None:
            shelf.cache.observe(query, slate, shown)
        row = writer.events(query, slate, shown)[1]
        which = int(row["film"].removeprefix("film-")) - 1
        click = chance.random() < clicked[which]
        if row["propensity"] is not None:
            for one, found in enumerate(estimates):
                found.append(click / row["propensity"] if one == which else 0.0)
        if click:
            shelf.tell(kind="watch", user=query.user, film=row["film"])
    assert shelf.counts["hit"] > 4_000
    for truth, found in zip(clicked, estimates, strict=True):
        assert abs(np.mean(found) - truth) < 4 * np.std(found) / np.sqrt(len(found))
    whole = np.mean(estimates, axis=0)  # of the policy that draws
    assert abs(whole.mean() - clicked.mean()) < 4 * whole.std() / np.sqrt(len(whole))


def test_an_event_of_the_catalogue_drops_everything(shelf: Shelf) -> None:
    for user in ("ann", None):
        shelf.ask(user, "a")
    shelf.tell(kind="film", film="film-1", available=False)
    assert [shelf.ask(user, "b") for user in ("ann", None)] == [("b",), ("b",)]


@pytest.mark.parametrize(("film", "again"), [("film-2", "b"), ("film-1", "a")])
def test_an_item_that_an_ordinary_event_names_first_drops_everything(shelf: Shelf, film: str, again: str) -> None:
    table, log = FeatureTable(project().feature_set()), MemoryLog(project().schemas)
    log.append([{"kind": "film", "at": 1, "film": "film-1"}])
    log.subscribe(table.update, start=0)
    shelf.cache.follow(table.entities["film"])
    log.subscribe(shelf.cache.learn)
    for user in ("ann", None):
        shelf.ask(user, "a")
    log.append([{"kind": "watch", "at": 1, "user": "bob", "film": film}])
    assert [shelf.ask(user, "b") for user in ("ann", None)] == [(again,), (again,)]


def test_an_impression_drops_nothing(shelf: Shelf) -> None:
    shelf.ask("ann", "a")
    shelf.tell(kind="impression", user="ann", film="a", request="q", position=1)
    assert shelf.ask("ann", "b") == ("a",)


@pytest.mark.parametrize(
    "event", [{"kind": "watch", "user": "ann", "film": "f"}, {"kind": "film", "film": "f"}], ids=lambda e: e["kind"]
)
def test_an_answer_that_was_computed_while_an_event_came_is_not_kept(shelf: Shelf, event: dict[str, Any]) -> None:
    query = question("ann")
    assert shelf.cache.find("r1", query) is None
    shelf.tell(**event)
    shelf.answer(query, "of yesterday")
    assert shelf.ask("ann", "of today") == ("of today",)


def test_the_answers_used_last_are_kept(shelf: Shelf) -> None:
    shelf = Shelf(most=3)
    for user in ("a", "b", "c"):
        shelf.ask(user, "old")
    shelf.ask("a")
    for user in ("d", "e"):
        shelf.ask(user, "old")
    assert len(shelf.cache) == 3
    assert [shelf.ask(user, "new") for user in ("a", "d", "e")] == [("old",)] * 3
    assert shelf.ask("b", "new") == ("new",)
    shelf.tell(kind="watch", user="a", film="film-1")  # nothing is left behind of what was evicted
    assert len(shelf.cache) <= 3


def test_many_threads_never_see_what_an_event_has_dropped() -> None:
    """Each user's truth is a number that rises; an answer older than the last acknowledged event is a failure."""
    shelf, truth, failures = Shelf(most=5), [0] * 8, list[str]()
    stop = threading.Event()

    def follow(batch: Batch) -> None:  # the table: knows the event before the cache drops anything
        for user in batch.strings("user").to_pylist():
            truth[int(user)] += 1

    shelf.log = MemoryLog(project().schemas)
    shelf.log.subscribe(follow)
    shelf.log.subscribe(shelf.cache.learn)

    def reader(seed: int) -> None:
        draw = np.random.default_rng(seed)
        while not stop.is_set():
            user = int(draw.integers(8))
            known = acknowledged[user]
            query = question(str(user))
            kept = shelf.cache.find("r1", query)
            got = int(kept[0].items[0]) if kept else truth[user]
            if kept is None:
                time.sleep(0)
                shelf.answer(query, str(got))
            if got < known:
                failures.append(f"user {user}: {got} after {known}")

    acknowledged = [0] * 8
    threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    draw = np.random.default_rng(9)
    for _ in range(400):
        user = int(draw.integers(8))
        shelf.tell(kind="watch", user=str(user), film="film-1")
        acknowledged[user] += 1
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(shelf.cache) <= 5
    assert shelf.counts["miss"] > 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("world")
    fill(place)
    publish(place)
    return place


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with running(folder, cache_seconds=DAY, vector_sample=1.0, deadline_ms=10_000.0) as server:
        server.wait_ready()
        with httpx.Client(base_url=server.url) as one:
            yield one


def ask(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/recommend", json=body)
    assert answer.status_code == 200, answer.text
    slate: dict[str, Any] = answer.json()
    return slate


def tell(client: httpx.Client, **event: Any) -> None:
    assert client.post("/events", json={"at": int(time.time() * 1000), **event}).json()["accepted"] == 1


def figure(client: httpx.Client, name: str) -> float:
    return next(
        (float(line.split()[-1]) for line in client.get("/metrics").text.splitlines() if line.startswith(name)), 0.0
    )


def test_the_service_gives_an_answer_again_under_a_request_of_its_own(client: httpx.Client) -> None:
    before = figure(client, 'shortlist_cache_total{outcome="hit"}')
    first, second = ask(client, user="user-5"), ask(client, user="user-5")
    assert first["items"] == second["items"]
    assert first["request"] != second["request"]
    assert figure(client, 'shortlist_cache_total{outcome="hit"}') == before + 1
    assert figure(client, "shortlist_cache_answers") >= 1


def test_every_answer_is_logged_vectors_only_where_they_were_read(client: httpx.Client, folder: Path) -> None:
    asked = [ask(client, user="user-6", k=4)["request"] for _ in range(3)]
    until = time.monotonic() + 10
    while figure(client, "shortlist_impressions_pending") and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.2)
    log = SqliteLog(settings_of(folder).place("log"), project().schemas, read_only=True)
    rows = [row for batch in log.scan() for row in batch.table.to_pylist() if row["impression.request"] in asked]
    assert Counter(row["impression.request"] for row in rows) == dict.fromkeys(asked, 4)
    assert {row["impression.request"] for row in rows if row["impression.vector"] is not None} == {asked[0]}


def test_what_was_drawn_is_logged_with_its_propensity_once(tmp_path: Path) -> None:
    fill(tmp_path)
    publish(tmp_path)
    settings = settings_of(tmp_path, cache_seconds=DAY, deadline_ms=10_000.0)
    exploring = replace(project(), slate=[Explore(2)])
    with Running(exploring, settings, Limits(watch_seconds=0.05)) as server:
        server.wait_ready()
        with httpx.Client(base_url=server.url) as client:
            first, second = ask(client, user="user-9", k=6), ask(client, user="user-9", k=6)
    assert first["items"] == second["items"]
    assert first["propensities"][:4] == [1.0] * 4
    assert all(0 < propensity < 1 for propensity in first["propensities"][4:])
    assert second["propensities"] == [1.0] * 4 + [None] * 2
    log = SqliteLog(settings.place("log"), project().schemas, read_only=True)
    rows = [row for batch in log.scan() for row in batch.table.to_pylist()]
    for answer in (first, second):
        said = {
            row["impression.position"]: row["impression.propensity"]
            for row in rows
            if row["impression.request"] == answer["request"]
        }
        assert [said[place] for place in range(1, 7)] == answer["propensities"]


def test_what_was_watched_is_gone_from_the_next_answer(client: httpx.Client) -> None:
    for _ in range(5):
        top = ask(client, user="user-7")["items"][0]["item"]
        tell(client, kind="watch", user="user-7", film=top)
        assert top not in [shown["item"] for shown in ask(client, user="user-7")["items"]]


def test_what_is_out_of_the_catalogue_is_shown_to_nobody(client: httpx.Client) -> None:
    top = ask(client)["items"][0]["item"]
    tell(client, kind="film", film=top, available=False)
    try:
        for user in (None, "user-8"):
            assert top not in [shown["item"] for shown in ask(client, user=user)["items"]]
    finally:
        tell(client, kind="film", film=top, available=True)
    assert top in [shown["item"] for shown in ask(client)["items"]]


def test_another_release_answers_anew(tmp_path: Path) -> None:
    fill(tmp_path)
    first = publish(tmp_path)
    with running(tmp_path, cache_seconds=DAY, deadline_ms=10_000.0) as server:
        server.wait_ready()
        with httpx.Client(base_url=server.url) as client:
            assert ask(client, user="user-1")["release"] == first
            second = publish(tmp_path, seed=1)
            assert server.wait_until(lambda: ask(client)["release"] == second, 20.0)
            assert ask(client, user="user-1")["release"] == second


def test_without_the_setting_nothing_is_kept(tmp_path: Path) -> None:
    assert Service(project(), settings_of(tmp_path), Limits()).cache is None
