"""What the two towers learn from: items that nobody knows, words, slates, orders, and nothing but ids."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shortlist.events.labels import Labels, ObservedPositives
from shortlist.events.log import MemoryLog
from shortlist.events.schema import Entity, EventSchema
from shortlist.features.definitions import EventType, Impression
from shortlist.features.entities import Entities, Ragged
from shortlist.features.hashing import Hashes, hash_strings
from shortlist.features.table import FeatureTable
from shortlist.project import Project
from shortlist.retrieval.models.towers import AttributeColumn, Towers
from shortlist.retrieval.models.words import words, words_of
from shortlist.retrieval.specs import TwoTower
from shortlist.training.dataset import survey
from shortlist.training.rows import Judged
from shortlist.training.sources.beside import led_to, shown_beside
from shortlist.training.sources.fitting import examples_of, fit_source
from shortlist.training.towers import fitting as learning
from shortlist.training.towers.data import Encoding, TowerExamples, TowerItems, in_order_of_hash, recency
from shortlist.training.towers.fitting import Fitting, device_of, fit, fit_towers, prepared

user, film = Entity("user"), Entity("film", title=str, tags=list[str], year=int)
watch, impression = EventType("watch", user, film), Impression(user, film)
history = watch.by(user).last("film", 8)
FILMS = 60
SPEC = TwoTower(history, dimensions=16, epochs=6, batch=64, quota=10)
NOBODY = torch.empty(0, dtype=torch.int64)


def named(numbers: NDArray[np.int64]) -> Hashes:
    return hash_strings([f"f{number}" for number in numbers])


def one_each(kind: str, numbers: NDArray[np.int64]) -> Ragged:
    return Ragged(hash_strings([f"{kind}{number}" for number in numbers]), np.arange(len(numbers) + 1))


def two_camps(n: int = 3_000, seed: int = 0) -> tuple[TowerExamples, NDArray[np.int64]]:
    """Even users act on even films only, odd users on odd ones."""
    rng = np.random.default_rng(seed)
    who = rng.integers(0, 40, n)
    what, before = (rng.integers(0, FILMS // 2, shape) * 2 for shape in (n, (n, 8)))
    past = named((before + (who % 2)[:, None]).ravel()).reshape(n, 8)
    past[np.arange(8)[None, :] >= rng.integers(0, 9, n)[:, None]] = 0
    people = hash_strings([f"u{number}" for number in who])
    return TowerExamples(people, past, named(what + who % 2), np.arange(n), {}), who


def fitted(spec: TwoTower, examples: TowerExamples, items: TowerItems, epochs: int, seed: int = 0) -> Fitting:
    """A model that learned from everything; its items are in order of their hashes."""
    fitting, _ = prepared(spec, examples, in_order_of_hash(items), seed)
    fit(fitting, torch.arange(len(examples)), NOBODY, 1, epochs, lambda *_: None)
    return fitting


def test_a_wider_batch_is_the_same_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    examples, _ = two_camps(200)
    losses = []
    for width in (1, 128):
        monkeypatch.setattr(learning, "WIDTH", width)
        fitting, _ = prepared(SPEC, examples, TowerItems(np.sort(named(np.arange(FILMS))), {}), 0)
        losses.append(fitting.loss(torch.arange(100)).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_ids_alone_are_enough(tmp_path: Path) -> None:
    examples, _ = two_camps()
    report = fit_towers(SPEC, examples, TowerItems(named(np.arange(FILMS)), {}), tmp_path)
    assert report.recall > 0.4  # popularity finds a quarter, the user's camp half
    towers = Towers.load(tmp_path)
    vectors = towers.user_vectors(examples.user[:50], examples.history[:50], {})
    assert towers.columns == ()
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(("rate", "batch"), [(1e9, 64), (1e9, 1_024)])
def test_towers_that_diverge_are_refused(rate: float, batch: int, tmp_path: Path) -> None:
    """Nothing is a number any more; or every vector is nothing, whose scores are all alike."""
    examples, _ = two_camps(400)
    spec = replace(SPEC, learning_rate=rate, batch=batch)
    with pytest.raises(ValueError, match="diverged; lower the learning rate"):
        fit_towers(spec, examples, TowerItems(named(np.arange(FILMS)), {}), tmp_path, epochs=1)


@pytest.mark.parametrize("side", ["user_vectors", "item_vectors"])
def test_towers_of_which_one_diverges_are_refused(side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples, _ = two_camps(100)
    vectors = getattr(Fitting, side)
    monkeypatch.setattr(Fitting, side, lambda *given: vectors(*given) * np.nan)
    with pytest.raises(ValueError, match="diverged"):
        fit_towers(SPEC, examples, TowerItems(named(np.arange(FILMS)), {}), tmp_path, epochs=1)


@pytest.mark.parametrize("kind", ["category", "number"])
def test_a_new_film_stands_where_its_attributes_put_it(kind: str) -> None:
    """A film without an id is neither above nor below those that are like it, and above all that are not."""
    examples, who = two_camps()
    camp = np.arange(FILMS) % 2
    column: AttributeColumn = one_each("camp", camp) if kind == "category" else camp.astype(np.float64)
    items = TowerItems(named(np.arange(FILMS)), {"camp": column})
    fitting = fitted(replace(SPEC, item_attributes=("camp",)), examples, items, 6)
    users, camp = fitting.user_vectors(torch.arange(200)), camp[np.argsort(items.hashes)]
    one_of_each = torch.tensor([int(np.flatnonzero(camp == wanted)[0]) for wanted in (0, 1)])
    new = fitting.items.take(one_of_each).forget(1.1, fitting.generator)
    assert new.id.tolist() == [0, 0]
    with torch.no_grad():
        new_scores = (users @ fitting.model.item_vectors(new).T).numpy()
    scores = (users @ fitting.item_vectors().T).numpy()
    for film_camp in (0, 1):
        fans = np.flatnonzero(who[:200] % 2 == film_camp)
        alike, others = (scores[fans][:, camp == wanted] for wanted in (film_camp, 1 - film_camp))
        below = (alike < new_scores[fans, film_camp][:, None]).mean()
        assert 0.1 < below < 0.9
        assert (others < new_scores[fans, film_camp][:, None]).mean() > 0.99


def test_ids_are_hidden_only_where_something_else_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    examples, _ = two_camps(300)
    monkeypatch.setattr(learning, "UNKNOWN_ITEM", 1.0)
    films, rows = np.sort(named(np.arange(FILMS))), torch.arange(FILMS)
    bare, _ = prepared(SPEC, examples, TowerItems(films, {}), 0)
    assert len(torch.unique(bare.some_items(rows), dim=0)) == FILMS
    described, _ = prepared(SPEC, examples, TowerItems(films, {"year": (np.arange(FILMS) % 3).astype(np.float64)}), 0)
    assert len(torch.unique(described.some_items(rows), dim=0)) == 3


def test_films_that_nobody_acted_on_are_like_new_ones() -> None:
    """Their ids were negatives only; a film that was in a history or a slate, or has no attributes, keeps its own."""
    examples, _ = two_camps(400)
    here = np.flatnonzero(np.isin(examples.item, named(np.arange(50))))
    past, saw = examples.history[here].copy(), np.zeros((len(here), 1), np.uint64)
    past[np.isin(past, named(np.arange(50, FILMS)))] = 0
    past[0, 0], saw[0, 0] = named(np.array([50, 51]))
    examples = TowerExamples(examples.user[here], past, examples.item[here], np.arange(len(here)), {}, saw)
    items = TowerItems(named(np.arange(FILMS)), {"year": np.zeros(FILMS)})
    place = np.searchsorted(np.sort(items.hashes), items.hashes)
    for columns, expected in ((items.columns, range(52, FILMS)), ({}, range(0))):
        fitting = fitted(SPEC, examples, replace(items, columns=columns), 1)
        before = fitting.item_vectors()
        fitting.renew(torch.arange(len(here)))
        moved = (fitting.item_vectors() - before).abs().amax(dim=1).numpy()[place] > 1e-3
        assert np.flatnonzero(moved).tolist() == list(expected)
        ids = fitting.model.item.ids[1:][place[moved]]
        assert torch.equal(ids, fitting.model.item.ids[0].expand_as(ids))


def test_a_value_of_one_item_alone_teaches_what_an_unknown_value_is_worth() -> None:
    column = Ragged(hash_strings(["a", "b", "a", "c"]), np.array([0, 2, 4, 4]))
    encoding = Encoding.of(named(np.arange(3)), {"tags": column}, least=2)
    assert encoding.values["tags"].tolist() == hash_strings(["a"]).tolist()
    assert encoding.encode(named(np.arange(3)), {"tags": column}).bags["tags"].places.tolist() == [1, 0, 1, 0, 0]


def test_what_was_shown_and_not_acted_on_is_pushed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Films 0 and 1 are acted on equally often; but whoever took 0 saw 1 beside it."""
    rng = np.random.default_rng(0)
    n = 2_000
    what = rng.integers(0, FILMS, n)
    what[: n // 2] = np.arange(n // 2) % 2
    people, nothing = hash_strings([f"u{number % 200}" for number in range(n)]), np.zeros((n, 8), np.int64)
    order = rng.permutation(n)
    what = what[order]
    alone = TowerExamples(people, nothing, named(what), np.arange(n), {})
    saw = np.zeros((n, 2), np.uint64)
    saw[what == 0, 0] = named(np.array([1]))
    items = TowerItems(named(np.arange(FILMS)), {})
    place = np.searchsorted(np.sort(items.hashes), named(np.arange(2)))
    monkeypatch.setattr(learning, "SLATE", 1.0)  # to see it in so small a world
    leads = []
    for examples in (alone, replace(alone, beside=saw)):
        fitting = fitted(SPEC, examples, items, 10)
        scores = (fitting.user_vectors(torch.arange(n)) @ fitting.item_vectors().T).numpy().mean(axis=0)
        assert np.isfinite(scores).all()
        leads.append(float(scores[place[0]] - scores[place[1]]) / SPEC.temperature)
    assert abs(leads[0]) < 0.5
    assert leads[1] > leads[0] + 0.3


def test_slates_where_nothing_is_known_change_nothing() -> None:
    examples, _ = two_camps(300)
    items = TowerItems(named(np.arange(FILMS)), {})
    without, empty = (
        fitted(SPEC, one, items, 1) for one in (examples, replace(examples, beside=np.zeros((300, 4), np.uint64)))
    )
    assert torch.equal(without.item_vectors(), empty.item_vectors())


def test_beside_a_positive_stands_what_the_latest_slate_showed_and_the_user_never_took() -> None:
    def ids(text: str) -> Hashes:
        return hash_strings(text.split())

    # two slates of u before the action on a; one of v; then one that is later than the action
    rows = Judged(
        ids("u u u u u u v v u u"),
        ids("a b c a d e a b a x"),
        np.array([0, 0, 0, 1, 1, 1, 2, 2, 3, 3]),
        np.array([10, 10, 10, 20, 20, 20, 30, 30, 60, 60]),
        np.zeros(10, np.int64),
        np.array([1, 0, 0, 2, 0, 0, 1, 0, 1, 0.0]),
        np.full(10, np.nan),
    )
    users, items = ids("u u v w u"), ids("a e a a q")
    position, at = np.array([50, 55, 31, 58, 59]), np.array([100, 50, 101, 50, 50])
    led = led_to(rows, users, items, position, at, 101)
    assert led_to(rows, users, items, position, at, 100).tolist() == [3, -1, -1, -1, -1]  # v came too late
    assert led.tolist() == [3, -1, 6, -1, -1]  # the latest slate of a before the action, not the one behind it
    found = shown_beside(rows, users, items, led)
    expected = [ids("d"), ids(""), ids("b"), ids(""), ids("")]  # u took e at another time, w and q were never shown
    assert [row[row != 0].tolist() for row in found] == [one.tolist() for one in expected]
    nobody, never, nothing = np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0)
    none = Judged(nobody, nobody, never, never, never, nothing, nothing)
    assert led_to(none, users, items, position, at, 101).tolist() == [-1] * 5
    assert not shown_beside(none, users, items, np.full(5, -1)).any()
    assert shown_beside(none, nobody, nobody, led_to(none, nobody, nobody, never, never, 101)).shape == (0, 4)


