"""What a user can get wrong in a slate's rules, and what they are told."""

from __future__ import annotations

from typing import Any

import pytest

from shortlist import DPP, MMR, Boost, Cap, EventType, Exclude, Explore, Fairness, Pin, Popular, Seen, TwoTower
from shortlist.slate.specs import moment_ms, names_of
from tests.test_project import declare, film, history, impression, only, user, watch

WAR = ("genres", "==", "war")
SOURCES = [Popular(), TwoTower(history)]
HIDE, LOGIN = EventType("hide", user, film), EventType("login", user)


def test_sound_rules_have_no_problem() -> None:
    sound = [
        MMR("two_tower", 0.5),
        Cap("genres", 2),
        Fairness("genres", {"war": 0.2, "noir": 0.8}),
        Exclude(where=("title", "in", ["a", "b"]), since="2026-12-01", until="2026-12-24T18:00+01:00"),
        Boost(0.5, items=("7",)),
        Boost(1.1, where=("published", "within", "3d")),
        Pin(where=WAR, at=3),
        Explore(2, among="popular", temperature=0.1),
        Seen(watch, within="30d"),
        Seen(watch),
    ]
    assert declare(slate=sound, sources=SOURCES).problems() == []
    assert declare(slate=[DPP("genres")]).problems() == []
    assert declare(slate=[Seen(watch, HIDE)], events=[watch, impression, HIDE]).problems() == []
    assert declare(slate=[Seen()]).problems() == []


MISTAKES: dict[str, tuple[Any, str, str]] = {
    "no list": (Cap("genres"), "slate is Cap(", "a list"),
    "a text": ("mmr", "slate is 'mmr'", "a list"),
    "a class": ([Cap], "the class Cap", "Cap(...)"),
    "another thing": (["cap"], "str 'cap'", "Cap("),
    "unknown attribute": ([Cap("genre")], "Cap names the attribute 'genre'", "did you mean 'genres'?"),
    "no attribute": ([Cap(["genres"])], "['genres']", "did you mean 'genres'?"),  # type: ignore[arg-type]
    "cap of none": ([Cap("genres", 0)], "Cap.at_most is 0", "at least 1"),
    "half a cap": ([Cap("genres", 1.5)], "Cap.at_most is 1.5", "whole"),  # type: ignore[arg-type]
    "unknown vectors": ([MMR("two_towers")], "MMR compares by 'two_towers'", "did you mean 'two_tower'?"),
    "no vectors": ([DPP("popular")], "the source 'popular', which has no item vectors", "'two_tower'"),
    "trade-off": ([MMR("genres", 1.2)], "MMR.trade_off is 1.2", "from 0"),
    "trade-off NaN": ([DPP("genres", float("nan"))], "DPP.trade_off is nan", "from 0"),
    "window": ([MMR("genres", among=0)], "MMR.among is 0", "at least 1"),
    "diverse twice": ([MMR("genres"), DPP("genres")], "several rules of diversity: mmr_genres, dpp_genres", "keep one"),
    "explore twice": ([Explore(), Explore(2)], "several rules of exploration", "keep one"),
    "unknown source": ([Explore(among="populr")], "among 'populr'", "did you mean 'popular'?"),
    "slots": ([Explore(0)], "Explore.slots is 0", "at least 1"),
    "pool": ([Explore(most=True)], "Explore.most is True", "at least 1"),
    "temperature": ([Explore(temperature=0.0)], "Explore.temperature is 0.0", "above 0"),
    "share": ([Fairness("genres", {"war": 0.0})], "a share of 0.0", "above 0"),
    "shares": ([Fairness("genres", {"war": 0.7, "noir": 0.7})], "shares of 1.4 in all", "1 at most"),
    "no shares": ([Fairness("genres", {})], "Fairness.at_least is {}", "shares"),
    "share of what": ([Fairness("genres", {1: 0.5})], "compares 'genres' with 1", "a text"),
    "target of none": ([Exclude()], "Exclude has neither `where` nor `items`", "expected one"),
    "target of both": ([Pin(where=WAR, items=("7",))], "Pin has both `where` and `items`", "expected one"),
    "items": ([Pin(items="7")], "Pin.items is '7'", "a list of ids"),
    "numbers for ids": ([Exclude(items=[7])], "Exclude.items is [7]", "a list of ids"),  # type: ignore[list-item]
    "where": ([Exclude(where="war")], "Exclude.where is 'war'", "three parts"),  # type: ignore[arg-type]
    "where of what": ([Exclude(where=("genre", "==", "war"))], "the attribute 'genre'", "did you mean 'genres'?"),
    "comparison": ([Boost(2.0, where=("genres", ">", "war"))], "compares 'genres' with '>'", "== != in"),
    "within what": ([Boost(2.0, where=("genres", "within", "3d"))], "compares 'genres' with 'within'", "== != in"),
    "how long": ([Boost(2.0, where=("published", "within", "3 moons"))], "within '3 moons'", "a duration"),
    "how long is 3": ([Boost(2.0, where=("published", "within", 3))], "within 3", "a duration"),
    "value": ([Exclude(where=("title", "==", 7))], "compares 'title' with 7", "a text"),
    "values": ([Exclude(where=("title", "in", "ab"))], "looks for 'title' in 'ab'", "a list"),
    "boost": ([Boost(0, where=WAR)], "Boost.factor is 0", "Exclude(...)"),
    "boost inf": ([Boost(float("inf"), where=WAR)], "Boost.factor is inf", "above 0"),
    "place": ([Pin(items=("7",), at=0)], "Pin.at is 0", "at least 1"),
    "since": ([Pin(items=("7",), since="soon")], "Pin.since is 'soon'", "ISO 8601"),
    "until": ([Pin(items=("7",), until=2026)], "Pin.until is 2026", "ISO 8601"),  # type: ignore[arg-type]
    "seen by name": ([Seen("watch")], "Seen names str 'watch'", "the objects themselves"),  # type: ignore[arg-type]
    "seen in part": ([Seen(watch.where("stars", ">", 2))], "Seen names Stream", "event types"),  # type: ignore[arg-type]
    "seen class": ([Seen], "the class Seen", "Seen(...)"),
    "seen what": ([Seen(HIDE)], "'hide', which is not among the project's events", "add it to `events`"),
    "shown is not seen": ([Seen(impression)], "Seen names 'impression'", "what users do"),
    "seen how long": ([Seen(watch, within="a moon")], "Seen.within is 'a moon'", "a duration"),
    "seen for 30": ([Seen(watch, within=30)], "Seen.within is 30", "a duration"),  # type: ignore[arg-type]
    "seen nothing lately": ([Seen(within="30d")], "Seen(within='30d') names no event", "Seen(watch"),
    "seen and not": ([Seen(), Seen(watch, within="1d")], "Seen() stands beside Seen(watch, within='1d')", "keep one"),
    "ends first": ([Pin(items=("7",), since="2026-12-02", until="2026-12-01")], "before it begins", "turn them"),
}


