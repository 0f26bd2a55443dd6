"""Fitting: each kind of ranker learns an order, says what it left out, and gives the same bytes again."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shortlist.ranking.scoring import load_scorer
from shortlist.ranking.specs import BoostedTrees, DeepCross, LambdaMART, LogisticRegression, RankerSpec
from shortlist.training.rankers import fitting as rankers
from shortlist.training.rankers import linear
from shortlist.training.rankers.fitting import NothingToLearnError, RankingData, fit_ranker
from shortlist.training.rankers.linear import log_loss, newton

SPECS: list[RankerSpec] = [
    LogisticRegression(),
    BoostedTrees("pointwise", trees=60),
    BoostedTrees("pairwise", trees=60),
    LambdaMART(trees=60),
    DeepCross(epochs=4),
]
FILES = {
    "linear": {"linear.json", "calibration.json"},
    "trees": {"trees.txt", "calibration.json"},
    "network": {"network.json", "network.onnx"},
}
per_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)

REAL = Path(os.environ.get("SHORTLIST_DATA", "../shared/data")) / "lightgbm_rank"
NAMES = ("taste", "price", "gaps", "constant", "absent", 'größe, in "cm"')


def world(seed: int, requests: int = 120, size: int = 12) -> RankingData:
    """Requests whose best items have much `taste`, a low heavy-tailed `price`, and a known `gaps`."""
    rng = np.random.default_rng(seed)
    rows = requests * size
    taste, price, size_cm = rng.normal(size=rows), np.exp(2 * rng.normal(size=rows)), rng.normal(size=rows)
    gaps = np.where(rng.random(rows) < 0.5, np.nan, 1.0)
    odds = 2 * taste - np.log1p(price) + np.where(np.isnan(gaps), -1.0, 1.0)
    gain = np.where(rng.random(rows) < 1 / (1 + np.exp(-odds)), rng.choice([1.0, 2.5], rows), 0.0)
    matrix = np.stack([taste, price, gaps, np.full(rows, 4.0), np.full(rows, np.nan), size_cm])
    return RankingData(matrix, NAMES, gain, np.repeat(np.arange(requests), size) * 3 + 7)


def ndcg(scores: NDArray[np.float64], data: RankingData, k: int = 10) -> float:
    """Mean NDCG@k over the requests that have something to find."""
    values, start = [], 0
    for size in data.sizes.tolist():
        gain, order = data.gain[start : start + size], np.argsort(-scores[start : start + size], kind="stable")
        discount = 1 / np.log2(np.arange(2, min(k, size) + 2))
        ideal = float(np.sort(gain)[::-1][:k] @ discount)
        if ideal > 0:
            values.append(float(gain[order][:k] @ discount) / ideal)
        start += size
    return float(np.mean(values))


@per_spec
def test_a_ranker_learns_the_order_and_is_loaded_from_its_directory(spec: RankerSpec, tmp_path: Path) -> None:
    fitted = fit_ranker(spec, world(1), world(2), tmp_path / "ranker", seed=3)
    scorer = load_scorer(tmp_path / "ranker")
    test = world(4)
    at_random = ndcg(np.random.default_rng(0).random(len(test.gain)), test)
    assert ndcg(scorer.score(test.matrix, test.names), test) > at_random + 0.2
    assert scorer.names == fitted.columns == ("taste", "price", "gaps", 'größe, in "cm"')
    assert fitted.dropped == {"constant": "always 4", "absent": "always missing"}
    assert (fitted.rows, fitted.requests) == (1440, 120)
    files = {path.name for path in (tmp_path / "ranker").iterdir()}
    assert files == {*FILES[fitted.kind], "ranker.json"}
    assert json.loads((tmp_path / "ranker" / "ranker.json").read_text())["dropped"] == dict(fitted.dropped)


@per_spec
def test_the_same_rows_and_seed_give_the_same_bytes(spec: RankerSpec, tmp_path: Path) -> None:
    for run in ("one", "two"):
        fit_ranker(spec, world(1), world(2), tmp_path / run, seed=3)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@per_spec
def test_a_ranker_is_fitted_without_held_out_requests(spec: RankerSpec, tmp_path: Path) -> None:
    silent = dataclasses.replace(world(2), gain=np.zeros(1440))  # nobody acted: says nothing about any order
    for name, validation in (("none", None), ("silent", silent)):
        fitted = fit_ranker(spec, world(1), validation, tmp_path / name, seed=3)
        assert not any("held_out" in figure for figure in fitted.figures)
    assert (tmp_path / "none" / "ranker.json").read_bytes() == (tmp_path / "silent" / "ranker.json").read_bytes()


@per_spec
def test_progress_reaches_no_further_than_announced(spec: RankerSpec, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    fit_ranker(spec, world(1), world(2), tmp_path, 3, lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert len({total for _, total in seen}) == 1
    assert seen[-1][0] <= seen[-1][1]


@per_spec
@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (dataclasses.replace(world(1), gain=np.zeros(1440)), "all 1440 training rows have the same gain, so"),
        (dataclasses.replace(world(1), gain=np.ones(1440)), "same gain, so"),
        (
            dataclasses.replace(world(1), gain=np.repeat(np.arange(120) % 2, 12).astype(np.float64)),
            "same gain within each of the 120 requests",
        ),
        (dataclasses.replace(world(1), matrix=np.ones((6, 1440))), "none of the 6 columns varies"),
        (RankingData(np.zeros((6, 0)), NAMES, np.zeros(0), np.zeros(0, np.int64)), "no training rows"),
    ],
)
def test_rows_that_teach_nothing_are_refused(
    spec: RankerSpec, data: RankingData, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(NothingToLearnError, match=complaint):
        fit_ranker(spec, data, None, tmp_path, seed=3)


def test_rows_of_a_request_must_stand_together() -> None:
    data = world(1)
    with pytest.raises(ValueError, match="stand together"):
        dataclasses.replace(data, group=np.tile(np.arange(12), 120))


def test_shapes_must_agree_and_gains_be_possible() -> None:
    data = world(1)
    with pytest.raises(ValueError, match="expected \\[features, rows\\]"):
        dataclasses.replace(data, matrix=data.matrix.T)
    for impossible in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"found the gain {impossible:g}"):
            dataclasses.replace(data, gain=np.append(data.gain[1:], impossible))


@per_spec
def test_infinite_and_huge_values_are_survived(spec: RankerSpec, tmp_path: Path) -> None:
    def wild(seed: int) -> RankingData:
        data = world(seed)
        for row, value in ((1, np.inf), (2, 1e300), (5, -np.inf), (5, 1e99)):
            data.matrix[row, row + int(value > 0) :: 50] = value
        return data

    fit_ranker(spec, wild(1), wild(2), tmp_path, seed=3)
    test = wild(4)
    scores = load_scorer(tmp_path).score(test.matrix, test.names)
    assert np.isfinite(scores).all()
    assert ndcg(scores, test) > 0.7


def test_what_is_no_spec_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no ranker is fitted by"):
        rankers.fit(object(), world(1), None, tmp_path, 3, lambda done, total: None)  # noqa: ARG005


def test_a_request_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NothingToLearnError, match="a request has 12000 rows; at most 10000"):
        fit_ranker(LambdaMART(), world(1, requests=1, size=12_000), None, tmp_path, seed=3)


def test_trees_stop_where_held_out_requests_stop_improving(tmp_path: Path) -> None:
    eager = LambdaMART(trees=300, learning_rate=0.5)
    fitted = fit_ranker(eager, world(1), world(2), tmp_path / "stopped", seed=3)
    assert 1 <= fitted.figures["trees"] < 100
    assert (tmp_path / "stopped" / "trees.txt").read_text().count("Tree=") == fitted.figures["trees"]
    score = load_scorer(tmp_path / "stopped").score(world(2).matrix, NAMES)
    assert fitted.figures["held_out_ndcg@10"] == pytest.approx(ndcg(score, world(2)), abs=0.01)
    assert fit_ranker(eager, world(1), None, tmp_path / "all", seed=3).figures == {"trees": 300.0}


def test_greater_gains_are_ranked_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grade = rng.integers(0, 3, 3000)
    gain = np.array([0.0, 1.0, 30.0])[grade]
    matrix = np.stack([grade == 2, grade == 1, rng.random(3000)]).astype(float)
    data = RankingData(matrix, ("great", "good", "noise"), gain, np.repeat(np.arange(300), 10))
    fit_ranker(LambdaMART(trees=30), data, None, tmp_path, seed=3)
    assert ndcg(load_scorer(tmp_path).score(matrix, data.names), data) > 0.999


def test_logistic_regression_stands_where_its_gradient_is_zero() -> None:
    rng = np.random.default_rng(5)
    design = np.vstack([rng.normal(size=(4, 800)), np.ones(800)])
    acted = rng.random(800) < 1 / (1 + np.exp(-(design[0] - 2 * design[1] - 1)))
    weights = newton(design, acted, np.zeros(5), penalty=0.01)

    def objective(w: NDArray[np.float64]) -> float:
        return log_loss(w @ design, acted) + 0.005 * float(w[:4] @ w[:4])

    for number in range(5):
        step = np.eye(5)[number] * 1e-3
        assert objective(weights) < min(objective(weights + step), objective(weights - step))


def test_the_penalty_is_the_one_that_held_out_requests_prefer(tmp_path: Path) -> None:
    strong = fit_ranker(LogisticRegression(), world(1), world(2), tmp_path, seed=3)
    assert strong.figures["penalty"] < max(linear.PENALTIES)
    noise = np.random.default_rng(0)
    one, two = (dataclasses.replace(world(seed), gain=noise.permutation(world(seed).gain)) for seed in (1, 2))
    assert fit_ranker(LogisticRegression(), one, two, tmp_path, seed=3).figures["penalty"] == max(linear.PENALTIES)


@pytest.mark.parametrize("placed", [False, True])
def test_what_was_shown_chooses_the_penalty_by_how_likely_it_was_and_not_by_its_order(
    placed: bool, tmp_path: Path
) -> None:
    def slates(seed: int) -> RankingData:
        rng = np.random.default_rng(seed)
        eager, rank = np.repeat(rng.normal(size=400), 10), np.tile(np.arange(1.0, 11.0), 400)
        acted = rng.random(4000) < 1 / (1 + np.exp(2 - 2 * eager + np.log(rank) * placed))
        group = np.repeat(np.arange(400), 10)
        return RankingData(eager[None], ("eager",), acted * 1.0, group, rank if placed else None)

    # who asks moves no order: NDCG says nothing, and the strongest penalty would be the first that is as good as any
    data, held_out = slates(1), slates(2)
    shown = fit_ranker(LogisticRegression(), data, held_out, tmp_path, seed=3)
    assert shown.figures["penalty"] < max(linear.PENALTIES) / 5
    drawn = dataclasses.replace(data, drawn=True), dataclasses.replace(held_out, drawn=True)
    assert fit_ranker(LogisticRegression(), *drawn, tmp_path, seed=3).figures["penalty"] == max(linear.PENALTIES)


def test_heavy_tails_are_taken_by_their_logarithm(tmp_path: Path) -> None:
    fit_ranker(LogisticRegression(), world(1), None, tmp_path, seed=3)
    terms = json.loads((tmp_path / "linear.json").read_text())["terms"]
    units = {term["column"]: term["unit"] for term in terms}
    usual = np.median(world(1).matrix[NAMES.index("price")])
    assert units == {"taste": 0.0, "price": pytest.approx(0.1 * usual), "gaps": 0.0, NAMES[-1]: 0.0}


def test_small_rates_are_told_apart_by_their_logarithm(tmp_path: Path) -> None:
    """Rates multiply: half as good twice is a quarter. The logarithm of 1 + a small rate would be that rate itself."""
    rng = np.random.default_rng(6)
    rates = np.exp(1.2 * rng.normal(size=(2, 6_000)) - 5)
    odds = np.log(rates).sum(axis=0) + 9
    gain = (rng.random(6_000) < 1 / (1 + np.exp(-odds))).astype(np.float64)
    data = RankingData(rates, ("mine", "everybodys"), gain, np.repeat(np.arange(600), 10))
    fit_ranker(LogisticRegression(), data, data, tmp_path, seed=3)
    scorer = load_scorer(tmp_path)
    score = scorer.score(data.matrix, data.names)
    assert np.corrcoef(np.log(score / (1 - score)), odds)[0, 1] > 0.97


def test_counts_are_taken_as_they_are() -> None:
    assert linear.unit_of(np.array([0.0, 0.0, 50.0, 200.0])) == 1.0
    assert linear.unit_of(np.array([0.0, 0.02, 0.04, 0.06])) == pytest.approx(0.004)
    assert linear.unit_of(np.zeros(3)) == 1.0
    assert linear.unit_of(np.array([5e-324])) == linear.SMALLEST


def test_newtons_method_comes_back_from_a_bad_start() -> None:
    rng = np.random.default_rng(5)
    design = np.vstack([rng.normal(size=(2, 500)), np.ones(500)])
    acted = rng.random(500) < 1 / (1 + np.exp(-design[0]))
    near, far = (newton(design, acted, start, 0.01) for start in (np.zeros(3), np.array([3.0, -9.0, 9.0])))
    np.testing.assert_allclose(near, far, atol=1e-4)


def test_newtons_method_survives_perfect_separation() -> None:
    design = np.vstack([np.linspace(-1, 1, 200), np.ones(200)])
    weights = newton(design, design[0] > 0, np.zeros(2), penalty=1e-4)
    assert np.isfinite(weights).all()
    assert weights[0] > 5


def test_more_rows_than_logistic_regression_needs_are_drawn_by_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "LINEAR_ROWS", 1000)
    for run, seed in (("one", 3), ("two", 3), ("other", 4)):
        fit_ranker(LogisticRegression(), world(1, requests=400), None, tmp_path / run, seed)
    one, two, other = ((tmp_path / run / "linear.json").read_bytes() for run in ("one", "two", "other"))
    assert one == two != other
    test = world(4)
    assert ndcg(load_scorer(tmp_path / "one").score(test.matrix, test.names), test) > 0.8


def libsvm(name: str) -> RankingData:
    """One part of LightGBM's example data; grades 0-4 have gains 2^grade - 1."""
    lines = (REAL / f"rank.{name}").read_text().splitlines()
    sizes = np.array((REAL / f"rank.{name}.query").read_text().split(), np.int64)
    matrix, gain = np.zeros((300, len(lines))), np.zeros(len(lines))
    for row, line in enumerate(lines):
        grade, *values = line.split()
        gain[row] = 2 ** float(grade) - 1
        for value in values:
            feature, _, number = value.partition(":")
            matrix[int(feature) - 1, row] = float(number)
    names = tuple(f"f{number}" for number in range(300))
    return RankingData(matrix, names, gain, np.repeat(np.arange(len(sizes)), sizes))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL}; set SHORTLIST_DATA to the folder of real data")