def shop(spec: TwoTower) -> tuple[Project, MemoryLog]:
    """Everybody is shown four films at a time and takes one; titles say what they are about."""
    project = Project("films", user, film, [watch, impression], Labels(impression, {watch: 1.0}), [history])
    log, rng = MemoryLog(project.schemas), np.random.default_rng(0)
    log.append([{"kind": "film", "at": 0, "film": f"f{n}", "title": f"The Film {n % 2}!"} for n in range(FILMS)])
    for turn in range(200):
        who, slate = f"u{turn % 20}", rng.permutation(FILMS)[:4]
        seen = {"at": turn * 1_000, "user": who}
        places = [{"film": f"f{n}", "position": place} for place, n in enumerate(slate.tolist(), 1)]
        log.append([{"kind": "impression", "request": f"r{turn}", **place, **seen} for place in places])
        assert log.append([{"kind": "watch", "film": f"f{slate[0]}", **seen}]).accepted == 1
    return replace(project, sources=[spec]), log


def test_a_project_with_impressions_learns_from_its_slates_and_its_texts(tmp_path: Path) -> None:
    spec = replace(SPEC, item_text=("title",), epochs=1)
    project, log = shop(spec)
    assert project.problems() == []
    lesson = survey(project, log, 0, lambda *_: None).lesson
    examples = examples_of(spec, lesson)
    assert examples.beside is not None
    assert len(examples.beside) == len(examples) == 200
    counts = (examples.beside != 0).sum(axis=1)
    assert counts.max() == 3
    assert counts.mean() > 2
    first = {
        lesson.known.items.ids[n] for n in lesson.known.items.index_of(examples.beside[0][examples.beside[0] != 0])
    }
    shown = {f"f{n}" for n in np.random.default_rng(0).permutation(FILMS)[:4]}
    assert first < shown
    figures = fit_source(spec, lesson, tmp_path, None, lambda *_: None)
    assert figures["items"] == FILMS
    assert Towers.load(tmp_path).columns == ()