@pytest.mark.parametrize(("slate", "found", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_what_was_expected(slate: Any, found: str, expected: str) -> None:
    problem = only(declare(slate=slate, sources=SOURCES))
    assert found in problem.found
    assert expected in problem.expected
    assert "test_project.py" in problem.place


def test_what_is_seen_names_a_user_and_an_item() -> None:
    problem = only(declare(slate=[Seen(watch, LOGIN)], events=[watch, impression, LOGIN]))
    assert problem.found == "Seen names 'login', which has no film"
    assert problem.expected == "expected an event of a user and an item"
    assert only(declare(slate=[Seen(LOGIN, within="1d")], events=[watch, impression, LOGIN])) == problem


def test_rules_are_written_without_the_lines_at_which_events_are_declared() -> None:
    """A batch goes on where it was stopped as long as its rules are written alike."""
    rules = [Seen(watch, EventType("hide", user, film), within="30d"), Seen(), Seen(watch)]
    assert repr(rules) == "[Seen(watch, hide, within='30d'), Seen(), Seen(watch)]"
    assert rules[2] == Seen(watch) != Seen(watch, within="30d")
    assert names_of(rules) == ["seen_watch_hide", "seen", "seen_watch"]


def test_every_mistake_is_found_at_once() -> None:
    slate = [Cap("genre", 0), MMR("nothing", 2.0), Boost(-1.0)]
    assert len(declare(slate=slate).problems()) == 6


def test_moments_are_utc_unless_they_say_otherwise() -> None:
    assert moment_ms("1970-01-02") == 86_400_000
    assert moment_ms("1970-01-01T01:00+01:00") == 0
    assert film.attributes["genres"] == list[str]
