"""Every mistake in declared features is found at once, with its place and the nearest right name."""

from __future__ import annotations

import pytest

from shortlist.events.schema import Entity
from shortlist.features.definitions import EventType, Feature, ratio, request_feature
from shortlist.features.problems import problems
from shortlist.features.program import FeatureSet
from shortlist.framing.problems import ProjectError

user, film = Entity("user", age=int), Entity("film", genres=list[str], year=int)
watch = EventType("watch", user, film, seconds=float, device=str, tags=list[str])
click = EventType("click", user, film)
mine = watch.by(user)


@request_feature
def older(user_age: float, years: float) -> float:
    return user_age - years


@request_feature
def chicken(egg: float) -> float:
    return egg


@request_feature
def egg(chicken: float) -> float:
    return chicken


@request_feature
def reads_a_list(user_watch_last_n_film_3: float) -> float:
    return user_watch_last_n_film_3


WRONG: list[tuple[Feature, str, str]] = [
    (mine.sum("second"), "sum('second'), but 'watch' has no such field", "did you mean 'seconds'?"),
    (mine.mean("device"), "mean('device'), a field of type str", "needs a number"),
    (mine.last("tags"), "a field of type list[str]", "one event per element"),
    (watch.by("usr").count(), "by('usr'), but 'watch' does not name 'usr'", "did you mean 'user'?"),
    (watch.by("film.genre").count(), "'film' has no attribute 'genre'", "did you mean 'genres'?"),
    (watch.by("film.year").count(), "an attribute of type int", "a key is a str"),
    (watch.by("film.genres").last("user", 3), "has several values", "lists have no mean"),
    (mine.count("fortnight"), "count with a window that cannot be", "'fortnight' is no duration"),
    (mine.count("7d", hop="5h"), "count with a window that cannot be", "does not divide"),
    (mine.count("365d", hop="1m"), "count with a window that cannot be", "choose a longer hop"),
    (mine.count(hop="1h"), "count with a window that cannot be", "without over"),
    (mine.decayed_count("day"), "half_life='day'", "is no duration"),
    (mine.last("film", 0), "last_n of 0 values", "expected 1 to"),
    (mine.distinct("film", error=2), "distinct with error=2", "expected at least"),
    (watch.where("seconds", "==", "ten").by(user).count(), "'ten'", "compare it with a number"),
    (watch.where("device", "in", "tv").by(user).count(), "where('device', 'in', 'tv')", "list of constants"),
    (watch.where("devise", "==", "tv").by(user).count(), "has no such field", "did you mean 'device'?"),
    (watch.where("device", "~", "tv").by(user).count(), "where('device', '~', 'tv')", "the comparisons are"),  # type: ignore[arg-type]
    (ratio(click.by(film).count(), mine.count()), "a ratio over different keys", "group both by the same keys"),
    (ratio(watch.by(user, film).count(), mine.count(), prior=5), "a ratio over different keys", "without a prior"),
    (ratio(mine.mean("seconds"), mine.count()), "a ratio of mean", "a ratio is of count"),
    (ratio(mine.count(), mine.count(), prior=-1), "prior=-1", "expected 0 or more"),
    (mine.count().named("film_year"), "a feature 'film_year', which is an attribute's column", "rename it"),
    (mine.count().named("city"), "a feature 'city', which is a value of the request's context", "rename it"),
    (older, "older(years), and there is no 'years'", "user_age"),
    (chicken, "chicken(egg), and there is no 'egg'", "known: "),
]


@pytest.mark.parametrize(("feature", "found", "expected"), WRONG, ids=lambda value: getattr(value, "name", None))
def test_a_mistake_is_named_with_its_place(feature: Feature, found: str, expected: str) -> None:
    (problem,) = problems([feature], [watch, click], [user, film], {"city": str})
    assert found in problem.found
    assert expected in problem.expected
    assert __file__ in problem.place


def test_all_mistakes_are_found_together_and_none_where_there_is_none() -> None:
    found = problems([feature for feature, _, _ in WRONG], [watch, click], [user, film], {"city": str})
    assert len(found) >= len(WRONG)
    assert problems([mine.count(), mine.share("film.genres", "30d")], [watch], [user, film], {}) == []


def test_an_event_that_the_project_does_not_declare() -> None:
    (problem,) = problems([click.by(user).count()], [watch], [user, film], {})
    assert "'click', which is not among the project's events" in problem.found


def test_two_features_of_one_name() -> None:
    (problem,) = problems([mine.count(), mine.count()], [watch], [user, film], {})
    assert "a second feature 'user_watch_count'" in problem.found


def test_request_features_that_need_each_other() -> None:
    (problem,) = problems([chicken, egg], [watch], [user, film], {})
    assert "need each other: " in problem.found


def test_a_list_is_no_input() -> None:
    (problem,) = problems([reads_a_list, mine.last("film", 3)], [watch], [user, film], {})
    assert "which is a list" in problem.found


def test_compiling_refuses_with_all_of_them() -> None:
    with pytest.raises(ProjectError) as refused:
        FeatureSet([mine.sum("second"), mine.mean("device")], (user, film))
    assert len(refused.value.problems) == 2