def test_texts_are_words_each_once_in_any_case() -> None:
    assert words("The Rocky Horror: the Début (1975)") == ["the", "rocky", "horror", "début", "1975"]
    assert words(" … ") == []
    log, known = MemoryLog([film.schema]), Entities(film)
    log.append([{"kind": "film", "at": 0, "film": "a", "title": "Rocky II", "tags": ["old boxer", "boxer"]}])
    log.append([{"kind": "film", "at": 0, "film": "b", "title": "rocky"}, {"kind": "film", "at": 0, "film": "c"}])
    for batch in log.scan():
        known.update(batch)
    found = words_of(known, ("title", "tags"), hash_strings(["c", "b", "a", "nowhere"]))
    assert found["title_words"].offsets.tolist() == [0, 0, 1, 3, 3]
    assert found["title_words"].values.tolist() == hash_strings(["rocky", "rocky", "ii"]).tolist()
    assert found["tags_words"].offsets.tolist() == [0, 0, 0, 3, 3]
    assert sorted(found["tags_words"].values) == sorted(hash_strings(["old", "boxer", "boxer"]))
    assert found.keys() == {"title_words", "tags_words"}


@pytest.mark.parametrize("text", [("headline",), ("year",), "title"])
def test_a_text_that_has_no_words_is_a_mistake(text: tuple[str, ...]) -> None:
    project, _ = shop(replace(SPEC, item_text=text))
    found = [str(problem) for problem in project.problems()]
    assert len(found) == 1
    assert "text of film" in found[0]
    assert "title" in found[0]


