"""Judging slates that were shown: what counts, and that the place at which something stood decides nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shortlist.events.labels import Labels, ObservedPositives
from shortlist.events.log import MemoryLog
from shortlist.events.schema import Entity
from shortlist.features.definitions import EventType, Impression, request_feature
from shortlist.framing.objective import Objective
from shortlist.project import Project
from shortlist.ranking.specs import BoostedTrees, LogisticRegression
from shortlist.retrieval.specs import Fresh, Popular
from shortlist.training.judging import MOST_LOOKS, ShownSlates, looks
from shortlist.training.rankers.fitting import RankingData
from shortlist.training.rankers.linear import PlaceEffect
from shortlist.training.releases import Release
from shortlist.training.train import train

Floats = NDArray[np.float64]
HOUR = 3_600_000


def test_an_order_is_worth_what_followed_by_its_place_and_what_is_hidden_costs() -> None:
    slates = ShownSlates(np.array([3, 2]), np.array([0, 1]), np.array([1.0, -2.0, 3.0, 0.0, 4.0]))
    second, third = 1 / np.log2(3), 0.5
    best = np.array([3 + second - 2 * third, 4.0])
    found = slates.values(np.array([2.0, 3.0, 1.0, 1.0, 0.0]), 3)
    assert found == pytest.approx(np.array([-2 + second + 3 * third, 4 * second]) / best.mean())
    assert slates.values(slates.worth, 3).mean() == pytest.approx(1.0)
    cut = slates.values(np.array([2.0, 3.0, np.nan, 0.0, np.nan]), 1)
    assert cut == pytest.approx(np.array([-2.0, 0.0]) / 3.5)


def test_users_of_whom_nothing_is_known_say_nothing_and_slates_of_one_user_count_as_one() -> None:
    slates = ShownSlates(np.array([1, 1, 1, 1]), np.array([0, 0, 1, 2]), np.array([1.0, 3.0, 0.0, 2.0]))
    found = slates.values(np.zeros(4), 10)
    assert np.isnan(found[1])
    assert found[[0, 2]] == pytest.approx([1.0, 1.0])
    nothing = ShownSlates(np.array([2]), np.array([0]), np.zeros(2))
    assert np.isnan(nothing.values(np.zeros(2), 10)).all()
    assert len(ShownSlates(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)).values(np.empty(0), 10)) == 0


def looked_at(rng: np.random.Generator, requests: int) -> RankingData:
    """Slates by an old policy that nobody cares for; the place p is looked at once in p times, and taste decides."""
    columns = rng.normal(size=(2, requests, 10))
    rank = np.argsort(np.argsort(-columns[1] + 0.5 * rng.normal(size=columns[1].shape), axis=1), axis=1) + 1.0
    click = rng.random(rank.shape) < np.minimum(0.6, np.exp(columns[0] - 3)) / rank
    return RankingData(
        columns.reshape(2, -1),
        ("taste", "policy"),
        click.ravel().astype(np.float64),
        np.repeat(np.arange(requests), 10),
        rank.ravel().astype(np.float64),
    )


def judged(data: RankingData, looked: Floats, score: Floats) -> float:
    """The mean over slates, each of another user."""
    return float(np.nanmean(ShownSlates(data.sizes, np.arange(len(data.sizes)), data.gain * looked).values(score, 10)))


def test_what_the_place_does_is_found_beside_what_the_columns_say() -> None:
    data = looked_at(np.random.default_rng(1), 3_000)
    found = looks(PlaceEffect.of(data, 0), np.array([1.0, 2.0, 5.0, 10.0, 40.0, np.nan]))
    assert found[[0, 4, 5]] == pytest.approx([1.0, MOST_LOOKS, 1.0])
    assert found[1:4] == pytest.approx([2.0, 5.0, 10.0], rel=0.2)


def test_the_better_order_wins_though_the_old_one_was_looked_at() -> None:
    data = looked_at(np.random.default_rng(2), 3_000)
    assert data.rank is not None
    taste, policy = data.matrix
    plain = np.ones(len(taste))
    corrected = looks(PlaceEffect.of(data, 0), data.rank)
    assert judged(data, plain, taste) < judged(data, plain, -data.rank) + 0.02  # whoever repeats the slate looks good
    assert judged(data, corrected, taste) > judged(data, corrected, policy) + 0.1
    assert judged(data, corrected, taste) > judged(data, corrected, -data.rank) + 0.1
    # in expectation it is what the order is worth to somebody who looks everywhere
    slates, chance = data.matrix.shape[1] // 10, np.minimum(0.6, np.exp(taste - 3))
    discount = 1 / np.log2(np.arange(2, 12))
    truth = {
        name: float((np.take_along_axis(chance.reshape(slates, 10), order, axis=1) @ discount).mean())
        for name, score in (("taste", taste), ("policy", policy))
        for order in [np.argsort(-score.reshape(slates, 10), axis=1)]
    }
    found = judged(data, corrected, taste) / judged(data, corrected, policy)
    assert found == pytest.approx(truth["taste"] / truth["policy"], rel=0.1)


user, film = Entity("user"), Entity("film", genre=str, bait=float)
click, hide = EventType("click", user, film), EventType("hide", user, film)
impression = Impression(user, film)


@request_feature
def tempting(film_bait: Any) -> Any:
    """How much it tempts."""
    return film_bait


def project(hide_is_worth: float) -> Project:
    return Project(
        name="films",
        user=user,
        item=film,
        events=[click, hide, impression],
        labels=Labels(impression, {click: 1.0}, within="30m"),
        features=[click.by(user).share("film.genre"), tempting],
        objective=Objective("clicks, less what is hidden", proxies={"hide": hide_is_worth}),
        sources=[Popular(quota=30)],
        rankers=[LogisticRegression(), BoostedTrees("pointwise", trees=20), BoostedTrees("listwise", trees=20)],
    )


def released(place: Path, declared: Project, attention: float, bait: float, force: bool = False) -> Release:
    """Slates in the order of the films' numbers; one's own genre is clicked, so is what tempts, which is then hidden.

    The place p is looked at with the probability p ** -attention.
    """
    rng = np.random.default_rng(7)
    tempts = np.where(rng.random(60) < 0.3, bait, 0.0)
    events: list[dict[str, Any]] = [
        {"kind": "film", "at": 0, "film": f"f{n}", "genre": f"g{n % 3}", "bait": float(tempts[n])} for n in range(60)
    ]
    for slate in range(900):
        who, at = int(rng.integers(40)), slate * HOUR
        names = {"at": at, "user": f"u{who}"}
        for place_, what in enumerate(np.sort(rng.choice(60, 8, replace=False))):
            shown = {**names, "kind": "impression", "film": f"f{what}", "request": f"r{slate}", "position": place_ + 1}
            events.append(shown)
            chance = 1 / (1 + np.exp(1.5 - 2 * (what % 3 == who % 3) - tempts[what]))
            if rng.random() < chance * (place_ + 1.0) ** -attention:
                events.append({**names, "at": at + 1, "kind": "click", "film": f"f{what}"})
                if tempts[what] and rng.random() < 0.8:
                    events.append({**names, "at": at + 2, "kind": "hide", "film": f"f{what}"})
    assert declared.problems() == []
    log = MemoryLog(declared.schemas)
    log.append(events)
    return train(declared, log, place, force=force)


def of(release: Release, method: str) -> float:
    value = release.manifest.metrics[f"{method}.ndcg@10"]
    assert value is not None
    return value


def test_a_better_ranker_is_served_though_people_look_at_the_top_only(tmp_path: Path) -> None:
    release = released(tmp_path, project(0.0), attention=1.0, bait=0.0)
    assert release.manifest.ranker
    assert of(release, "two_stage") > of(release, "popularity") + 0.05


def test_what_is_clicked_and_then_hidden_is_worth_what_the_objective_says(tmp_path: Path) -> None:
    clicks = released(tmp_path / "clicks", project(0.0), attention=0.5, bait=3.0)
    worth = released(tmp_path / "worth", project(-4.0), attention=0.5, bait=3.0)
    for name in ("logistic_regression", "pointwise_trees", "listwise_trees"):
        assert of(clicks, name) > 0.6, name
        assert of(worth, name) > of(worth, "popularity") + 0.3, name
    assert of(worth, "popularity") < 0  # more is lost by it than won
    rate = worth.manifest.details["rankers"]["logistic_regression"]["figures"]["hide.held_out_rate"]
    assert rate > 0.03


def test_without_a_ranker_what_serves_is_not_judged_as_if_it_were_popularity(tmp_path: Path) -> None:
    """What is left is the order of what was found, of which slates that were shown say nothing."""
    declared = replace(project(0.0), sources=[Fresh()], rankers=[], features=[])
    release = released(tmp_path, declared, attention=0.0, bait=0.0)
    details = release.manifest.details
    assert details["evaluation"]["judged_on"] == "requests of the past, replayed"
    methods = details["evaluation"]["methods"]
    assert methods["two_stage"]["ndcg@10"] == methods["fresh"]["ndcg@10"] != methods["popularity"]["ndcg@10"]


def test_a_ranker_does_not_make_up_for_sources_that_find_less_than_popularity(tmp_path: Path) -> None:
    declared = replace(project(0.0), sources=[Fresh(quota=3)], rankers=[LogisticRegression()])
    release = released(tmp_path / "gated", declared, attention=0.0, bait=0.0)
    assert release.manifest.ranker == ""
    assert release.manifest.sources == ("popular",)
    said = release.manifest.details["findings"][-1]
    found = r"of what was wanted on the held-out slice sources find [\d.]+%, popularity alone [\d.]+%; "
    assert re.fullmatch(found + "popular items are served", said)
    forced = released(tmp_path / "forced", declared, attention=0.0, bait=0.0, force=True)
    assert forced.manifest.ranker == "logistic_regression"
    assert "it serves all the same, by force" in forced.manifest.details["findings"][-1]


def test_a_proxy_that_nothing_is_learned_from_is_named(tmp_path: Path) -> None:
    declared = replace(project(-4.0), labels=ObservedPositives({click: 1.0}))
    release = released(tmp_path, declared, attention=0.5, bait=3.0)
    said = [finding for finding in release.manifest.details["findings"] if "is not learned" in finding]
    assert len(said) == 1
    assert said[0].startswith("the objective's proxy 'hide' is not learned: without impressions nobody knows")
