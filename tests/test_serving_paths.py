"""From no data to everything that is known: every answer says by which path it came, over the real service."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from shortlist.events.labels import ObservedPositives
from shortlist.events.schema import Entity
from shortlist.events.sqlite import SqliteLog
from shortlist.features.definitions import EventType
from shortlist.loop import learn
from shortlist.project import Project
from shortlist.ranking.specs import LogisticRegression
from shortlist.retrieval.specs import CoVisitation, Fresh, Popular
from shortlist.serving.limits import Limits
from shortlist.serving.running import Running
from shortlist.settings import Settings
from shortlist.slate.specs import Explore

pytestmark = pytest.mark.usefixtures("wherever")

user = Entity("user", age=int)
film = Entity("film", genre=str)
watch = EventType("watch", user, film)
history = watch.by(user).last("film", 20)

PROJECT = Project(
    name="clans",
    user=user,
    item=film,
    events=[watch],
    features=[
        history,
        watch.by(user).count().named("watched"),
        watch.by(film).count().named("watchers"),
        watch.by(user).share("film.genre"),
    ],
    labels=ObservedPositives({watch: 1.0}),
    sources=[Popular(), CoVisitation(history)],
    rankers=[LogisticRegression()],
    context={"device": str},
)
FILMS = 30


def settings(folder: Path, **changes: Any) -> Settings:
    return replace(Settings(port=0, folder=folder, deadline_ms=5_000), **changes)


def clans(folder: Path) -> None:
    """Forty users watch red films, twenty blue ones: red is popular, and blue is what the others want."""
    path, draw = settings(folder).place("log"), np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    log = SqliteLog(path, PROJECT.schemas)
    start = int(time.time() * 1000) - 40 * 86_400_000
    events: list[dict[str, Any]] = [
        {"kind": "film", "at": start, "film": f"{clan}-{n}", "genre": clan}
        for clan in ("red", "blue")
        for n in range(FILMS)
    ]
    for number in range(60):
        clan = "red" if number < 40 else "blue"
        for n in draw.permutation(FILMS)[:15]:
            at = start + int(draw.integers(1, 39 * 86_400_000))
            events.append({"kind": "watch", "at": at, "user": f"{clan}-fan-{number}", "film": f"{clan}-{n}"})
    in_order: list[Mapping[str, Any]] = sorted(events, key=lambda event: int(event["at"]))
    log.append(in_order)
    log.close()


def running(folder: Path, project: Project = PROJECT, **changes: Any) -> Running:
    return Running(project, settings(folder, **changes), Limits(watch_seconds=0.05))


def asking(url: str) -> Callable[..., dict[str, Any]]:
    def ask(path: str = "/recommend", **body: Any) -> dict[str, Any]:
        answer = httpx.post(url + path, json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    return ask


def tell(url: str, **event: Any) -> None:
    answer = httpx.post(f"{url}/events", json={"at": int(time.time() * 1000), **event})
    assert answer.json()["accepted"] == 1, answer.text


def share(slate: dict[str, Any], clan: str) -> int:
    return sum(ranked["item"].startswith(clan) for ranked in slate["items"])


def test_a_newcomer_goes_from_popular_to_content_to_history(tmp_path: Path) -> None:
    clans(tmp_path)
    learn(PROJECT, settings(tmp_path), 0, lambda *_: None)
    with running(tmp_path) as server:
        server.wait_ready()
        ask = asking(server.url)
        first = ask(user="newcomer")
        assert (first["path"], first["events"]) == ("popular", 0)
        other = "blue" if share(first, "red") > 5 else "red"
        assert share(first, other) <= 2
        assert ask(user=None)["path"] == "popular"
        assert ask(user="newcomer", context={"device": "tv"})["path"] == "content"
        tell(server.url, kind="user", user="newcomer", age=30)
        assert (ask(user="newcomer")["path"], ask(user="newcomer")["events"]) == ("content", 0)
        tell(server.url, kind="watch", user="newcomer", film=f"{other}-3")
        personal = ask(user="newcomer")
        assert (personal["path"], personal["events"]) == ("history", 1)
        assert share(personal, other) >= 8
        assert f"{other}-3" not in [ranked["item"] for ranked in personal["items"]]
        own = ask("/rank", user="newcomer", items=["red-1", "blue-1"])
        assert (own["path"], own["events"]) == ("history", 1)
        known = ask(user="red-fan-0")
        assert (known["path"], known["events"]) == ("history", 15)


def test_a_service_without_a_release_answers_and_says_so(tmp_path: Path) -> None:
    project = replace(PROJECT, sources=[*PROJECT.sources, Fresh(quota=2)], slate=[Explore(1, among="fresh")])
    clans(tmp_path)
    with running(tmp_path, project) as server:
        server.wait_ready()
        ask = asking(server.url)
        health = httpx.get(f"{server.url}/health").json()
        assert (health["status"], health["release"]) == ("degraded", "untrained")
        assert "shortlist train" in health["problems"][0]
        tell(server.url, kind="film", film="brand new", genre="red")
        slates = [ask(user="red-fan-0") for _ in range(30)]
        assert {(slate["release"], slate["path"], slate["events"]) for slate in slates} == {
            ("untrained", "popular", 15)
        }
        assert any(slate["items"][-1]["item"] == "brand new" for slate in slates)
        assert share(ask(user="blue-fan-40"), "red") >= 8
        learned = learn(project, settings(tmp_path), 0, lambda *_: None)
        assert server.wait_until(lambda: server.service.champion.version == learned.release.version, 20)  # type: ignore[union-attr]
        after = ask(user="blue-fan-40")
        assert (after["release"], after["path"]) == (learned.release.version, "history")
        assert share(after, "blue") >= 8
        assert httpx.get(f"{server.url}/health").json()["problems"] == []


def test_where_nothing_ever_happened_the_answer_is_empty_and_no_error(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        server.wait_ready()
        slate = asking(server.url)(user="anybody")
        assert (slate["items"], slate["path"], slate["events"], slate["degraded"]) == ([], "popular", 0, [])
        tell(server.url, kind="film", film="the first", genre="red")
        assert [ranked["item"] for ranked in asking(server.url)()["items"]] == ["the first"]


def test_an_answer_that_is_given_again_came_by_the_same_path(tmp_path: Path) -> None:
    clans(tmp_path)
    learn(PROJECT, settings(tmp_path), 0, lambda *_: None)
    with running(tmp_path, cache_seconds=60.0) as server:
        server.wait_ready()
        ask = asking(server.url)
        first, again = ask(user="red-fan-0"), ask(user="red-fan-0")
        assert 'shortlist_cache_total{outcome="hit"} 1.0' in httpx.get(f"{server.url}/metrics").text
        assert (first["path"], first["events"]) == (again["path"], again["events"]) == ("history", 15)


@pytest.mark.parametrize("sources", [[Popular()], [Popular(), Fresh()]])
def test_a_release_that_looks_at_nobody_is_popular_for_everybody(sources: list[Any], tmp_path: Path) -> None:
    project = replace(PROJECT, sources=sources, rankers=[])
    clans(tmp_path)
    learn(project, settings(tmp_path), 0, lambda *_: None)
    with running(tmp_path, project) as server:
        server.wait_ready()
        slate = asking(server.url)(user="red-fan-0")
        assert (slate["path"], slate["events"]) == ("popular", 15)
        assert slate["release"] != "untrained"