def orders(n: int, kind: int = 100) -> TowerExamples:
    """The newest film says which of two others matters: 0 and 1 are signs, then follow two kinds of films."""
    rng = np.random.default_rng(0)
    sign, one, other = rng.integers(0, 2, n), rng.integers(0, kind, n), rng.integers(0, kind, n)
    wanted = np.where(sign == 0, one, other) * 2 + sign
    rest = np.stack([one + 2, other + 2 + kind], axis=1)
    rest = np.where(rng.random(n)[:, None] < 0.5, rest, rest[:, ::-1])
    past = np.zeros((n, 8), np.uint64)
    past[:, :3] = named(np.concatenate([sign[:, None], rest], axis=1).ravel()).reshape(n, 3)
    return TowerExamples(np.zeros(n, np.uint64), past, named(wanted + 2 + 2 * kind), np.arange(n), {})


def test_a_sequence_tells_what_the_newest_makes_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "HISTORY_KEPT", 1.0)  # three films are too few to leave any out
    items, examples, recalls = TowerItems(named(np.arange(402)), {}), orders(5_500), []
    for sequence in (False, True):
        fitting, _ = prepared(replace(SPEC, sequence=sequence), examples, in_order_of_hash(items), 0)
        fit(fitting, torch.arange(5_000), NOBODY, 1, 4, lambda *_: None)
        recalls.append(fitting.recall(torch.arange(5_000, 5_500), 1))
    assert recalls[1] > recalls[0] + 0.1


