"""Popularity, eligibility and merging, over a real table that follows a real log."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist.events.labels import ObservedPositives
from shortlist.events.log import MemoryLog
from shortlist.events.schema import Entity, EventSchema
from shortlist.features.definitions import EventType
from shortlist.features.program import FeatureSet
from shortlist.features.table import FeatureTable
from shortlist.giving_way import Behind
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Deadline, Query
from shortlist.pipeline.stages import Filter
from shortlist.retrieval import popular, popularity
from shortlist.retrieval.asker import Asker
from shortlist.retrieval.catalogue import Catalogue
from shortlist.retrieval.eligibility import ALLOWED, Available, Excluded, NotSeen, eligible
from shortlist.retrieval.fresh import FreshSource
from shortlist.retrieval.merge import Interleaved
from shortlist.retrieval.popular import LastResort, PopularSource
from shortlist.retrieval.popularity import Popularity
from shortlist.retrieval.specs import (
    Popular,
    TwoTower,
    popularity_features,
    positive_streams,
    retrieval_features,
    seen_features,
)

user, film = Entity("user"), Entity("film")
watch = EventType("watch", user, film, stars=float)
save = EventType("save", user, film)
labels = ObservedPositives({watch: 1.0, save: 3.0}, where=("stars", ">=", 4.0))
SEEN: dict[EventSchema, int | None] = {watch: None, save: None}
DAY = 86_400_000


class World:
    """A log, the table that follows it, and stages over both."""

    def __init__(self) -> None:
        self.log = MemoryLog([watch, save, user.schema, film.schema])
        of_user = [watch.by(user).count().named("watched"), watch.by(user).last("film", 2).named("latest")]
        features = [*of_user, *retrieval_features([Popular()], labels, SEEN, user, film)]
        self.table = FeatureTable(FeatureSet(features, [user, film]))
        self.log.subscribe(self.table.update)
        self.catalogue = Catalogue(self.table, "film")
        seen = {feature.name: limit for feature, limit in seen_features(SEEN, user, film)}
        self.filters: list[Filter] = [
            Available(self.catalogue),
            Excluded(self.catalogue),
            NotSeen(self.catalogue, "user", seen),
        ]

    def add(self, *events: dict[str, Any]) -> None:
        receipt = self.log.append(events, received=3000 * DAY)
        assert not receipt.refusals

    def popularity(self, **rest: Any) -> Popularity:
        features = popularity_features(labels, film, Popular().half_life)
        names, gains = [feature.name for feature, _ in features], [gain for _, gain in features]
        return Popularity(self.catalogue, names, gains, Popular().half_life, **rest)

    def popular(self, quota: int, filters: bool = True, **rest: Any) -> PopularSource:
        return PopularSource("popular", self.popularity(**rest), quota, self.filters if filters else ())

    def names(self, candidates: Candidates) -> list[str]:
        return [self.catalogue.entities.ids[item] for item in candidates.items]


def watched(who: str, what: str, stars: float = 5.0, day: int = 100) -> dict[str, Any]:
    return {"kind": "watch", "at": day * DAY, "user": who, "film": what, "stars": stars}


def ask(who: str | None = "me", now: int = 101 * DAY, exclude: Sequence[str] = (), **rest: Any) -> Query:
    return Query(who, 10, now, "r", Deadline(math.inf), exclude=frozenset(exclude), **rest)


@pytest.fixture
def world() -> World:
    world = World()
    world.add(watched("a", "good"), watched("b", "good"), watched("a", "fair"), watched("a", "bad", stars=1.0))
    return world


def test_popularity_counts_positives_with_their_gains(world: World) -> None:
    world.add({"kind": "save", "at": 100 * DAY, "user": "b", "film": "kept"})
    assert world.names(world.popular(10).propose(ask())) == ["kept", "good", "fair", "bad"]
    assert world.names(world.popular(2).propose(ask())) == ["kept", "good"]


def test_what_is_new_is_proposed_at_once_newest_first(world: World) -> None:
    fresh = FreshSource("fresh", world.catalogue, 2, world.filters)
    assert world.names(fresh.propose(ask())) == ["bad", "fair"]
    world.add({"kind": "film", "at": 100 * DAY, "film": "premiere"})
    assert world.names(fresh.propose(ask())) == ["premiere", "bad"]
    world.add(watched("me", "premiere"), {"kind": "film", "at": 100 * DAY, "film": "bad", "available": False})
    assert world.names(fresh.propose(ask())) == ["fair", "good"]
    assert world.names(fresh.propose(ask(exclude=["good", "fair"]))) == []


def test_the_newest_are_looked_for_until_there_are_enough() -> None:
    world = World()
    world.add(*(watched("crowd", f"f{n:04}") for n in range(1_500)))
    world.add(*(watched("me", f"f{n:04}") for n in range(100, 1_500)))
    fresh = FreshSource("fresh", world.catalogue, 50, world.filters)
    assert world.names(fresh.propose(ask())) == [f"f{n:04}" for n in range(99, 49, -1)]
    assert len(FreshSource("fresh", World().catalogue, 50).propose(ask())) == 0


def test_old_positives_weigh_less() -> None:
    world = World()
    world.add(
        *(watched(f"u{n}", "once", day=0) for n in range(3)), *(watched(f"u{n}", "now", day=2000) for n in range(2))
    )
    assert world.names(world.popular(9).propose(ask(now=2001 * DAY))) == ["now", "once"]


def test_an_unknown_user_and_nobody_get_what_is_popular(world: World) -> None:
    assert world.names(world.popular(2).propose(ask("stranger"))) == ["good", "fair"]
    assert world.names(world.popular(2).propose(ask(None))) == ["good", "fair"]


def test_an_empty_catalogue_has_nothing_to_propose() -> None:
    world = World()
    assert len(world.popular(5).propose(ask())) == 0
    assert list(LastResort(world.popularity(), world.catalogue).portions(ask())) == []


def test_whoever_has_seen_everything_popular_gets_the_rest() -> None:
    world = World()
    films = [f"f{n:04}" for n in range(3000)]
    world.add(*(watched("crowd", name) for name in films))
    world.add(*(watched(f"fan{n}", name) for n in range(3) for name in films[:2500]))
    world.add(*(watched("me", name, stars=2.0) for name in films[:2500]))
    assert world.names(world.popular(100).propose(ask())) == films[2500:2600]
    world.add(*(watched("me", name) for name in films[2500:]))
    assert len(world.popular(100).propose(ask())) == 0
    assert len(world.popular(100).propose(ask("other"))) == 100


def test_a_watch_event_changes_the_next_answer(world: World) -> None:
    source = world.popular(5)
    assert world.names(source.propose(ask()))[0] == "good"
    world.add(watched("me", "good", stars=1.0))
    assert world.names(source.propose(ask())) == ["fair", "bad"]


def test_counts_are_read_again_when_they_are_old(world: World) -> None:
    source = world.popular(1, filters=False, refresh_ms=5_000)
    assert world.names(source.propose(ask())) == ["good"]
    world.add(*(watched(f"u{n}", "hit") for n in range(9)))
    assert world.names(source.propose(ask(now=101 * DAY + 4_000))) == ["good"]
    assert world.names(source.propose(ask(now=101 * DAY + 6_000))) == ["hit"]


def test_only_what_an_event_has_named_is_counted_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    source, read, reads = world.popular(9, filters=False), world.table.read, []

    def noted(ids: Mapping[str, Any], *arguments: Any, **rest: Any) -> Any:
        reads.append(len(ids["film"]))
        return read(ids, *arguments, **rest)

    monkeypatch.setattr(world.table, "read", noted)
    assert world.names(source.propose(ask())) == ["good", "fair", "bad"]
    world.add(watched("c", "fair"), watched("d", "fair"), watched("d", "new"))
    later = ask(now=101 * DAY + 5_000)
    assert world.names(source.propose(later)) == ["fair", "good", "new", "bad"]
    assert world.names(source.propose(ask(now=101 * DAY + 20_000))) == ["fair", "good", "new", "bad"]
    assert reads == [3, 2]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_counts_that_are_followed_are_those_that_are_counted_anew(data: st.DataObject) -> None:
    days = st.integers(0, 2_999)
    world, now = World(), 3_000 * DAY
    followed = world.popularity(refresh_ms=0)
    names = st.sampled_from([f"f{n}" for n in range(12)])
    for _ in range(data.draw(st.integers(1, 6))):
        happened = data.draw(st.lists(st.tuples(names, days), max_size=8))
        world.add(*(watched(f"u{n}", what, day=day) for n, (what, day) in enumerate(happened)))
        now += data.draw(st.sampled_from([1, DAY, 400 * DAY, 80 * 365 * DAY]))
        counts, anew = followed.counts(now), world.popularity().counts(now)
        scale = 2.0 ** ((counts.since - now) / followed.half_life_ms)
        np.testing.assert_allclose(counts.values * scale, anew.values, rtol=1e-9)
        for n in (1, 3, 12):
            found, expected = counts.top(n), anew.top(n)
            np.testing.assert_allclose(anew.values[found[:n]], anew.values[expected[:n]], rtol=1e-9)


def test_a_service_counts_beside_its_requests_in_portions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(popularity, "PORTION", 2)
    source = world.popular(3, filters=False, behind=Behind())
    source.propose(ask())
    world.add(*(watched(f"u{n}", name) for n in range(9) for name in ("last", "hit", "third")), watched("v", "last"))
    late = ask(now=101 * DAY + 6_000)
    deadline = time.monotonic() + 10
    while world.names(source.propose(late)) != ["last", "hit", "third"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_counting_that_fails_beside_the_requests_leaves_the_old_counts(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, read = world.popular(1, filters=False, behind=Behind()), world.table.read
    assert world.names(source.propose(ask())) == ["good"]
    world.add(*(watched(f"u{n}", "hit") for n in range(9)))

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(world.table, "read", broken)
    deadline = time.monotonic() + 10
    while "were not counted again" not in caplog.text:
        assert world.names(source.propose(ask(now=101 * DAY + 6_000))) == ["good"]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    monkeypatch.setattr(world.table, "read", read)
    while world.names(source.propose(ask(now=101 * DAY + 12_000))) != ["hit"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_last_resort_is_in_order_of_popularity_and_ends_with_what_nobody_has_counted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(popular, "FIRST_PORTION", 1)
    resort = LastResort(world.popularity(), world.catalogue)
    few = replace(ask(), k=1)
    assert [world.names(portion) for portion in resort.portions(few)] == [["good"], ["fair", "bad"]]
    world.add(*({"kind": "film", "at": 100 * DAY, "film": name} for name in ("a", "b")))
    portions = [world.names(portion) for portion in resort.portions(few)]
    assert portions == [["good"], ["fair", "bad"], ["a", "b"]]
    meant = np.array([False, True, True, False, True])
    some = replace(few, known={ALLOWED: meant})
    assert [world.names(portion) for portion in resort.portions(some)] == [["fair"], ["bad"], ["b"]]


def test_what_a_restored_table_holds_is_counted(world: World, tmp_path: Path) -> None:
    world.table.snapshot(tmp_path / "table")
    again = World()
    again.log, again.table = world.log, FeatureTable(world.table.features)
    again.table.restore(tmp_path / "table")
    again.catalogue = Catalogue(again.table, "film")
    again.log.subscribe(again.table.update)
    source = again.popular(9, filters=False)
    assert again.names(source.propose(ask())) == ["good", "fair", "bad"]
    assert len(again.catalogue.entities.named_since(0)) == 0
    again.add(*(watched(f"u{n}", "bad") for n in range(9)))
    assert again.names(source.propose(ask(now=101 * DAY + 6_000)))[0] == "bad"


def test_the_order_may_be_asked_for_while_it_is_renewed(world: World) -> None:
    world.add(*(watched("crowd", f"f{n}") for n in range(300)))
    counts = world.popularity().counts(101 * DAY)
    ended = threading.Event()

    def ask_for_more() -> None:
        while not ended.is_set():
            for n in range(1, 300):
                counts.top(n)
            counts._tops.clear()

    asking = threading.Thread(target=ask_for_more)
    asking.start()
    try:
        for _ in range(300):
            renewed = counts.renewed(counts.values, np.arange(3), counts.position, counts.now)
            assert renewed.top(20).tolist() == counts.top(20).tolist()
    finally:
        ended.set()
        asking.join()


def test_stages_that_need_something_of_the_user_read_it_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asker, read, reads = Asker(world.table, "user"), world.table.read, []
    asker.needs(["watched"])
    asker.needs(["watched", "latest"])

    def noted(*arguments: Any, **rest: Any) -> Any:
        reads.append(arguments[3])
        return read(*arguments, **rest)

    monkeypatch.setattr(world.table, "read", noted)
    query = ask("a")
    assert asker.columns(query)["watched"][0] == 3
    assert asker.columns(query)["latest"].shape == (1, 2)
    assert reads == [("watched", "latest")]
    assert asker.columns(ask(None))["watched"][0] == 0
    assert len(reads) == 2


def test_what_is_taken_out_of_the_catalogue_is_not_shown_until_it_is_back(world: World) -> None:
    source = world.popular(3)
    world.add({"kind": "film", "at": 100 * DAY, "film": "good", "available": False})
    assert world.names(source.propose(ask())) == ["fair", "bad"]
    world.add({"kind": "film", "at": 100 * DAY, "film": "good", "available": True})
    assert world.names(source.propose(ask())) == ["good", "fair", "bad"]


def test_what_the_query_excludes_is_not_shown(world: World) -> None:
    assert world.names(world.popular(3).propose(ask(exclude=["good", "nowhere"]))) == ["fair", "bad"]


def test_filters_answer_for_the_callers_own_items_known_or_not(world: World) -> None:
    items = ("good", "nowhere", "fair", "elsewhere")
    own = Candidates(world.catalogue.index_of(items), own=np.arange(4, dtype=np.int32))
    query = ask("a", items=items, exclude=["elsewhere"])
    kept = eligible(world.filters, query, own)
    assert kept.own is not None
    assert [items[place] for place in kept.own] == ["nowhere"]


def test_a_condition_applies_to_the_kinds_that_have_its_field() -> None:
    assert [(stream.event.kind, len(stream.conditions), gain) for stream, gain in positive_streams(labels)] == [
        ("watch", 1, 1.0),
        ("save", 0, 3.0),
    ]


def test_features_that_the_project_declares_are_not_declared_twice() -> None:
    history = watch.by(user).last("film", 5)
    declared = [history]
    names = [f.name for f in retrieval_features([TwoTower(history), Popular()], labels, SEEN, user, film, declared)]
    assert history.name not in names
    assert len(names) == len(set(names)) == 4
    assert history.name in [f.name for f in retrieval_features([TwoTower(history)], labels, SEEN, user, film)]


def slow_merge(quotas: dict[str, int], proposals: dict[str, list[int]], limit: int) -> list[int]:
    places = [
        ((rank + 1) / quotas[source], number, item)
        for number, (source, items) in enumerate(proposals.items())
        for rank, item in enumerate(items)
    ]
    merged: list[int] = []
    for _, _, item in sorted(places, key=lambda place: place[:2]):
        if item not in merged:
            merged.append(item)
    return merged[:limit]


lists = st.lists(st.integers(0, 12), max_size=10)


@given(lists, lists, st.integers(1, 5), st.integers(1, 5), st.integers(0, 15))
def test_merging_interleaves_by_quota_and_keeps_each_item_once(
    first: list[int], second: list[int], quota: int, other: int, limit: int
) -> None:
    proposals = {name: Candidates(np.array(items, np.int32)) for name, items in (("a", first), ("b", second))}
    merged = Interleaved({"a": quota, "b": other}, limit).merge(ask(), proposals)
    assert merged.items.tolist() == slow_merge({"a": quota, "b": other}, {"a": first, "b": second}, limit)
    for name, items in (("a", first), ("b", second)):
        expected = [items.index(item) + 1.0 if item in items else math.nan for item in merged.items.tolist()]
        assert np.array_equal(merged.columns[f"{name}_rank"], expected, equal_nan=True)


def test_merging_nothing_gives_nothing() -> None:
    assert len(Interleaved({}).merge(ask(), {})) == 0


def test_what_was_seen_comes_again_when_its_time_is_over_to_the_millisecond() -> None:
    watch, save = EventType("watch", user, film), EventType("save", user, film)
    limits: dict[EventSchema, int | None] = {watch: None, save: 90_000}
    log, features = MemoryLog([watch, save, user.schema, film.schema]), seen_features(limits, user, film)
    table = FeatureTable(FeatureSet([feature for feature, _ in features], [user, film]))
    log.subscribe(table.update)
    filters = NotSeen(Catalogue(table, "film"), "user", {feature.name: limit for feature, limit in features})
    told = [("watched", "watch", 0), ("saved", "save", 0), ("again", "save", -500_000), ("again", "save", 30_000)]
    events = [{"kind": kind, "at": DAY + at, "user": "me", "film": what} for what, kind, at in told]
    assert not log.append([*events, {"kind": "film", "at": DAY, "film": "new"}], received=DAY).refusals

    def kept(after: int, who: str | None = "me") -> list[str]:
        everything = Candidates(np.arange(4, dtype=np.int32))
        mask = filters.keep(ask(who, DAY + after), everything)
        return [name for name, keep in zip(table.entities["film"].ids, mask, strict=True) if keep]

    assert kept(-1_000) == kept(0) == kept(89_999) == ["new"]  # events dated ahead of the request count, too
    assert kept(90_000) == kept(119_999) == ["saved", "new"]
    assert kept(120_000) == kept(1_000 * DAY) == ["saved", "again", "new"]
    assert kept(0, "other") == kept(0, None) == ["watched", "saved", "again", "new"]
    nothing = NotSeen(filters.catalogue, "user", {})
    assert nothing.keep(ask(), Candidates(np.arange(4, dtype=np.int32))).all()
