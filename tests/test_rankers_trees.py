"""What boosted trees learn from: single rows, pairs, or whole requests."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shortlist.ranking.scoring import load_scorer
from shortlist.ranking.specs import BoostedTrees, LambdaMART, Order
from shortlist.ranking.trees import Trees
from shortlist.training.rankers import boosting
from shortlist.training.rankers.boosting import RankNet
from shortlist.training.rankers.fitting import NothingToLearnError, RankingData, fit_ranker

OBJECTIVES: tuple[Order, ...] = ("pointwise", "pairwise", "listwise")


def requests(seed: int, count: int = 150, size: int = 10) -> RankingData:
    """Some requests are generous and some are not, and `mood` says so; within a request `taste` decides."""
    rng = np.random.default_rng(seed)
    rows = count * size
    taste, mood = rng.normal(size=rows), np.repeat(rng.normal(size=count), size)
    acted = rng.random(rows) < 1 / (1 + np.exp(-(2 * taste + 3 * mood)))
    return RankingData(
        np.stack([taste, mood]), ("taste", "mood"), acted.astype(np.float64), np.repeat(np.arange(count), size)
    )


def drawn(sizes: list[int], seed: int) -> RankingData:
    gain = np.array([0.0, 0.0, 1.0, 3.0])[np.random.default_rng(seed).integers(0, 4, sum(sizes))]
    return RankingData(np.zeros((1, len(gain))), ("a",), gain, np.repeat(np.arange(len(sizes)), sizes))


def pairs_of(data: RankingData) -> list[tuple[int, int]]:
    rows = range(len(data.gain))
    return [(i, j) for i in rows for j in rows if data.group[i] == data.group[j] and data.gain[i] > data.gain[j]]


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_all_rows_of_a_request_with_different_gains(seed: int) -> None:
    data = drawn([1, 7, 4, 2, 12], seed)
    found = RankNet.of(data, seed=0)
    assert sorted(zip(found.better.tolist(), found.worse.tolist(), strict=True)) == pairs_of(data)


def test_of_too_many_pairs_some_are_drawn_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boosting, "MOST_PAIRS", 50)
    data = drawn([30, 40], 1)
    one, two, other = (RankNet.of(data, seed) for seed in (3, 3, 4))
    assert len(one.better) == 50
    assert one.better.tolist() == two.better.tolist() != other.better.tolist()
    assert set(zip(one.better.tolist(), one.worse.tolist(), strict=True)) <= set(pairs_of(data))


def test_the_gradient_of_pairs_is_that_of_their_log_loss() -> None:
    data = drawn([5, 8], 2)
    scores = np.random.default_rng(0).normal(size=13)

    def loss(of: list[float]) -> float:
        return sum(math.log1p(math.exp(of[j] - of[i])) for i, j in pairs_of(data))

    gradient, curvature = RankNet.of(data, 0)(scores, None)
    for row in range(13):
        up, down = (loss([s + (n == row) * step for n, s in enumerate(scores)]) for step in (1e-4, -1e-4))
        assert gradient[row] == pytest.approx((up - down) / 2e-4, abs=1e-5)
        assert curvature[row] == pytest.approx((up + down - 2 * loss(scores.tolist())) / 1e-8, abs=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_learns_the_order_within_a_request(objective: Order, tmp_path: Path) -> None:
    fit_ranker(BoostedTrees(objective, trees=40, leaves=31), requests(1), requests(2), tmp_path, seed=3)
    test = requests(4)
    scores = load_scorer(tmp_path).score(test.matrix, test.names)
    ahead = [scores[i] > scores[j] for i, j in pairs_of(test)]
    assert np.mean(ahead) > 0.8


def test_only_single_rows_teach_what_all_of_a_request_share(tmp_path: Path) -> None:
    """What is the same within a request decides no order: trees of pairs and lists do not look at it."""
    credit = {}
    for objective in OBJECTIVES[:2]:
        fit_ranker(BoostedTrees(objective, trees=20), requests(1), None, tmp_path / objective, seed=3)
        parts = load_scorer(tmp_path / objective).explain(requests(4).matrix, ("taste", "mood"))
        credit[objective] = np.abs(parts["mood"]).mean() / np.abs(parts["taste"]).mean()
    assert 2 * credit["pairwise"] < credit["pointwise"]


def test_pointwise_scores_are_log_odds(tmp_path: Path) -> None:
    fit_ranker(BoostedTrees("pointwise", trees=60), requests(1, 400), None, tmp_path, seed=3)
    scorer, test = load_scorer(tmp_path), requests(4, 400)
    assert isinstance(scorer, Trees)
    chance = scorer.probability(scorer.score(test.matrix, test.names))
    sure = chance > 0.9
    assert test.gain[sure].mean() > 0.85
    assert test.gain[chance < 0.1].mean() < 0.15


def test_what_the_place_explains_is_put_aside_and_the_rest_are_log_odds_still(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    taste, rank = rng.normal(size=6000), np.tile(np.arange(10.0) + 1, 600)
    acted = rng.random(6000) < 1 / (1 + np.exp(-(2 * taste - 2 * np.log(rank) - 0.5)))
    data = RankingData(taste[None], ("taste",), acted.astype(np.float64), np.repeat(np.arange(600), 10), rank)
    fit_ranker(BoostedTrees("pointwise", trees=60), data, None, tmp_path, seed=3)
    scorer = load_scorer(tmp_path)
    assert isinstance(scorer, Trees)
    average = 2 * taste - 2 * np.log(rank).mean() - 0.5
    chance = scorer.probability(scorer.score(data.matrix, data.names))
    assert chance.mean() == pytest.approx(np.mean(1 / (1 + np.exp(-average))), abs=0.03)


def test_rows_that_were_all_acted_on_teach_pairs_and_no_single_rows(tmp_path: Path) -> None:
    data = requests(1)
    graded = replace(data, gain=1.0 + data.gain)
    with pytest.raises(NothingToLearnError, match=r"all 1500 training rows were acted on.*pairwise"):
        fit_ranker(BoostedTrees("pointwise"), graded, None, tmp_path, seed=3)
    assert fit_ranker(BoostedTrees("pairwise", trees=3), graded, None, tmp_path, seed=3).figures == {"trees": 3.0}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_too_few_rows_for_two_leaves_are_refused(objective: Order, tmp_path: Path) -> None:
    with pytest.raises(NothingToLearnError, match="30 training rows do not fill two leaves of 20; log more, or lower"):
        fit_ranker(BoostedTrees(objective), requests(1, count=3), None, tmp_path, seed=3)
    assert fit_ranker(BoostedTrees(objective, trees=2, rows_per_leaf=5), requests(1, count=3), None, tmp_path, 3).rows


@pytest.mark.parametrize(("objective", "differ"), [("pointwise", 2), ("listwise", 2), ("pairwise", 2), ("pairwise", 9)])
def test_a_column_that_hardly_varies_splits_nothing(objective: Order, differ: int, tmp_path: Path) -> None:
    """Two rows are too few for a bin, nine for a leaf."""
    flat = (np.arange(1500) < differ).astype(np.float64)[None]
    fit_ranker(BoostedTrees(objective), replace(requests(1), matrix=flat, names=("flat",)), None, tmp_path, seed=3)
    assert np.ptp(load_scorer(tmp_path).score(flat, ("flat",))) == 0.0


def test_where_lightgbm_refuses_it_is_said_what_to_do(tmp_path: Path) -> None:
    """It takes what is this small for zero, and then there is no column left."""
    rows = replace(requests(1), matrix=np.linspace(0, 1e-40, 1500)[None], names=("tiny",))
    with pytest.raises(
        NothingToLearnError, match=r"no column tells enough of the 1500 training rows.*declare features"
    ):
        fit_ranker(BoostedTrees("pairwise"), rows, None, tmp_path, seed=3)


def test_the_three_go_by_their_own_names_and_lambdamart_by_the_one_it_had() -> None:
    assert BoostedTrees("pointwise").name == "pointwise_trees"
    assert BoostedTrees(name="mine").name == "mine"
    assert (LambdaMART().name, LambdaMART().objective) == ("lambdamart", "listwise")
    assert LambdaMART("other", 10, 5) == LambdaMART(name="other", trees=10, leaves=5)
