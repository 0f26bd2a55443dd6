"""Probabilities that come true, on draws whose truth is known."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shortlist.ranking.calibration import CALIBRATION, CalibrationError
from shortlist.ranking.scoring import load_scorer
from shortlist.ranking.specs import BoostedTrees, DeepCross, LambdaMART, LogisticRegression, RankerSpec
from shortlist.report import calibration, calibration_rows
from shortlist.training.rankers.calibration import FLATTEST, Sigmoid, calibrate, calibration_error, calibration_figures
from shortlist.training.rankers.fitting import RankingData, fit_ranker
from shortlist.training.releases import Manifest, Release

Floats = NDArray[np.float64]


def drawn(seed: int, slope: float, intercept: float, rows: int = 20_000) -> tuple[Floats, NDArray[np.bool_]]:
    """What a model says, and what happens: its log-odds are wrong by a slope and an intercept."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=rows)
    return logits, rng.random(rows) < 1 / (1 + np.exp(-(slope * logits + intercept)))


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, -1.5), (1.0, 0.0), (2.0, -3.0), (1.0, 4.0)])
def test_a_model_that_is_wrong_by_a_sigmoid_is_put_right(slope: float, intercept: float) -> None:
    found = calibrate(*drawn(1, slope, intercept))
    assert found.slope == pytest.approx(slope, rel=0.1)
    assert found.intercept == pytest.approx(intercept, abs=0.15)


def test_calibration_brings_the_error_down_to_noise() -> None:
    group = np.arange(20_000) // 10
    wrong = calibration_figures(*drawn(2, 0.5, -1.5), group)
    assert wrong["calibration_error"] < 0.02 < 0.15 < wrong["calibration_error_raw"]
    assert wrong["log_loss"] < wrong["log_loss_raw"] - 0.1
    right = calibration_figures(*drawn(2, 1.0, 0.0), group)
    assert right["log_loss"] == pytest.approx(right["log_loss_raw"], abs=0.002)


def test_figures_are_those_of_rows_that_the_sigmoid_was_not_fitted_to() -> None:
    """Four rows of pure noise: whoever is judged on his own rows looks better than the model was."""
    logits, happened = np.array([3.0, -3.0, 3.0, -3.0]), np.array([True, False, False, True])
    figures = calibration_figures(logits, happened, np.array([0, 0, 1, 1]))
    assert figures["log_loss"] > -np.mean(np.log([0.6, 0.6, 0.6, 0.6]))


def test_a_model_that_is_the_wrong_way_round_is_flattened_and_never_turned() -> None:
    logits, happened = drawn(3, -1.0, -1.0)
    found = calibrate(logits, happened)
    assert found.slope == FLATTEST
    chance = 1 / (1 + np.exp(-found.log_odds(logits)))
    assert chance.mean() == pytest.approx(happened.mean(), abs=1e-6)


@pytest.mark.parametrize("happened", [np.zeros(50, np.bool_), np.ones(50, np.bool_), np.zeros(0, np.bool_)])
def test_one_class_only_changes_nothing(happened: NDArray[np.bool_]) -> None:
    logits = np.linspace(-1, 1, len(happened))
    assert calibrate(logits, happened) == Sigmoid(1.0, 0.0)
    assert np.isfinite(calibration_error(logits, happened))


def test_few_rows_move_the_slope_little() -> None:
    logits, happened = np.array([-4.0, -3.0, 3.0, 4.0]), np.array([False, False, True, True])
    assert 0.8 < calibrate(logits, happened).slope < 1.5


def test_extreme_log_odds_are_survived() -> None:
    logits = np.array([-1e4, 1e4, -50.0, 50.0] * 20)
    found = calibrate(logits, np.tile([False, True, True, False], 20))
    assert np.isfinite(found).all()
    assert found.slope > 0


def test_the_error_is_the_mean_gap_of_bins_of_equally_many_rows() -> None:
    logits, happened = drawn(4, 0.5, -1.0, rows=1000)
    order = np.argsort(logits)
    chance = 1 / (1 + np.exp(-logits))
    gaps = [
        abs(chance[part].mean() - happened[part].mean()) * len(part) / 1000
        for part in (order[start : start + 100] for start in range(0, 1000, 100))
    ]
    assert calibration_error(logits, happened, bins=10) == pytest.approx(sum(gaps))


SPECS: list[RankerSpec] = [
    LogisticRegression(),
    BoostedTrees("pointwise", trees=40),
    BoostedTrees("pairwise", trees=40),
    LambdaMART(trees=40),
    DeepCross(epochs=4),
]
per_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)


