"""The factorisation machine: learned from what was shown; newcomers and new items have a place."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
import pytest

from shortlist.events.labels import Labels, ObservedPositives
from shortlist.events.log import MemoryLog
from shortlist.events.schema import Entity, Event
from shortlist.features.definitions import EventType, Impression
from shortlist.features.entities import Ragged
from shortlist.features.hashing import hash_strings
from shortlist.features.table import FeatureTable
from shortlist.framing.objective import Objective
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Deadline, Query
from shortlist.project import Project
from shortlist.retrieval.asker import Asker
from shortlist.retrieval.catalogue import Catalogue
from shortlist.retrieval.eligibility import NotSeen
from shortlist.retrieval.models.machine import FACTS, TABLES, Machine, steps_of
from shortlist.retrieval.models.towers import attributes_of
from shortlist.retrieval.specs import FactorizationMachine, seen_features
from shortlist.training.assembly import Place, load_source
from shortlist.training.rankers.fitting import NothingToLearnError
from shortlist.training.rows import Judged, everyone, observed_positives, shown
from shortlist.training.sources.fitting import Lesson, fit_source, row_columns
from shortlist.training.sources.machine import directions, factors_of, fit_machine
from shortlist.training.sources.machine_data import Described, Outcomes, ages_of
from tests import test_contracts as contracts

DAY = 86_400_000
user, film = Entity("user", country=str, age=int), Entity("film", genre=str, tags=list[str], year=int, note=str)
impression, click = Impression(user, film), EventType("click", user, film)
SPEC = FactorizationMachine(("country", "age"), ("genre", "tags", "year", "note"), dimensions=4, quota=10)
LABELS = Labels(impression, {click: 1.0})
LOOKS = (0.5, 1.0, 0.25)
"""How likely each place is looked at: the second is in the middle of the screen."""


def project(labels: Labels | ObservedPositives = LABELS) -> Project:
    return Project("world", user, film, [impression, click], labels, [], sources=[SPEC])


def described(n: int) -> dict[str, object]:
    """Even films are dramas, odd ones comedies; every tenth says nothing."""
    odd = n % 2
    told: dict[str, object] = {
        "genre": ("drama", "comedy")[odd],
        "tags": [f"t{odd}", f"t{n % 3 + 2}"],
        "year": 1980 + 20 * odd + n % 7,
    }
    return {} if n % 10 == 9 else told


class World:
    """Users of one land like dramas, those of the other comedies; slates of three, clicks that take a look."""

    def __init__(self, slates: int = 4_000, films: int = 40, users: int = 60, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.project = project()
        self.log, self.features = MemoryLog(self.project.schemas), self.project.feature_set()
        self.table = FeatureTable(self.features)
        self.log.subscribe(self.table.update)
        self.add(*(Event("film", DAY, {"film": f"f{n}"}, described(n)) for n in range(films)))
        lands = ({"country": "north", "age": 20}, {"country": "south", "age": 60})
        self.add(*(Event("user", DAY, {"user": f"u{n}"}, dict(lands[n % 2])) for n in range(users)))
        events = []
        for slate in range(slates):
            who, at = int(self.rng.integers(users)), 2 * DAY + slate * 1_000
            for place, what in enumerate(self.rng.choice(films, 3, replace=False).tolist()):
                keys = {"user": f"u{who}", "film": f"f{what}"}
                facts = {"position": place + 1, "request": f"r{slate}"}
                events.append(Event("impression", at, keys, facts))
                if self.rng.random() < LOOKS[place] * chance(who, what):
                    events.append(Event("click", at + 1 + place, keys))
        self.add(*events)
        self.log.append([Event("user", 40 * DAY, {"user": "u0"}, {})], received=40 * DAY)

    def add(self, *events: Event) -> None:
        assert not self.log.append(list(events), received=30 * DAY).refusals

    @property
    def lesson(self) -> Lesson:
        known = everyone(self.log, self.project, self.log.position)
        positives = observed_positives(self.log, self.project, known, self.log.position)
        return Lesson(self.project, self.features, self.log, known, positives, self.log.position, 0)

    def rows(self) -> Judged:
        return shown(self.log, self.project, LABELS, 0, self.log.position, 0)


def chance(who: int, what: int) -> float:
    """Of a click, once looked at."""
    return 0.6 if who % 2 == what % 2 else 0.1


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def fitted(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("machine")
    fit_source(SPEC, world.lesson, place / SPEC.name, None, lambda *_: None)
    return place


def log_odds(p: float) -> float:
    return math.log(p / (1 - p))


def test_what_was_shown_says_who_wants_what_once_they_look(world: World, fitted: Path) -> None:
    rows = judged(
        world, [f"u{n}" for n in range(20) for _ in range(20)], [f"f{n}" for _ in range(20) for n in range(20)]
    )
    said = row_columns(SPEC, world.lesson, fitted / SPEC.name, rows)["factorization_machine_score"]
    alike = np.array([who % 2 == what % 2 for who in range(20) for what in range(20)])
    assert said[alike].mean() == pytest.approx(log_odds(0.6), abs=0.25)
    assert said[~alike].mean() == pytest.approx(log_odds(0.1), abs=0.35)
    assert said[alike].min() > said[~alike].max()


def test_how_likely_a_place_is_looked_at_is_learned(world: World) -> None:
    _, figures = fit_machine(SPEC, world.rows(), world.lesson.known, 0, lambda _: None)
    assert figures["looked_at"] == pytest.approx([0.0, *LOOKS][-len(figures["looked_at"]) :], abs=0.1)
    assert figures["impressions"] == 12_000
    assert figures["impressions_left_out"] == 0


def test_newcomers_and_new_items_stand_where_their_attributes_put_them(fitted: Path) -> None:
    world = World(slates=0)
    source = load_source(SPEC, place(world, fitted)).source
    new = {"premiere": described(2), "farce": described(3)}
    world.add(*(Event("film", 29 * DAY, {"film": name}, told) for name, told in new.items()))
    world.add(Event("user", 29 * DAY, {"user": "newcomer"}, {"country": "north", "age": 21}))
    source.quota = 100  # type: ignore[attr-defined]
    items = [world.table.entities["film"].ids[item] for item in source.propose(query("newcomer")).items]
    assert set(new) <= set(items)
    dramas = [
        name
        for name in items
        if name == "premiere" or (name[0] == "f" and name[1:].isdigit() and not int(name[1:]) % 2)
    ]
    assert items.index("premiere") < 22 < items.index("farce")
    assert sum(name in dramas for name in items[:20]) >= 18


@pytest.mark.parametrize("who", ["u1", "nobody-ever", "日本" * 500, None])
def test_whoever_asks_gets_items_each_once_and_a_score_for_each(world: World, fitted: Path, who: str | None) -> None:
    source = load_source(SPEC, place(world, fitted)).source
    found = source.propose(query(who))
    assert len(found) == len(np.unique(found.items)) == SPEC.quota
    scores = source.describe(query(who), found).columns["factorization_machine_score"]  # type: ignore[attr-defined]
    assert np.isfinite(scores).all()
    assert (np.diff(scores) <= 1e-5).all()


@pytest.mark.parametrize("who", contracts.READERS)
def test_it_keeps_what_every_source_and_every_hydrator_promises(fitted: Path, who: str | None) -> None:
    world = World(slates=3)
    world.add(Event("film", 29 * DAY, {"film": "dune"}, described(2)))
    source: Any = load_source(SPEC, place(world, fitted)).source
    pipelines: Any = (SimpleNamespace(understand=(source,), hydrators=(source,)),)
    house = contracts.House(pipelines, {"propose": [source], "describe": [source]}, 41)
    contracts.test_a_source_proposes_each_item_at_most_once(house, who)
    contracts.test_a_hydrator_describes_the_candidates_it_was_given_and_depends_on_no_other(house, who)
    vectors, asked = source.item_vectors(np.array([3, -1, 40], np.int32)), house.query(who)
    scores = source.describe(asked, Candidates(np.array([3, -1, 40], np.int32))).columns[f"{SPEC.name}_score"]
    assert not vectors[1].any()
    assert np.isnan(scores[1])
    assert vectors[[0, 2]] @ asked.known[f"{SPEC.name}_vector"] == pytest.approx(scores[[0, 2]], rel=1e-5)


def test_training_sees_what_serving_sees(fitted: Path) -> None:
    world = World(slates=5)
    world.add(Event("film", 29 * DAY, {"film": "premiere"}, described(3)))
    world.add(Event("user", 29 * DAY, {"user": "newcomer"}, {"age": 61}))
    names = ["f1", "f2", "f39", "premiere"]
    source = load_source(SPEC, place(world, fitted)).source
    items = Candidates(Catalogue(world.table, "film").index_of(names))
    for who in ("u0", "u1", "newcomer", "stranger"):
        served = source.describe(query(who), items).columns["factorization_machine_score"]  # type: ignore[attr-defined]
        said = row_columns(SPEC, world.lesson, fitted / SPEC.name, judged(world, [who] * 4, names))
        assert said["factorization_machine_score"] == pytest.approx(served, abs=1e-4)


def test_the_same_seed_gives_the_same_machine_whatever_the_threads(world: World) -> None:
    made = []
    for threads in (1, 2):
        before = numba.get_num_threads()
        numba.set_num_threads(min(threads, before))
        made.append(fit_machine(SPEC, world.rows(), world.lesson.known, 3, lambda _: None)[0])
        numba.set_num_threads(before)
    assert np.array_equal(made[0].index.vectors, made[1].index.vectors)
    other, _ = fit_machine(SPEC, world.rows(), world.lesson.known, 4, lambda _: None)
    assert not np.array_equal(made[0].index.vectors, other.index.vectors)


def test_without_impressions_or_without_two_outcomes_there_is_nothing_to_learn(world: World, tmp_path: Path) -> None:
    blind = replace(world.lesson, project=project(ObservedPositives({click: 1.0})))
    with pytest.raises(NothingToLearnError, match=r"declare Labels\(impression"):
        fit_source(SPEC, blind, tmp_path, None, lambda *_: None)
    rows = world.rows()
    for gain, found in ((0.0, "12000 impressions 0 were"), (1.0, "12000 impressions 12000 were")):
        with pytest.raises(NothingToLearnError, match=found):
            fit_machine(SPEC, replace(rows, gain=np.full(len(rows), gain)), world.lesson.known, 0, lambda _: None)
    nothing = World(slates=0)
    with pytest.raises(NothingToLearnError, match="0 impressions"):
        fit_machine(SPEC, nothing.rows(), nothing.lesson.known, 0, lambda _: None)


def test_two_impressions_without_places_are_enough() -> None:
    world = World(slates=0, films=2, users=1)
    facts = {"position": 1, "request": "r"}
    world.add(*(Event("impression", 2 * DAY, {"user": "u0", "film": f"f{n}"}, dict(facts)) for n in range(2)))
    world.add(Event("click", 2 * DAY + 1, {"user": "u0", "film": "f1"}))
    rows = replace(world.rows(), rank=np.full(2, np.nan))
    machine, figures = fit_machine(SPEC, rows, world.lesson.known, 0, lambda _: None)
    assert figures["looked_at"] == [1.0]
    vectors = machine.user_vectors(hash_strings(["u0"]), np.empty((1, 0)), columns(world))
    scores = machine.index.vectors @ vectors[0]
    assert np.isfinite(scores).all()
    assert scores[1] > scores[0]


def test_attributes_that_say_nothing_change_nothing() -> None:
    column = Described.of(np.array([np.nan, np.nan]), 3)
    assert (len(column.keys), column.table.shape, len(column.rows)) == (0, (1, 3), 0)
    column = Described.of(np.array([5.0, 5.0, np.nan]), 3)
    assert column.rows.tolist() == [0, 1]
    words = hash_strings(["shared", "alone", "shared", None])
    column = Described.of(Ragged(words, np.array([0, 2, 3, 3, 4])), 3)
    assert column.table.shape == (1, 3)
    assert dict(zip(column.rows.tolist(), column.shares.tolist(), strict=True)) == {0: 0.5, 1: 1.0}


def test_numbers_are_cut_into_steps_and_missing_ones_are_none() -> None:
    numbers = np.array([-1.0, 0.0, 0.5, 1.0, np.nan, np.inf])
    assert steps_of(np.array([0.0, 1.0]), numbers).tolist() == [1, 2, 2, 3, 0, 0]


def test_few_directions_hold_the_mean_of_the_products() -> None:
    rng = np.random.default_rng(0)
    users, items = (rng.normal(size=(n, 5, 3 + 1)).astype(np.float32) for n in (40, 30))
    mean = np.einsum("usd,isd->ui", users[:, :, :-1], items[:, :, :-1]) / 5
    left, right = factors_of(users), factors_of(items)
    turns = directions(left, right)
    found = (left @ turns[0]) @ (right @ turns[1]).T
    assert ((found - mean) ** 2).sum() < 0.0011 * (mean**2).sum()
    assert turns[0].shape == (15, turns[1].shape[1])


def test_an_item_is_as_old_as_it_was_shown_and_what_was_there_before_is_oldest(world: World) -> None:
    items = world.lesson.known.items
    n, known = len(items), np.arange(len(items) - 1, dtype=np.int32)  # nothing is said of the last one
    at, now = np.full(n - 1, world.log.position), np.full(n - 1, 9 * DAY)
    assert not ages_of(known, at, now, items).any()  # all of them were there before
    names = [f"new{number}" for number in range(16)]
    world = World(slates=0)
    start = world.log.position
    world.add(*(Event("film", 3 * DAY, {"film": name}, {}) for name in names))
    items = world.lesson.known.items
    shown_items = np.concatenate([[0], np.repeat(np.arange(n, n + 16), 2)]).astype(np.int32)
    now = np.concatenate([[3 * DAY], *([3 * DAY, 3 * DAY + (number + 1) * DAY] for number in range(16))])
    steps = ages_of(shown_items, np.full(33, start), now, items)
    assert steps[0] == steps.max()  # it was there before anything was shown
    assert (np.diff(steps[2::2]) >= 0).all()
    assert (steps[1::2] == 0).all()
    assert steps[-1] == steps.max() > 2


def test_of_what_was_acted_on_a_greater_gain_says_more(world: World) -> None:
    rows, known, rng = world.rows(), world.lesson.known, np.random.default_rng(0)
    who, what = known.users.index_of(rows.user), known.items.index_of(rows.item)
    alike, acted = who % 2 == what % 2, rows.gain > 0  # they stand in the order of their numbers
    taste = np.where(acted, np.where(rng.random(len(rows)) < np.where(alike, 0.8, 0.2), 3.0, 1.0), 0.0)
    found = Outcomes.of(replace(rows, gain=taste), known)
    assert (len(found.acted), len(found.further)) == (len(rows), acted.sum())
    assert (found.further == 0.5).sum() == (taste == 3.0).sum()
    chance = np.where(acted, rng.choice([1.0, 3.0], len(rows)), 0.0)
    odds = (log_odds(0.8) - log_odds(0.2)) / (log_odds(0.6) - log_odds(0.1))  # by the odds of a click
    for gain, scale in ((taste, [odds]), (chance, [0.0]), (rows.gain, [])):
        _, figures = fit_machine(SPEC, replace(rows, gain=gain), known, 0, lambda _: None)
        assert figures["scale"] == pytest.approx(scale, abs=0.35)
        assert figures["acted_on"] == acted.sum()


def test_what_was_looked_at_and_rejected_is_wanted_less(world: World) -> None:
    rows, known, rng = world.rows(), world.lesson.known, np.random.default_rng(0)
    who, what = known.users.index_of(rows.user), known.items.index_of(rows.item)
    alike, acted = who % 2 == what % 2, rows.gain > 0
    look, wanted = np.array([0.0, *LOOKS])[rows.rank.astype(int)], np.where(alike, 0.6, 0.1)
    looked = acted | (rng.random(len(rows)) < look * (1 - wanted) / (1 - look * wanted))
    hid = looked & (rng.random(len(rows)) < np.where(alike, 0.1, 0.4))  # where something was clicked it does not count
    plain = replace(rows, actions={**rows.actions, "hide": hid})
    odds = (log_odds(0.1) - log_odds(0.4)) / (log_odds(0.6) - log_odds(0.1))  # by the odds of a click
    _, figures = fit_machine(SPEC, plain, known, 0, lambda _: None, ["hide"])
    assert figures["rejected"] == (hid & ~acted).sum()
    assert figures["scale"] == pytest.approx([odds], abs=0.2)
    assert figures["looked_at"] == pytest.approx(LOOKS, abs=0.1)
    _, figures = fit_machine(SPEC, plain, known, 0, lambda _: None)
    assert (figures["rejected"], figures["scale"]) == (0, [])


def test_how_much_of_it_there_was_says_what_is_wanted(world: World) -> None:
    """Clicks say nothing here: only how long one stays does."""
    rows, known, rng = world.rows(), world.lesson.known, np.random.default_rng(0)
    who, what = known.users.index_of(rows.user), known.items.index_of(rows.item)
    alike, acted = who % 2 == what % 2, rng.random(len(rows)) < 0.3
    long = np.exp(np.where(alike, 3.0, 2.0) + 0.5 * rng.standard_normal(len(rows)))
    seconds = np.where(rng.random(len(rows)) < 0.1, rng.choice([0.0, -1.0, np.inf, np.nan], len(rows)), long)
    columns = attributes_of(known.users, SPEC.user_attributes, known.users.hashes)
    for amount, difference, groups in (
        (np.where(acted, seconds, np.nan), 1.0, 1),
        (np.full(len(rows), np.nan), 0.0, 0),
    ):
        chosen = replace(rows, gain=acted.astype(float), amounts={"watch": amount})
        machine, figures = fit_machine(SPEC, chosen, known, 0, lambda _: None)
        assert len(figures["scale"]) == groups
        assert figures["spread"] == pytest.approx([0.5] * groups, abs=0.03)
        said = (machine.user_vectors(known.users.hashes, np.empty(0), columns) @ machine.index.vectors.T)[who, what]
        found = (said[alike].mean() - said[~alike].mean()) * (figures["scale"][0] if groups else 1.0)
        assert found == pytest.approx(difference, abs=0.2)


def test_hides_and_seconds_are_found_in_the_log_where_they_are_declared(tmp_path: Path) -> None:
    watch = EventType("watch", user, film, seconds=float)
    hide = EventType("hide", user, film)
    spec = replace(SPEC, amounts={watch: "seconds"})
    world = World(slates=0)
    objective = Objective("what is wanted", proxies={"click": 1.0, "hide": -1.0})
    world.project = Project(
        *("world", user, film, [impression, click, watch, hide], LABELS, []), sources=[spec], objective=objective
    )
    assert not world.project.problems()
    names = [f"f{number}" for number in range(40)]
    world.log = MemoryLog(world.project.schemas)
    world.add(*(Event("film", DAY, {"film": name}, {}) for name in names), Event("user", DAY, {"user": "u0"}, {}))
    for at, name in enumerate(names):
        keys = {"user": "u0", "film": name}
        kind = ("click", "hide", "impression", "watch")[at % 4]
        world.add(Event("impression", 2 * DAY + at, keys, {"position": 1, "request": f"r{at}"}))
        if kind != "impression":
            world.add(Event(kind, 2 * DAY + at, keys, {"seconds": 7.0} if kind == "watch" else {}))
    world.log.append([Event("user", 40 * DAY, {"user": "u0"}, {})], received=40 * DAY)
    figures = fit_source(spec, world.lesson, tmp_path, None, lambda *_: None)
    assert (figures["acted_on"], figures["rejected"], len(figures["scale"])) == (10, 10, 2)


def test_a_mistake_in_the_amounts_is_found() -> None:
    watch = EventType("watch", user, film, seconds=float, device=str)
    visit = EventType("visit", user, seconds=float)
    for amounts, wanted in (
        ({watch: "secnds"}, "'seconds'"),
        ({watch: "device"}, "'device' of watch"),
        ({visit: "seconds"}, "with user and film"),
        ("seconds", '{EVENT: "field"}'),
        ({"watch": "seconds"}, "'watch'"),
    ):
        spec = FactorizationMachine(amounts=amounts)  # type: ignore[arg-type]  # mistakes
        declared = replace(project(), events=[impression, click, watch, visit], sources=[spec])
        assert any(wanted in str(problem) for problem in declared.problems()), amounts


def test_places_that_are_not_known_stand_apart(world: World) -> None:
    rows = world.rows()
    rank, known = rows.rank.copy(), world.lesson.known
    rank[np.lexsort((known.items.index_of(rows.item), known.users.index_of(rows.user)))[:10]] = np.nan
    found = Outcomes.of(replace(rows, rank=rank), known)
    assert set(found.place[:10]) == {0}
    assert set(found.place[10:]) == {1, 2, 3}


@pytest.mark.parametrize("name", [FACTS, TABLES])
@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_damaged_files_are_refused(fitted: Path, tmp_path: Path, name: str, content: bytes | None) -> None:
    machine = Machine.load(fitted / SPEC.name)
    machine.save(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="train again"):
        Machine.load(tmp_path)


def test_files_of_different_trainings_are_refused(fitted: Path, tmp_path: Path) -> None:
    machine = Machine.load(fitted / SPEC.name)
    few = replace(machine.item, ids=machine.item.ids[:-1], table=machine.item.table[:-1])
    Machine(machine.user, few, machine.index).save(tmp_path)
    with pytest.raises(ValueError, match="different trainings"):
        Machine.load(tmp_path)


def test_a_mistake_in_the_declaration_is_found() -> None:
    spec = FactorizationMachine(user_attributes=("contry",), item_attributes="genre")
    problems = [str(problem) for problem in replace(project(), sources=[spec]).problems()]
    assert any("'contry'" in problem and "country" in problem for problem in problems)
    assert any("expected a list: ('genre',)" in problem for problem in problems)


def place(world: World, directory: Path) -> Place:
    catalogue = Catalogue(world.table, "film")
    seen = {feature.name: limit for feature, limit in seen_features(world.project.seen, user, film)}
    filters = (NotSeen(catalogue, "user", seen),)
    return Place(world.project, world.table, catalogue, Asker(world.table, "user"), filters, directory)


def query(who: str | None) -> Query:
    return Query(who, 10, 31 * DAY, "r", Deadline(math.inf))


def columns(world: World) -> dict[str, Ragged | np.ndarray[tuple[int], np.dtype[np.float64]]]:
    users = world.lesson.known.users
    return {"country": Ragged(hash_strings(["north"]), np.array([0, 1])), "age": np.array([20.0])} if len(users) else {}


def judged(world: World, users: list[str], items: list[str]) -> Judged:
    """Rows as rankers learn from them, each a request of its own, at the end of the log."""
    n = len(users)
    return Judged(
        hash_strings(users),
        hash_strings(items),
        np.arange(n),
        np.full(n, world.log.position),
        np.full(n, 31 * DAY),
        np.zeros(n),
        np.full(n, np.nan),
    )
