"""Slate rules in a running service: what is shown, what is logged of it, and what holds for the caller's own items."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from shortlist.features.definitions import EventType
from shortlist.framing.objective import Objective
from shortlist.retrieval.specs import Fresh, Popular
from shortlist.serving.limits import Limits
from shortlist.serving.running import Running
from shortlist.slate.specs import MMR, Boost, Cap, Exclude, Explore, Fairness, Pin, RuleSpec, Seen
from tests.serving_world import FILMS, fill, film, project, publish, settings_of, user, watch
from tests.test_serving_recommend import ask, items, logged_of, tell

pytestmark = pytest.mark.usefixtures("wherever")

hide = EventType("hide", user, film)
RULES = [
    Exclude(where=("year", "==", 1993)),  # film-3, film-33, …
    Exclude(items=["film-1"], until="2000-01-01"),
    Pin(items=["film-199", "film-3"], at=2),
    Boost(1.2, where=("genres", "==", "g4")),
    MMR("genres", 0.9),
    Cap("year", 1),
    Fairness("genres", {"g0": 0.3}),
    Explore(2, among="popular", temperature=0.5),
]


@pytest.fixture(scope="module")
def folder(wherever: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    place = tmp_path_factory.mktemp("rules")
    fill(place)
    publish(place)
    return place


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    declared = replace(project(), slate=RULES)
    assert declared.problems() == []
    settings = settings_of(folder, deadline_ms=10_000.0)
    with Running(declared, settings, Limits(watch_seconds=0.05)) as server:
        server.wait_ready()
        with httpx.Client(base_url=server.url) as one:
            yield one


def year(item: str) -> int:
    return 1990 + int(item.removeprefix("film-")) % 30


def test_a_slate_follows_every_rule_and_is_logged_with_its_propensities(client: httpx.Client, folder: Path) -> None:
    drawn = set()
    for _ in range(20):
        slate = ask(client, user="user-3")
        shown = items(slate)
        assert len(set(shown)) == 10
        assert shown[1] == "film-199"  # no source proposes it
        assert set(Counter(map(year, shown)).values()) == {1}
        assert 1993 not in map(year, shown)
        rows = logged_of(folder, slate["request"], 10)
        said = [row["impression.propensity"] for row in rows]
        assert said[:8] == [1.0] * 8
        assert all(0 < propensity < 1 for propensity in said[8:])
        assert slate["propensities"] == said
        drawn.add(tuple(shown[8:]))
        assert slate["degraded"] == []
    assert len(drawn) > 5


def test_who_logs_for_itself_is_told_the_propensities_where_anything_was_drawn(client: httpx.Client) -> None:
    unlogged = ask(client, user="user-4", k=5, log=False)
    assert unlogged["propensities"][:3] == [1.0] * 3
    assert all(0 < propensity < 1 for propensity in unlogged["propensities"][3:])
    assert "propensities" not in ask(client, user="user-4", k=1)  # the first place is never drawn
    assert "propensities" not in ask(client, "/rank", user="user-4", items=["film-0", "film-5"])
    assert "propensities" not in ask(client, user="user-4", where={"genres": ["of no film"]})


def test_exclusions_hold_for_the_last_resort_and_pins_do_not_break_them(client: httpx.Client) -> None:
    everything = items(ask(client, user="ann", k=1_000))
    assert set(everything) == {f"film-{n}" for n in range(FILMS) if 1990 + n % 30 != 1993}
    assert everything[1] == "film-199"


def test_a_pin_is_not_shown_to_whom_has_seen_it_nor_where_it_is_excluded_or_gone(client: httpx.Client) -> None:
    assert "film-199" not in items(ask(client, user="ben", k=50, exclude=["film-199"]))
    tell(client, kind="watch", user="ben", film="film-199")
    assert "film-199" not in items(ask(client, user="ben", k=50))
    tell(client, kind="film", film="film-199", available=False)
    try:
        assert "film-199" not in items(ask(client, user="cid"))
    finally:
        tell(client, kind="film", film="film-199", available=True)
    assert "film-199" in items(ask(client, user="cid"))


def test_rules_follow_attributes_as_they_change(client: httpx.Client) -> None:
    top = items(ask(client, user="dee"))[0]
    tell(client, kind="film", film=top, year=1993)
    try:
        assert top not in items(ask(client, user="dee", k=1_000))
    finally:
        tell(client, kind="film", film=top, year=year(top))
    assert top in items(ask(client, user="dee", k=1_000))


def test_own_items_follow_the_rules_but_are_never_drawn_and_nothing_is_added(
    client: httpx.Client, folder: Path
) -> None:
    own = ["film-0", "film-30", "film-3", "film-1", "film-2", "never heard of", "film-4", "film-5", "film-6"]
    first = ask(client, "/rank", user="eve", items=own, log=True)
    assert set(items(first)) == set(own) - {"film-3"}
    rows = logged_of(folder, first["request"], 8)
    assert {row["impression.propensity"] for row in rows} == {1.0}
    for _ in range(5):
        assert items(ask(client, "/rank", user="eve", items=own)) == items(first)
    short = items(ask(client, "/rank", user="eve", items=own, k=7))
    assert not {"film-0", "film-30"} <= set(short)  # both are of 1990
    pinned = items(ask(client, "/rank", user="eve", items=[*own, "film-199"]))
    assert pinned[1] == "film-199"


def test_an_explanation_says_what_each_rule_did(client: httpx.Client) -> None:
    explanation = ask(client, user="fay", explain=True)["explanation"]
    told = explanation["slate"]
    assert set(told) == {
        "boost_genres", "pin_items", "mmr_genres", "cap_year", "fairness_genres", "explore",
    }  # fmt: skip
    assert told["pin_items"] == {"places": [2]}
    assert told["explore"]["places"] == [9, 10]
    assert told["boost_genres"]["boosted"] > 0
    assert told["cap_year"]["waived"] == 0
    assert set(explanation["filters"]) == {
        "available",
        "excluded",
        "where",
        "not_seen",
        "exclude_year",
        "exclude_items",
    }
    assert explanation["filters"]["exclude_items"]["dropped"] == 0  # its time is over
    assert explanation["sources"]["pinned"]["first"] == ["film-199", "film-3"]
    assert all("pinned_rank" not in item["columns"] for item in explanation["items"])  # it is beside the merged list
    assert [item["columns"]["pinned"] for item in explanation["items"]] == [None, 1.0, *[None] * 8]
    ranked = ask(client, "/rank", items=["film-0", "film-30", "film-5"], k=2, explain=True)["explanation"]["slate"]
    assert ranked["explore"] == {"places": [], "among": 0}


@contextmanager
def rejecting(place: Path, slate: Sequence[RuleSpec]) -> Iterator[httpx.Client]:
    """A service of a project in which films can be hidden, which is no label."""
    declared = replace(
        project(),
        events=[watch, hide],
        objective=Objective("hours", {"watch": 1.0, "hide": -10.0}),
        sources=[Popular(quota=50), Fresh(quota=50)],
        slate=slate,
    )
    assert declared.problems() == []
    fill(place)
    publish(place, fingerprint=declared.feature_set().fingerprint)
    with Running(declared, settings_of(place, deadline_ms=10_000.0), Limits(watch_seconds=0.05)) as server:
        server.wait_ready()
        with httpx.Client(base_url=server.url) as one:
            yield one


def test_what_somebody_hides_is_never_shown_to_them_again(tmp_path: Path) -> None:
    with rejecting(tmp_path, [Pin(items=["film-199"])]) as client:
        for _ in range(5):
            shown = items(ask(client, user="ann", k=5))
            tell(client, kind="hide", user="ann", film=shown[0])
            assert shown[0] not in items(ask(client, user="ann", k=1_000))  # the last resort included
            assert shown[0] not in items(ask(client, user="ann", k=50, deadline_ms=0.001))
            assert items(ask(client, "/rank", user="ann", items=[shown[0]])) == [shown[0]]  # whoever asks for it
        assert len(items(ask(client, user="ann", k=1_000))) == FILMS - 5
        assert items(ask(client, user="ben", k=1))[0] == "film-199"
        slate = ask(client, user="ann", k=1, explain=True)
        dropped = slate["explanation"]["filters"]["not_seen"]["dropped"]
        assert dropped == 1, "other sources than the pins do not even propose it"
        assert slate["degraded"] == []


def test_what_is_seen_is_what_the_slate_says_and_for_how_long(tmp_path: Path) -> None:
    with rejecting(tmp_path, [Seen(hide, within="1h")]) as client:
        assert len(items(ask(client, user="user-0", k=1_000))) == FILMS  # ten of them watched
        top, second = items(ask(client, user="user-0", k=2))
        tell(client, kind="watch", user="user-0", film=top)
        tell(client, kind="hide", user="user-0", film=second, at=int(time.time() * 1000) - 2 * 3_600_000)
        assert {top, second} <= set(items(ask(client, user="user-0", k=1_000)))
        tell(client, kind="hide", user="user-0", film=second, at=int(time.time() * 1000) - 1_800_000)
        left = items(ask(client, user="user-0", k=1_000))
        assert set(left) == {f"film-{n}" for n in range(FILMS)} - {second}