def test_real_judgments_are_ranked_as_well_as_published(tmp_path: Path) -> None:
    train, test = libsvm("train"), libsvm("test")
    found = {}
    for spec in (LogisticRegression(), LambdaMART(trees=100, learning_rate=0.1)):
        fit_ranker(spec, train, None, tmp_path / spec.name, seed=1)
        found[spec.name] = ndcg(load_scorer(tmp_path / spec.name).score(test.matrix, test.names), test)
    at_random = np.mean([ndcg(np.random.default_rng(seed).random(len(test.gain)), test) for seed in range(20)])
    # LightGBM's own lambdarank reaches .728-.745 here; 50 test queries, so that .02 are noise
    assert found["lambdamart"] > 0.715
    assert at_random + 0.05 < found["logistic_regression"] < found["lambdamart"] + 0.02


def test_rows_count_by_their_gain_and_drawn_ones_by_request() -> None:
    gain, group = np.array([1.0, 0, 0, 0, 1, 2, 0, 0, 0]), np.array([0, 0, 0, 0, 1, 1, 1, 2, 2])
    shown = RankingData(np.zeros((1, 9)), ("x",), gain, group)
    assert shown.weight == pytest.approx([0.75, 1, 1, 1, 0.75, 1.5, 1, 1, 1])
    assert dataclasses.replace(shown, gain=np.sign(gain)).weight.tolist() == [1.0] * 9
    weight = dataclasses.replace(shown, drawn=True).weight
    assert weight.mean() == pytest.approx(1.0)
    expected = np.array([0.75, 1 / 3, 1 / 3, 1 / 3, 0.375, 0.75, 1, 1 / 2, 1 / 2])
    assert weight / weight[6] == pytest.approx(expected)
    assert len(dataclasses.replace(shown.take(gain < 0), drawn=True).weight) == 0


