"""Probabilities that come true, on draws whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from shortlist.training.calibration import FLATTEST, Sigmoid, calibrate, calibration_error, calibration_figures

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