def slates(seed: int, requests: int = 600, size: int = 10) -> RankingData:
    """What is to one's taste is clicked, a click is now and then a like, and what is not to one's taste is hidden."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(2, requests * size))
    click = rng.random(requests * size) < 1 / (1 + np.exp(2 - 1.5 * matrix[0]))
    hide = rng.random(requests * size) < 1 / (1 + np.exp(3 + 1.5 * matrix[0]))
    actions = {"click": click, "hide": hide, "like": np.zeros(requests * size, np.bool_)}
    blend = {"click": 1.0, "hide": -2.0, "like": 3.0}
    group = np.repeat(np.arange(requests), size)
    return RankingData(matrix, ("taste", "noise"), click.astype(np.float64), group, None, actions, blend)


def biased(seed: int) -> RankingData:
    """The same, but three quarters of what nobody did anything with are missing."""
    rows = slates(seed)
    acted = rows.actions["click"] | rows.actions["hide"]
    return rows.take(acted | (np.random.default_rng(seed).random(len(acted)) < 0.25))


@per_spec
def test_every_ranker_has_probabilities_that_come_true(spec: RankerSpec, tmp_path: Path) -> None:
    made = fit_ranker(spec, biased(1), slates(2), tmp_path, seed=3)
    scorer, test = load_scorer(tmp_path), slates(4)
    found = scorer.probabilities(test.matrix, test.names)
    assert list(found) == ["click", "hide"]  # nobody liked anything, so nothing is known of it
    score = scorer.score(test.matrix, test.names)
    for action, sign in (("click", 1), ("hide", -1)):
        chance, happened = found[action], test.actions[action]
        assert calibration_error(np.log(chance / (1 - chance)), happened) < 0.05
        assert chance[happened].mean() > chance[~happened].mean() + 0.05
        if made.kind != "network":  # one score for everything: a probability rises with it, or falls
            assert (sign * np.diff(chance[np.argsort(score, kind="stable")]) >= 0).all()
        assert made.figures[f"{action}.held_out_calibration_error"] < 0.05
        assert made.figures[f"{action}.held_out_rate"] == pytest.approx(slates(2).actions[action].mean())


def tempting(seed: int) -> RankingData:
    """What tempts is clicked most, and hidden most."""
    rows = slates(seed)
    odds = 1.5 * rows.matrix[0] - 2
    hide = np.random.default_rng([seed, 1]).random(len(odds)) < 1 / (1 + np.exp(-odds))
    return replace(rows, actions={**rows.actions, "hide": hide})


@per_spec
def test_what_is_hidden_most_where_it_is_clicked_most_is_said_to_be(spec: RankerSpec, tmp_path: Path) -> None:
    made = fit_ranker(spec, tempting(1), tempting(2), tmp_path, seed=3)
    test = tempting(4)
    chance, happened = load_scorer(tmp_path).probabilities(test.matrix, test.names)["hide"], test.actions["hide"]
    assert chance[happened].mean() > chance[~happened].mean() + 0.05
    assert calibration_error(np.log(chance / (1 - chance)), happened) < 0.05
    assert made.figures["hide.held_out_calibration_error"] < 0.05


@pytest.mark.parametrize("spec", SPECS[:4], ids=lambda spec: spec.name)
def test_scores_are_what_they_are_without_a_calibration(spec: RankerSpec, tmp_path: Path) -> None:
    fit_ranker(spec, biased(1), slates(2), tmp_path, seed=3)
    calibrated, test = load_scorer(tmp_path), slates(4)
    (tmp_path / CALIBRATION).unlink()
    plain = load_scorer(tmp_path)
    assert plain.probabilities(test.matrix, test.names) == {}
    bits = [scorer.score(test.matrix, test.names).tobytes() for scorer in (calibrated, plain)]
    assert bits[0] == bits[1]


@pytest.mark.parametrize("spec", SPECS[:4], ids=lambda spec: spec.name)
def test_where_nothing_is_held_out_no_probability_is_claimed(spec: RankerSpec, tmp_path: Path) -> None:
    fit_ranker(spec, slates(1), None, tmp_path, seed=3)
    assert not (tmp_path / CALIBRATION).exists()
    assert load_scorer(tmp_path).probabilities(slates(4).matrix, ("taste", "noise")) == {}


def test_of_rows_with_a_gain_alone_the_action_is_to_act(tmp_path: Path) -> None:
    rows = replace(slates(1), actions={}, blend={})
    fit_ranker(LambdaMART(trees=20), rows, rows, tmp_path, seed=3)
    chance = load_scorer(tmp_path).probabilities(rows.matrix, rows.names)
    assert list(chance) == ["acted"]
    assert chance["acted"].mean() == pytest.approx((rows.gain > 0).mean(), abs=0.01)


@pytest.mark.parametrize(
    "stored", ["{", "[]", '{"heads": [{}]}', '{"heads": [{"action": "click", "weight": 1, "slope": NaN}]}']
)
def test_a_damaged_calibration_is_refused(stored: str, tmp_path: Path) -> None:
    fit_ranker(LogisticRegression(), slates(1, 40), slates(2, 40), tmp_path, seed=3)
    (tmp_path / CALIBRATION).write_text(stored)
    with pytest.raises(CalibrationError, match=r"calibration\.json: the calibration cannot be read .*train the ranker"):
        load_scorer(tmp_path)


def test_the_report_says_how_well_the_probabilities_of_what_serves_came_true(tmp_path: Path) -> None:
    made = fit_ranker(LambdaMART(trees=20), biased(1), slates(2), tmp_path, seed=3)
    details = {"rankers": {"lambdamart": asdict(made)}}
    manifest = Manifest("p", 0, 1, "f", "lambdamart", ("lambdamart",), ("popular",), (), {}, details)
    found = calibration(Release(tmp_path, manifest, {}))
    assert list(found) == ["click", "hide"]
    assert found["click"]["rate"] == pytest.approx(slates(2).actions["click"].mean())
    titles, rows = calibration_rows(Release(tmp_path, manifest, {}))
    assert titles == ("probability of", "rate", "calibration error", "log loss")
    assert rows[0] == ("click", *(f"{found['click'][name]:.4f}" for name in ("rate", "calibration_error", "log_loss")))
    for silent in (replace(manifest, ranker=""), replace(manifest, details={})):
        assert calibration(Release(tmp_path, silent, {})) == {}