def test_the_same_sequence_and_slates_give_the_same_bytes(tmp_path: Path) -> None:
    examples, _ = two_camps(400)
    examples = replace(examples, beside=named(np.arange(800) % FILMS).reshape(400, 2))
    items = TowerItems(named(np.arange(FILMS)), {"year": (np.arange(FILMS) % 7).astype(np.float64)})
    for name in ("a", "b"):
        fit_towers(replace(SPEC, sequence=True), examples, items, tmp_path / name, epochs=2)
    for file in (path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_cuda_is_where_it_is_learned_when_there_is_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for present, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda present=present: present)
        assert device_of().type == expected
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize("impressions", [True, False])
def test_a_positive_knows_what_serving_knew_when_it_was_asked(impressions: bool) -> None:
    """Whoever clicks and then watches was shown the film before both; without impressions each is asked for alone."""
    member = Entity("user", mood=str)
    click, see, slate = EventType("click", member, film), EventType("see", member, film), Impression(member, film)
    clicked, gains = click.by(member).last("film", 5), dict[EventSchema, float]({click: 1.0, see: 2.0})
    spec = TwoTower(clicked, user_attributes=("mood",))
    labels = Labels(slate, gains, within="1h") if impressions else ObservedPositives(gains)
    project = Project("films", member, film, [click, see, slate], labels, [clicked], sources=[spec])
    assert project.problems() == []
    log, table, rng = MemoryLog(project.schemas), FeatureTable(project.feature_set()), np.random.default_rng(0)
    log.subscribe(table.update, 0)
    known: list[tuple[NDArray[np.int64], str]] = []
    moods: dict[str, str] = {}

    def asked(who: str, now: int) -> tuple[NDArray[np.int64], str]:
        ids = {"user": hash_strings([who]), "film": hash_strings(["f0"])}
        return table.read(ids, now, {}, [clicked.name]).lists[clicked.name][0].copy(), moods.get(who, "")

    for turn in range(60):
        who, what, at = f"u{turn % 4}", f"f{turn % 7}", 200_000 * turn
        before = asked(who, at)
        if turn % 5:  # the others were found by searching, and no slate led to them
            places = [
                {"film": name, "position": place} for place, name in enumerate([what, f"f{rng.integers(7, 20)}"], 1)
            ]
            log.append(
                [{"kind": "impression", "request": f"r{turn}", "user": who, "at": at, **each} for each in places]
            )
        moods[who] = f"m{turn}"  # between the slate and the action
        log.append([{"kind": "user", "at": at, "user": who, "mood": moods[who]}], received=at)
        for place, kind in enumerate(("click", "see"), 1):
            known.append(before if impressions and turn % 5 else asked(who, at + place))
            log.append([{"kind": kind, "at": at + place, "user": who, "film": what}], received=at + place)
    log.append([{"kind": "film", "at": 10**8, "film": "f0"}], received=10**8)  # closes all windows
    examples = examples_of(spec, survey(project, log, 0, lambda *_: None).lesson)
    assert np.array_equal(examples.history, [past for past, _ in known])
    mood = examples.columns["mood"]
    assert isinstance(mood, Ragged)
    said = [mood.values[start:stop].tolist() for start, stop in pairwise(mood.offsets.tolist())]
    assert said == [hash_strings([one]).tolist() if one else [] for _, one in known]


