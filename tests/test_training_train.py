"""Training from end to end on logs that are tiny, odd or empty; what it publishes, and what it refuses to serve."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from shortlist.events.labels import Labels, ObservedPositives
from shortlist.events.log import MemoryLog
from shortlist.events.schema import Entity
from shortlist.features.definitions import EventType, Feature, Impression
from shortlist.features.table import FeatureTable
from shortlist.framing.objective import Objective
from shortlist.project import Project
from shortlist.ranking.specs import Ensemble, LambdaMART, LogisticRegression
from shortlist.report import as_document, judged_on, notes
from shortlist.retrieval.specs import Popular, TwoTower
from shortlist.serving.batch import Nobody
from shortlist.serving.recommend import load_champion
from shortlist.slate.specs import RuleSpec, Seen
from shortlist.training.dataset import past_requests, survey, write_dataset
from shortlist.training.rankers.fitting import NothingToLearnError
from shortlist.training.releases import Registry, Release
from shortlist.training.sources.fitting import fit_source
from shortlist.training.train import Steps, TrainingError, chosen, learn, train

user, film = Entity("user", age=int), Entity("film", genre=str)
watch = EventType("watch", user, film, stars=float | None)
impression = Impression(user, film)
history = watch.by(user).last("film", 5)
FEATURES: list[Feature] = [watch.by(film).count().named("watched"), watch.by(user).share("film.genre"), history]
TOWERS = TwoTower(history, item_attributes=("genre",), dimensions=8, epochs=2)
HOUR = 3_600_000


STEPS: set[str] = set()


def note(step: str, share: float) -> None:
    """Progress that is watched."""
    assert 0 <= share <= 1
    STEPS.add(step)


def project(**changed: Any) -> Project:
    whole = Project(
        name="films",
        user=user,
        item=film,
        events=[watch, impression],
        labels=ObservedPositives({watch: 1.0}),
        features=FEATURES,
        sources=[Popular(quota=20), TOWERS],
        rankers=[LambdaMART(trees=5), LogisticRegression()],
    )
    return replace(whole, **changed)


def log_of(events: Sequence[dict[str, Any]]) -> MemoryLog:
    log = MemoryLog(project().schemas)
    for event in events:
        assert log.append([event], received=event["at"]).accepted == 1
    return log


def taste_events(watches: int, films: int = 40, users: int = 25, seed: int = 3) -> list[dict[str, Any]]:
    """Everybody watches films of one genre, popular ones more often."""
    rng = np.random.default_rng(seed)
    events = [{"kind": "film", "at": 0, "film": f"f{n}", "genre": f"g{n % 3}"} for n in range(films)]
    for turn in range(watches):
        who = int(rng.integers(users))
        what = int(films * rng.random() ** 2) // 3 * 3 + who % 3
        event = {"kind": "watch", "at": turn * HOUR, "user": f"u{who}", "film": f"f{min(what, films - 1)}"}
        events.append({**event, "stars": float(rng.integers(1, 6))})
    return events


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return train(project(), log_of(taste_events(700)), tmp_path_factory.mktemp("releases"), seed=5)


def test_a_release_holds_what_serving_needs_and_says_how_good_it_is(trained: Release) -> None:
    manifest = trained.manifest
    assert manifest.rankers == ("lambdamart", "logistic_regression")
    assert trained.path("sources/two_tower").is_dir()
    assert trained.path(f"rankers/{manifest.rankers[0]}").is_dir()
    assert "early" not in {name.split("/")[0] for name in manifest.files}
    assert manifest.log_position == 740
    evaluation = manifest.details["evaluation"]
    methods = {"popularity", "two_tower", "lambdamart", "logistic_regression", "two_stage"}
    assert set(evaluation["methods"]) == methods
    assert set(evaluation["retrieval"]) == {"popularity", "two_tower", "merged"}
    assert 0 < evaluation["methods"]["two_stage"]["ndcg@10"]["value"] <= 1
    assert (
        sum(count for name, count in evaluation["losses"].items() if name != "positives")
        == evaluation["losses"]["positives"]
    )
    for name in (
        "ndcg@10",
        "recall@10",
        "mrr@10",
        "coverage@10",
        "recall@100",
        "recall@500",
        "popular.ndcg@10",
        "popularity.ndcg@10",
    ):
        assert manifest.metrics[name] is not None
    assert judged_on(trained) == ""
    assert set(trained.created["seconds"]) >= {"read the log", "fit sources", "fit rankers", "evaluate"}


def test_the_same_log_and_seed_give_the_same_release_to_the_byte(trained: Release, tmp_path: Path) -> None:
    again = train(project(), log_of(taste_events(700)), tmp_path, seed=5)
    assert again.manifest.files == trained.manifest.files
    assert again.version == trained.version
    assert (again.directory / "manifest.json").read_bytes() == (trained.directory / "manifest.json").read_bytes()


def failing(monkeypatch: pytest.MonkeyPatch, time: int, why: str) -> list[str]:
    """Let two towers fail when they are fitted for so many times; the sources that were fitted."""
    tries: list[str] = []

    def fit(spec: Any, *lesson: Any) -> Any:
        tries.append(spec.name)
        if tries.count("two_tower") == time:
            raise NothingToLearnError(why)
        return fit_source(spec, *lesson)

    monkeypatch.setattr("shortlist.training.dataset.fit_source", fit)
    return tries


def test_where_a_source_fails_on_everything_what_was_measured_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = failing(monkeypatch, 3, "diverged")
    log = log_of(taste_events(700))
    release = train(project(), log, tmp_path / "releases", seed=5, force=True)
    assert tries.count("two_tower") == 3
    assert release.manifest.sources == ("popular", "two_tower")
    said = [finding for finding in release.manifest.details["findings"] if "diverged" in finding]
    assert ["as they were measured" in finding for finding in said] == [True]
    load_champion(project(), release, FeatureTable(project().feature_set()), Nobody(), lambda _: None)
    measured = tmp_path / "measured"
    measured.mkdir()
    learn(survey(project(), log, 5, note), measured, note, Steps())
    names = [name for name in release.manifest.files if name.startswith("sources/")]
    assert names
    assert all((release.directory / name).read_bytes() == (measured / name).read_bytes() for name in names)
    assert {name.split("/")[0] for name in release.manifest.files} == {"sources", "rankers"}


def test_a_source_that_fails_once_rankers_have_learned_from_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, 2, "its attributes are out of bounds")
    with pytest.raises(TrainingError, match=r"source two_tower was left out: its attributes .*; it could be fitted on"):
        train(project(), log_of(taste_events(700)), tmp_path, seed=5)
    assert Registry(tmp_path).versions() == []


def test_what_is_measured_learned_nothing_from_the_held_out_part(trained: Release, tmp_path: Path) -> None:
    events = taste_events(700)
    cut = trained.manifest.details["split"]["cut"]
    other = [*events[:cut], *({**event, "film": "f1", "stars": 5.0} for event in events[cut:])]
    digests = []
    for place, told in ((tmp_path / "as it was", events), (tmp_path / "other", other)):
        place.mkdir()
        learn(survey(project(), log_of(told), 5, lambda *_: None), place, lambda *_: None, Steps())
        digests.append({path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()})
    assert {path.parts[0] for path in digests[0]} == {"sources", "rankers"}
    assert digests[0] == digests[1]


def test_what_is_published_learned_from_the_held_out_part_too(trained: Release, tmp_path: Path) -> None:
    events = taste_events(700)
    cut = trained.manifest.details["split"]["cut"]
    other = [*events[:cut], *({**event, "film": "f1", "stars": 5.0} for event in events[cut:])]
    before, after = trained.manifest.files, train(project(), log_of(other), tmp_path, seed=5).manifest.files
    rankers = [name for name in before if name.startswith("rankers/")]
    assert rankers
    assert all(after[name] == before[name] for name in rankers)
    assert any(after.get(name) != before[name] for name in before if name.startswith("sources/"))


def test_some_users_choose_by_their_newest_positives_and_the_others_learn_from_theirs() -> None:
    ground = survey(project(), log_of(taste_events(700)), 5, note)
    (latest, early), (learning, none), (choosing, every) = past_requests(ground)
    assert 0.05 < early.mean() < 0.5
    assert not none.any()
    assert every.all()
    assert not set(latest.user[early]) & set(latest.user[~early])
    assert latest.position.max() < ground.split.sources <= learning.position.min()
    assert learning.position.max() < ground.split.rankers <= choosing.position.min()
    sources = ground.early().positives  # what sources are fitted on knows nothing of them
    known = set(zip(sources.user.tolist(), sources.position.tolist(), strict=True))
    assert not known & set(zip(latest.user.tolist(), latest.position.tolist(), strict=True))


def test_an_ensemble_is_made_of_the_others_and_serves_whoever_does_best_where_they_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortlist.training.train.chosen", lambda validation: max(validation))  # a member, by luck
    of = project(rankers=[Ensemble(), LambdaMART(trees=5)])  # declared before what it is made of
    release = train(of, log_of(taste_events(700)), tmp_path, seed=5, force=True)
    assert release.manifest.rankers == ("lambdamart", "logistic_regression", "ensemble")
    chosen_by = release.manifest.details["chosen"]["validation_ndcg@10"]
    assert set(chosen_by) == set(release.manifest.rankers)
    assert release.manifest.details["chosen"]["ranker"] == "ensemble"
    assert set(release.manifest.details["evaluation"]["methods"]) >= {"ensemble", "lambdamart", "two_stage"}


def test_a_source_that_is_left_out_stands_with_missing_columns(trained: Release) -> None:
    champion = load_champion(project(), trained, FeatureTable(project().feature_set()), Nobody(), lambda _: None)
    assert set(champion.recommend.defaults["two_tower"]) == {"two_tower_score"}


def test_the_simplest_ranker_that_no_other_beats_for_certain_is_chosen() -> None:
    rng = np.random.default_rng(4)
    simple = rng.random(400)
    much = simple + 0.05 + 0.05 * rng.standard_normal(400)
    noise = 0.05 * rng.standard_normal(400)
    hardly = simple + 0.001 + noise - noise.mean()  # a standard error is 0.0025
    assert chosen({"simple": simple, "much": much}) == "much"
    assert chosen({"simple": simple, "hardly": hardly}) == "simple"
    assert chosen({"much": much, "simple": simple}) == "much"
    assert chosen({"simple": np.empty(0), "other": np.empty(0)}) == "simple"
    assert chosen({}) == ""


def test_an_empty_log_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the log of project 'films' is empty.*shortlist ingest"):
        train(project(), log_of([]), tmp_path)
    assert Registry(tmp_path).versions() == []


def test_a_log_that_names_no_item_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="none of the 1 events of the log names a 'film'"):
        train(project(), log_of([{"kind": "user", "at": 0, "user": "u", "age": 3}]), tmp_path)


def watches(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"kind": "watch", "at": n * HOUR, "user": who, "film": what} for n, (who, what) in enumerate(pairs)]


ODD = {
    "one event": watches(("u", "f")),
    "one user": watches(*[("u", f"f{n}") for n in range(30)]),
    "one item": watches(*[(f"u{n}", "f") for n in range(30)]),
    "one user, one item, often": watches(*[("u", "f")] * 20),
    "no positives": [{"kind": "film", "at": 0, "film": f"f{n}"} for n in range(5)],
    "long unicode ids": watches(*[(f"ü{n % 5}" * 200, f"映画{n % 7}" * 100) for n in range(40)]),
    "all at one moment": [{**event, "at": 0} for event in taste_events(60)],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_logs_make_a_release_that_serves_what_it_can(name: str, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    release = train(project(), log_of(ODD[name]), registry)
    assert release.manifest.sources
    assert registry.promote(release.version, "first").champion == release.version
    if name in ("one event", "no positives"):
        assert release.manifest.ranker == ""
        assert release.manifest.sources == ("popular",)
        assert any("left out" in finding for finding in release.manifest.details["findings"])


def test_what_is_worse_than_popularity_is_not_served_unless_forced(tmp_path: Path) -> None:
    events, rng = taste_events(700, users=300), np.random.default_rng(1)
    for event in events[460:600]:  # while rankers learn, everybody watches what nobody did before, and never again
        event["film"] = f"f{39 - int(12 * rng.random())}"
    log = log_of(events)
    misled = project(sources=[Popular(quota=40)], features=[FEATURES[0]], rankers=[LogisticRegression()])
    modest = train(misled, log, tmp_path / "modest")
    served, baseline = (modest.manifest.metrics[name] for name in ("ndcg@10", "popularity.ndcg@10"))
    assert served is not None
    assert served == baseline
    assert modest.manifest.ranker == ""
    assert "of popularity alone; popular items are served" in " ".join(modest.manifest.details["findings"])
    forced = train(misled, log, tmp_path / "forced", force=True)
    assert forced.manifest.ranker
    assert "by force" in " ".join(forced.manifest.details["findings"])
    assert Registry(tmp_path / "forced").failed_checks(forced.manifest)


def test_impressions_are_learned_from_where_they_are_logged(tmp_path: Path) -> None:
    rng, events = (
        np.random.default_rng(2),
        [{"kind": "film", "at": 0, "film": f"f{n}", "genre": f"g{n % 3}"} for n in range(30)],
    )
    for slate in range(150):
        who, at = int(rng.integers(20)), slate * HOUR
        shown = rng.choice(30, 5, replace=False)
        for position, what in enumerate(shown):
            event = {"kind": "impression", "at": at, "user": f"u{who}", "film": f"f{what}", "request": f"r{slate}"}
            events.append({**event, "position": position + 1, **({"context": "phone"} if 110 <= slate < 112 else {})})
        liked = [what for what in shown if what % 3 == who % 3]
        events += [{"kind": "watch", "at": at + 1, "user": f"u{who}", "film": f"f{what}"} for what in liked]
    whole = project(labels=Labels(impression, {watch: 1.0}, within="30m"))
    release = train(whole, log_of(events), tmp_path)
    data = release.manifest.details["data"]
    assert (data["impressions_unclosed"], data["contexts_unreadable"]) == (5, 10)
    said = "\n".join(notes(release))
    assert "5 impressions are too new to say what follows them" in said
    assert "10 impressions have a context that is no JSON object" in said
    assert "left out of the rankers: user_age (always missing)" in said
    assert as_document(release)["notes"] == notes(release)
    assert data["negatives"] == "shown and not acted on"
    assert data["ranker_rows"] > 100
    rows, columns = write_dataset(whole, log_of(events), tmp_path / "rows.parquet", 1, note)
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.num_rows == rows
    assert table.column_names == columns
    assert {"part", "request", "gain", "watched", "two_tower_score"} <= set(columns)
    assert set(table["gain"].to_pylist()) == {0.0, 1.0}


def test_a_project_without_sources_and_rankers_still_gets_popular_items(tmp_path: Path) -> None:
    release = train(project(sources=[], rankers=[]), log_of(taste_events(200)), tmp_path)
    assert release.manifest.sources == ("popular",)
    assert release.manifest.ranker == ""
    assert "logistic_regression" in release.manifest.rankers


def test_the_starter_project_trains(tmp_path: Path) -> None:
    from shortlist.project import load_project
    from shortlist.starter import make

    make(tmp_path)
    starter = load_project(tmp_path)
    log = MemoryLog(starter.schemas)
    log.append((tmp_path / "events.jsonl").read_bytes())
    release = train(starter, log, tmp_path / "trained", progress=note)
    assert Registry(tmp_path / "trained").promote(release.version, "first").champion == release.version
    assert {"read the log", "draw negatives", "evaluate"} <= STEPS
    json.dumps(dict(release.manifest.details), allow_nan=False)


def test_where_impressions_are_logged_what_was_shown_judges(tmp_path: Path) -> None:
    """Shown at random, one genre is liked; popularity is what the policy showed most, and the worst of orders."""
    rng = np.random.default_rng(6)
    events = [{"kind": "film", "at": 0, "film": f"f{n}", "genre": f"g{n % 3}"} for n in range(30)]
    for slate in range(700):
        who, at = int(rng.integers(15)), slate * HOUR
        odds = np.where(np.arange(30) % 3 == who % 3, 1.0, 6.0)
        shown = rng.choice(30, 6, replace=False, p=odds / odds.sum())
        for position, what in enumerate(shown):
            event = {"kind": "impression", "at": at, "user": f"u{who}", "film": f"f{what}", "request": f"r{slate}"}
            events.append({**event, "position": position + 1})
        liked = [what for what in shown if rng.random() < (0.8 if what % 3 == who % 3 else 0.05)]
        events += [{"kind": "watch", "at": at + 1, "user": f"u{who}", "film": f"f{what}"} for what in liked]
    whole = project(labels=Labels(impression, {watch: 1.0}, within="30m"), rankers=[LogisticRegression()])
    release = train(whole, log_of(events), tmp_path)
    evaluation = release.manifest.details["evaluation"]
    assert evaluation["judged_on"] == "slates that were shown, ordered again"
    assert 50 <= evaluation["shown_slates"] <= 160
    assert f"{evaluation['shown_slates']} slates shown, ordered again" in judged_on(release)
    judged, replayed = evaluation["methods"], evaluation["replayed"]
    assert judged["two_stage"]["ndcg@10"]["value"] > judged["popularity"]["ndcg@10"]["value"] + 0.1
    assert judged["two_stage"]["over_popularity"]["ndcg@10"]["low"] > 0
    assert release.manifest.metrics["ndcg@10"] == judged["two_stage"]["ndcg@10"]["value"]
    assert replayed["popularity"]["ndcg@10"]["value"] != judged["popularity"]["ndcg@10"]["value"]
    assert judged["popularity"]["recall@10"] == replayed["popularity"]["recall@10"]


def test_what_users_must_not_be_shown_is_not_learned_from_and_what_may_come_again_is(tmp_path: Path) -> None:
    """Halfway everybody hides what those of other tastes watch most; then they go on watching."""
    hide = EventType("hide", user, film)
    told = taste_events(700)
    pairs = [(f"u{who}", f"f{(who + 1) % 3}") for who in range(25)]
    hidden = [{"kind": "hide", "at": told[300]["at"], "user": who, "film": what} for who, what in pairs]
    of_pairs: list[Feature] = [pair.by(user, film).count().named(f"{pair.kind}_before") for pair in (watch, hide)]

    def learned(weight: float, *slate: RuleSpec) -> dict[str, int]:
        """Of the films that users hid or watched before, how many rows there are to learn from."""
        objective = Objective("hours", {"watch": 1.0, "hide": weight})
        declared = project(
            events=[watch, hide, impression], features=of_pairs, objective=objective, sources=[Popular()], slate=slate
        )
        log = MemoryLog(declared.schemas)
        for event in [*told[:301], *hidden, *told[301:]]:
            assert log.append([event], received=event["at"]).accepted == 1
        write_dataset(declared, log, tmp_path / "rows.parquet", 1, note)
        table = pq.read_table(tmp_path / "rows.parquet")
        return {name: int((table[f"{name}_before"].to_numpy() > 0).sum()) for name in ("watch", "hide")}

    assert learned(-10.0) == {"watch": 0, "hide": 0}
    indifferent = learned(0.0)
    assert indifferent["watch"] == 0 < indifferent["hide"]
    again = learned(-10.0, Seen(hide))
    assert again["hide"] == 0 < again["watch"]
