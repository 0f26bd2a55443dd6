"""From log-odds to probabilities that come true: Platt's sigmoid, fitted on rows that training has not seen.

Platt, Probabilistic outputs for support vector machines, 1999. Two numbers need few rows, and unlike the steps of an
isotonic regression they never make equals of two items that the model tells apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shortlist.training.linear import log_loss, newton

PRIOR = 4.0
"""The slope is believed to be 1 with a deviation of 1/2, before any row is seen."""
FLATTEST = 0.05
"""The least slope: calibration may doubt a model, it must never turn its order round."""
BINS = 15

Floats = NDArray[np.float64]


class Sigmoid(NamedTuple):
    """The probability sigmoid(slope * log-odds + intercept)."""

    slope: float = 1.0
    intercept: float = 0.0

    def log_odds(self, logits: Floats) -> Floats:
        """The calibrated log-odds."""
        return self.slope * logits + self.intercept


def calibrate(logits: Floats, happened: NDArray[np.bool_]) -> Sigmoid:
    """The sigmoid with the greatest likelihood; the identity where nothing happened, or everything did."""
    if not happened.any() or happened.all():
        return Sigmoid()
    rows = len(logits)
    ones = np.ones(rows)
    change, intercept = newton(np.stack([logits, ones]), happened, np.zeros(2), PRIOR / rows, logits)
    if 1.0 + change >= FLATTEST:
        return Sigmoid(float(1.0 + change), float(intercept))
    intercept = newton(ones[None], happened, np.zeros(1), 0.0, FLATTEST * logits)[0]
    return Sigmoid(FLATTEST, float(intercept))


def calibration_error(logits: Floats, happened: NDArray[np.bool_], bins: int = BINS) -> float:
    """Expected calibration error: how far the rate is from the mean probability, over bins of equally many rows."""
    order = np.argsort(logits, kind="stable")
    chance = 1.0 / (1.0 + np.exp(-np.clip(logits[order], -500, 500)))
    edges = np.linspace(0, len(order), min(bins, len(order)) + 1).astype(np.int64)[:-1]
    gaps = np.add.reduceat(happened[order] - chance, edges) if len(order) else np.zeros(1)
    return float(np.abs(gaps).sum() / max(len(order), 1))


def calibration_figures(logits: Floats, happened: NDArray[np.bool_], group: NDArray[np.int64]) -> dict[str, float]:
    """Log loss and calibration error as the model says it and after calibration.

    Calibrated are the rows of every second request by what the others say, and the other way round: a sigmoid is not
    judged on the rows that it was fitted to.
    """
    half = np.unique(group, return_inverse=True)[1] % 2 == 1
    after = logits.copy()
    for part in (half, ~half):
        after[part] = calibrate(logits[~part], happened[~part]).log_odds(logits[part])
    return {
        "rate": float(happened.mean()),
        "log_loss_raw": log_loss(logits, happened),
        "log_loss": log_loss(after, happened),
        "calibration_error_raw": calibration_error(logits, happened),
        "calibration_error": calibration_error(after, happened),
    }