def test_films_that_nobody_acted_on_are_learned_to_be_unwanted() -> None:
    """No batch has them among its positives: they are drawn as further negatives, or nobody ever learns of them."""
    examples, _ = two_camps(2_000)
    here = np.flatnonzero(np.isin(examples.item, named(np.arange(50))))
    past = np.zeros((len(here), 8), np.uint64)
    examples = TowerExamples(examples.user[here], past, examples.item[here], np.arange(len(here)), {})
    items = TowerItems(named(np.arange(FILMS)), {})
    fitting = fitted(SPEC, examples, items, 4)
    place = np.searchsorted(np.sort(items.hashes), items.hashes)
    scores = (fitting.user_vectors(torch.arange(200)) @ fitting.item_vectors().T).numpy()[:, place]
    assert scores[:, 50:].mean() < scores[:, :50].mean() - 0.3


def test_what_the_same_user_liked_is_no_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "UNIFORM", 0.0)
    items, losses = TowerItems(np.sort(named(np.arange(FILMS))), {}), []
    for people in (["ann", "ann"], ["ann", "bob"]):
        nothing = np.zeros((2, 8), np.uint64)
        examples = TowerExamples(hash_strings(people), nothing, items.hashes[:2], np.arange(2), {})
        fitting, _ = prepared(SPEC, examples, items, 0)
        losses.append(fitting.loss(torch.arange(2)).item())
    assert losses[0] == pytest.approx(0, abs=1e-6)  # nothing is left to choose from
    assert losses[1] > 0.01


def test_learning_stops_when_it_gets_no_better_and_keeps_its_best(monkeypatch: pytest.MonkeyPatch) -> None:
    examples, _ = two_camps(300)
    fitting, _ = prepared(SPEC, examples, TowerItems(np.sort(named(np.arange(FILMS))), {}), 0)
    told, seen = iter([0.1, 0.5, 0.4, 0.5, 0.9]), list[torch.Tensor]()

    def recall(given: Fitting, *_: object) -> float:
        seen.append(given.model.item.ids.detach().clone())
        return next(told)

    monkeypatch.setattr(Fitting, "recall", recall)
    assert fit(fitting, torch.arange(250), torch.arange(250, 300), 5, 5, lambda *_: None) == (2, 0.5)
    assert len(seen) == 4
    assert not torch.equal(seen[1], seen[3])
    assert torch.equal(fitting.model.item.ids, seen[1])


def test_the_newest_decide_when_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples, _ = two_camps(400)
    at, parts = np.random.default_rng(1).permutation(400), list[torch.Tensor]()

    def watched(*given: Any) -> tuple[int, float]:
        parts.extend(given[1:3])
        return 1, 0.5

    monkeypatch.setattr(learning, "fit", watched)
    fit_towers(SPEC, replace(examples, at=at), TowerItems(named(np.arange(FILMS)), {}), tmp_path)
    learned, held_out = (np.sort(at[part.numpy()]) for part in parts)
    assert learned.tolist() == list(range(360))
    assert held_out.tolist() == list(range(360, 400))


def test_how_long_ago_an_item_was_is_learned() -> None:
    """Only the newest film says which one comes next; the seven before it are anything."""
    rng, n = np.random.default_rng(0), 3_000
    past = rng.integers(0, FILMS // 2, (n, 8))
    before, after = named(past.ravel()).reshape(n, 8), named(past[:, 0] + FILMS // 2)
    examples = TowerExamples(np.zeros(n, np.uint64), before, after, np.arange(n), {})
    fitting = fitted(SPEC, examples, TowerItems(named(np.arange(FILMS)), {}), 4)
    by_age = fitting.model.recency.detach()
    assert by_age[0] > by_age[1:].max() + 0.5
    places = torch.tensor([[0, 3], [5, 2]])
    weights = torch.softmax(fitting.model.worth.detach()[places][:, :, 0] + by_age[torch.tensor([0, 4])], dim=1)
    pooled = fitting.model.pooled(places, torch.tensor([0, 4])).detach()
    assert torch.allclose(pooled[1], weights[1] @ fitting.model.item.ids.detach()[places[1]], atol=1e-5)


def test_the_newest_examples_count_most_and_one_on_average() -> None:
    at = np.random.default_rng(0).permutation(1_000)
    weights = recency(at)[np.argsort(at)]
    assert weights.mean() == pytest.approx(1, rel=1e-5)
    assert (np.diff(weights) > 0).all()
    assert weights[-1] / weights[0] == pytest.approx(1 / 0.1, rel=0.02)