@pytest.mark.parametrize("spec", [LogisticRegression(), BoostedTrees("pointwise", trees=40)], ids=["linear", "trees"])
def test_single_rows_are_learned_by_what_is_won_and_not_by_how_often(spec: RankerSpec, tmp_path: Path) -> None:
    """Half of the items are acted on often and for little, the others seldom and for much."""
    rng = np.random.default_rng(4)
    dear = rng.random(6_000) < 0.5
    gain = np.where(rng.random(6_000) < np.where(dear, 0.1, 0.3), np.where(dear, 9.0, 1.0), 0.0)
    rows = RankingData(dear[None].astype(np.float64), ("dear",), gain, np.repeat(np.arange(600), 10))
    fit_ranker(spec, rows, None, tmp_path, seed=1)
    cheap, costly = load_scorer(tmp_path).score(np.array([[0.0, 1.0]]), ("dear",))
    assert costly > cheap


def test_rows_that_count_twice_are_rows_that_stand_there_twice() -> None:
    rng = np.random.default_rng(3)
    design, acted = np.vstack([rng.standard_normal((2, 50)), np.ones(50)]), rng.random(50) < 0.4
    twice = np.arange(50) < 20
    counts = np.where(twice, 2.0, 1.0)
    copied = newton(np.hstack([design, design[:, twice]]), np.concatenate([acted, acted[twice]]), np.zeros(3), 0.01)
    assert newton(design, acted, np.zeros(3), 0.01, counts=counts / counts.mean()) == pytest.approx(copied, abs=1e-6)
