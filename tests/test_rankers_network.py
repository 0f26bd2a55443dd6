"""The deep cross network learns: every action at once, whatever the place, and says what it cannot learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shortlist.events.labels import Labels
from shortlist.events.log import MemoryLog
from shortlist.events.schema import Entity
from shortlist.features.definitions import EventType, Impression
from shortlist.framing.objective import Objective
from shortlist.project import Project
from shortlist.ranking.network import Network
from shortlist.ranking.scoring import load_scorer
from shortlist.ranking.specs import BoostedTrees, DeepCross, LambdaMART, LogisticRegression, RankerSpec
from shortlist.retrieval.specs import Popular
from shortlist.training.rankers.calibration import calibration_error
from shortlist.training.rankers.fitting import FittedRanker, NothingToLearnError, RankingData, fit_ranker
from shortlist.training.train import train

Floats = NDArray[np.float64]
NAMES = ("taste", "policy", "bait")
SLATE = 10


def sigmoid(odds: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-odds)))


def shown(seed: int, requests: int = 300) -> RankingData:
    """Slates ordered by `policy`, which nobody cares for; what is at the top is looked at.

    A click needs a look and `taste` or `bait`; whom bait made click, hides the item afterwards.
    """
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(3, requests, SLATE))
    order = np.argsort(-(columns[1] + 0.5 * rng.normal(size=(requests, SLATE))), axis=1)
    rank = np.argsort(order, axis=1).ravel().astype(np.float64) + 1
    taste, _, bait = matrix = columns.reshape(3, -1)
    click = rng.random(len(rank)) < sigmoid(1.5 * taste + bait - 1) / rank
    hide = click & (rng.random(len(rank)) < sigmoid(2 * bait - 1))
    like = np.zeros(len(rank), np.bool_)
    actions = {"click": click, "hide": hide, "like": like}
    blend = {"click": 1.0, "hide": -3.0, "like": 5.0}
    gain, group = click.astype(np.float64), np.repeat(np.arange(requests), SLATE)
    return RankingData(matrix, NAMES, gain, group, rank, actions, blend)


def fitted(
    data: RankingData, validation: RankingData | None, place: Path, epochs: int = 8
) -> tuple[FittedRanker, Network]:
    made = fit_ranker(DeepCross(epochs=epochs), data, validation, place, seed=3)
    scorer = load_scorer(place)
    assert isinstance(scorer, Network)
    return made, scorer


def alike(scores: Floats, truth: Floats) -> float:
    """The correlation of two orders."""
    return float(np.corrcoef(np.argsort(np.argsort(scores)), np.argsort(np.argsort(truth)))[0, 1])


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[FittedRanker, Network]:
    return fitted(shown(1), shown(2, 150), tmp_path_factory.mktemp("network"))


@pytest.mark.parametrize(
    "spec",
    [
        LogisticRegression(),
        BoostedTrees("pointwise", trees=50, leaves=31),
        BoostedTrees("pairwise", trees=50),
        LambdaMART(trees=50),
        DeepCross(epochs=8),
    ],
    ids=lambda spec: spec.name,
)
def test_whoever_knows_the_place_orders_better(spec: RankerSpec, tmp_path: Path) -> None:
    """The policy put at the top what it liked; without the place that looks like a reason to click."""
    test, found = shown(4), []
    truth = 1.5 * test.matrix[0] + test.matrix[2]
    for known in (True, False):
        rows = [replace(data, rank=data.rank if known else None, actions={}) for data in (shown(1), shown(2, 150))]
        fit_ranker(spec, rows[0], rows[1], tmp_path / str(known), seed=3)
        scores = load_scorer(tmp_path / str(known)).score(test.matrix, test.names)
        found.append((alike(scores, truth), alike(scores, test.matrix[1])))
    (informed, policy), (uninformed, mistaken) = found
    assert informed > uninformed + 0.02
    assert abs(policy) < 0.25 < mistaken


def test_what_is_hidden_is_pushed_down(network: tuple[FittedRanker, Network], tmp_path: Path) -> None:
    clicks = {**shown(1).blend, "hide": 0.0}
    _, greedy = fitted(replace(shown(1), blend=clicks), replace(shown(2, 150), blend=clicks), tmp_path)
    test = shown(4)
    bait = test.matrix[2]
    assert alike(greedy.score(test.matrix, NAMES), bait) > 0.3
    assert alike(network[1].score(test.matrix, NAMES), bait) < -0.1
    for action, sign in (("click", 1), ("hide", 1)):
        assert sign * alike(network[1].probabilities(test.matrix, NAMES)[action], bait) > 0.3


def test_what_never_happened_is_no_head_and_is_named(network: tuple[FittedRanker, Network]) -> None:
    made, scorer = network
    assert [head.action for head in scorer.heads] == ["click", "hide"]
    assert made.dropped == {"action like": "never happened in 3000 training rows"}
    assert made.figures["click.held_out_rate"] == pytest.approx(shown(2, 150).gain.mean())


def test_probabilities_come_true_where_training_saw_other_rates(tmp_path: Path) -> None:
    """To learn from, three quarters of what was not clicked are left out: a model alone would promise too much."""

    def plain(seed: int) -> RankingData:
        rows = shown(seed, 600)
        click = np.random.default_rng(seed).random(len(rows.gain)) < sigmoid(1.5 * rows.matrix[0] - 2)
        return RankingData(rows.matrix, NAMES, click.astype(np.float64), rows.group)

    kept = (plain(1).gain > 0) | (np.random.default_rng(0).random(6000) < 0.25)
    made, scorer = fitted(plain(1).take(kept), plain(2), tmp_path, epochs=4)
    test = plain(4)
    chance = scorer.probabilities(test.matrix, NAMES)["acted"]
    assert chance.mean() == pytest.approx(test.gain.mean(), abs=0.02)
    assert calibration_error(np.log(chance / (1 - chance)), test.gain > 0) < 0.04
    raw, calibrated = (made.figures[f"acted.held_out_calibration_error{end}"] for end in ("_raw", ""))
    assert calibrated < 0.04 < 0.15 < raw


def test_the_network_has_the_bytes_of_its_seed(tmp_path: Path) -> None:
    for run, seed in (("one", 3), ("two", 3), ("other", 4)):
        fit_ranker(DeepCross(epochs=1), shown(1, 60), shown(2, 60), tmp_path / run, seed)
    one, two, other = ((tmp_path / run / "network.onnx").read_bytes() for run in ("one", "two", "other"))
    assert one == two != other
    assert (tmp_path / "one" / "network.json").read_bytes() == (tmp_path / "two" / "network.json").read_bytes()


def test_training_stops_where_held_out_rows_stop_gaining(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    rows = [replace(data, gain=noise.permutation(data.gain), actions={}) for data in (shown(1, 60), shown(2, 60))]
    made, _ = fitted(rows[0], rows[1], tmp_path / "noise", epochs=30)
    assert made.figures["epochs"] < 15
    assert fitted(rows[0], None, tmp_path / "all", epochs=5)[0].figures == {"epochs": 5.0}


@pytest.mark.parametrize(
    ("blend", "complaint"),
    [
        ({"click": 0.0, "hide": 0.0, "like": 5.0}, r"like \(worth 5\) happened 0 times; give the objective's proxies"),
        ({"click": 0.0, "hide": 0.0, "like": 0.0}, r"click \(worth 0\) happened \d+ times"),
    ],
)
def test_actions_that_are_worth_nothing_are_refused(blend: dict[str, float], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(NothingToLearnError, match=f"no action that is worth anything tells one.*{complaint}"):
        fit_ranker(DeepCross(), replace(shown(1, 20), blend=blend), None, tmp_path, seed=3)


def test_one_class_only_is_refused_and_an_action_of_every_row_is_left_out(tmp_path: Path) -> None:
    data = shown(1, 30)
    everywhere = {**data.actions, "like": np.ones(300, np.bool_)}
    made, scorer = fitted(replace(data, actions=everywhere), None, tmp_path, epochs=1)
    assert made.dropped == {"action like": "happened in all 300 training rows"}
    assert [head.action for head in scorer.heads] == ["click", "hide"]
    with pytest.raises(NothingToLearnError, match="all 300 training rows have the same gain"):
        fit_ranker(DeepCross(), replace(data, gain=np.zeros(300)), None, tmp_path, seed=3)


def test_a_network_that_diverges_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NothingToLearnError, match="diverged; lower its learning_rate"):
        fit_ranker(DeepCross(learning_rate=1e30, epochs=2), shown(1, 30), None, tmp_path, seed=3)


def test_rows_of_actions_and_places_must_fit() -> None:
    data = shown(1, 30)
    with pytest.raises(ValueError, match="'rank' has not one value per row; there are 300 rows"):
        replace(data, rank=np.ones(7))
    with pytest.raises(ValueError, match="'click' has not one value per row"):
        replace(data, actions={"click": np.zeros(7, np.bool_)})
    with pytest.raises(ValueError, match="does not say what 'hide' is worth"):
        replace(data, blend={"click": 1.0})
    part = data.take(data.gain > 0)
    assert part.rank is not None
    assert len(part.rank) == len(part.gain) == part.matrix.shape[1] == part.actions["hide"].shape[0] == data.gain.sum()
    assert part.actions["click"].all()


user, film = Entity("user"), Entity("film", genre=str)
click, hide = EventType("click", user, film), EventType("hide", user, film)
visit, impression = EventType("visit", user), Impression(user, film)


def slates(count: int) -> list[dict[str, Any]]:
    """Everybody clicks their own genre, and hides another one."""
    rng = np.random.default_rng(6)
    events: list[dict[str, Any]] = [{"kind": "film", "at": 0, "film": f"f{n}", "genre": f"g{n % 3}"} for n in range(30)]
    for slate in range(count):
        who, at = int(rng.integers(12)), slate * 3_600_000
        names = {"at": at, "user": f"u{who}"}
        offered = rng.choice(30, 6, replace=False)
        events += [
            {**names, "kind": "impression", "film": f"f{what}", "request": f"r{slate}", "position": place + 1}
            for place, what in enumerate(offered)
        ]
        for what in offered:
            kind = {who % 3: "click", (who + 1) % 3: "hide"}.get(what % 3)
            if kind and rng.random() < 0.6:
                events.append({**names, "at": at + 1, "kind": kind, "film": f"f{what}"})
    return events


def test_a_project_trains_a_head_for_what_its_objective_weighs(tmp_path: Path) -> None:
    """To hide is no label, because labels are worth something; the objective weighs it, and that is enough."""
    project = Project(
        name="films",
        user=user,
        item=film,
        events=[click, hide, visit, impression],
        labels=Labels(impression, {click: 1.0}, within="30m"),
        features=[click.by(user).share("film.genre"), hide.by(user).share("film.genre")],
        objective=Objective("clicks, less what is hidden", proxies={"click": 1.0, "hide": -2.0, "visit": 1.0}),
        sources=[Popular(quota=20)],
        rankers=[DeepCross(epochs=3)],
    )
    assert project.problems() == []
    log = MemoryLog(project.schemas)
    log.append(slates(400))
    release = train(project, log, tmp_path)
    assert release.manifest.ranker == "deep_cross"
    scorer = load_scorer(release.path("rankers/deep_cross"))
    assert isinstance(scorer, Network)
    assert [(head.action, head.weight) for head in scorer.heads] == [("click", 1.0), ("hide", -2.0)]
    figures = release.manifest.details["rankers"]["deep_cross"]["figures"]
    assert figures["hide.held_out_log_loss"] < 0.5
    shares = ("user_click_share_film_genre", "user_hide_share_film_genre")
    # first a genre that the user always clicks, then one that is always hidden; all else is as usual
    means = {each.column: each.unit * np.expm1(each.mean) if each.unit else each.mean for each in scorer.columns}
    usual = [np.full(2, mean) for name, mean in means.items() if name not in shares]
    names = (*shares, *(name for name in scorer.names if name not in shares))
    values = np.stack([[0.9, 0.05], [0.05, 0.9], *usual])
    chance = scorer.probabilities(values, names)
    assert chance["click"][0] > chance["click"][1]
    assert chance["hide"][0] < chance["hide"][1]
    good, bad = scorer.score(values, names)
    assert good > 0 > bad
