"""From scores to probabilities that come true: Platt's sigmoid, fitted on rows that training has not seen.

Platt, Probabilistic outputs for support vector machines, 1999. Two numbers need few rows, and unlike the steps of an
isotonic regression they never make equals of two items that the model tells apart. All rankers are calibrated here, a
network's log-odds of every action as well as the one score of trees and of logistic regression.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shortlist.ranking.calibration import Head
from shortlist.training.rankers.fitting import RankingData
from shortlist.training.rankers.linear import log_loss, newton

ACTED = "acted"
"""The one action of rows of which only the gain is known."""
MOST_HELD_OUT = 200_000
"""Held-out rows to stop and to calibrate by, the newest."""

PRIOR = 4.0
"""The slope is believed to be 1 with a deviation of 1/2, before any row is seen."""
FLATTEST = 0.05
"""The least slope of log-odds that order: calibration may doubt a model, it must never turn its order round."""
BINS = 15

Floats = NDArray[np.float64]


class Sigmoid(NamedTuple):
    """The probability sigmoid(slope * log-odds + intercept)."""

    slope: float = 1.0
    intercept: float = 0.0

    def log_odds(self, logits: Floats) -> Floats:
        """The calibrated log-odds."""
        return self.slope * logits + self.intercept


def calibrate(logits: Floats, happened: NDArray[np.bool_], flattest: float = FLATTEST) -> Sigmoid:
    """The sigmoid with the greatest likelihood; the identity where nothing happened, or everything did."""
    if not happened.any() or happened.all():
        return Sigmoid()
    rows = len(logits)
    ones = np.ones(rows)
    change, intercept = newton(np.stack([logits, ones]), happened, np.zeros(2), PRIOR / rows, logits)
    if 1.0 + change >= flattest:
        return Sigmoid(float(1.0 + change), float(intercept))
    intercept = newton(ones[None], happened, np.zeros(1), 0.0, flattest * logits)[0]
    return Sigmoid(flattest, float(intercept))


def calibration_error(logits: Floats, happened: NDArray[np.bool_], bins: int = BINS) -> float:
    """Expected calibration error: how far the rate is from the mean probability, over bins of equally many rows."""
    order = np.argsort(logits, kind="stable")
    chance = 1.0 / (1.0 + np.exp(-np.clip(logits[order], -500, 500)))
    edges = np.linspace(0, len(order), min(bins, len(order)) + 1).astype(np.int64)[:-1]
    gaps = np.add.reduceat(happened[order] - chance, edges) if len(order) else np.zeros(1)
    return float(np.abs(gaps).sum() / max(len(order), 1))


def calibration_figures(
    logits: Floats, happened: NDArray[np.bool_], group: NDArray[np.int64], flattest: float = FLATTEST
) -> dict[str, float]:
    """Log loss and calibration error as the model says it and after calibration.

    Calibrated are the rows of every second request by what the others say, and the other way round: a sigmoid is not
    judged on the rows that it was fitted to.
    """
    half = np.unique(group, return_inverse=True)[1] % 2 == 1
    after = logits.copy()
    for part in (half, ~half):
        after[part] = calibrate(logits[~part], happened[~part], flattest).log_odds(logits[part])
    return {
        "rate": float(happened.mean()),
        "log_loss_raw": log_loss(logits, happened),
        "log_loss": log_loss(after, happened),
        "calibration_error_raw": calibration_error(logits, happened),
        "calibration_error": calibration_error(after, happened),
    }


def outcomes_of(data: RankingData) -> Mapping[str, NDArray[np.bool_]]:
    """What happened on each row, by action."""
    return data.actions or {ACTED: data.gain > 0}


def weights_of(data: RankingData) -> Mapping[str, float]:
    """What each action is worth in the blend."""
    return data.blend if data.actions else {ACTED: 1.0}


def newest(data: RankingData, most: int = MOST_HELD_OUT) -> RankingData:
    """The last `most` rows."""
    return data if len(data.gain) <= most else data.take(np.arange(len(data.gain)) >= len(data.gain) - most)


def heads_of(
    logits: Mapping[str, Floats], held_out: RankingData, weights: Mapping[str, float], flattest: float = FLATTEST
) -> tuple[list[Head], dict[str, float]]:
    """Each action's sigmoid of its log-odds on the held-out rows, and how well it keeps what it says, by action."""
    outcomes = outcomes_of(held_out)
    heads, figures = [], dict[str, float]()
    for action, column in logits.items():
        heads.append(Head(action, weights[action], *calibrate(column, outcomes[action], flattest)))
        found = calibration_figures(column, outcomes[action], held_out.group, flattest)
        figures |= {f"{action}.held_out_{name}": value for name, value in found.items()}
    return heads, figures


def heads_of_one_score(scores: Floats, held_out: RankingData) -> tuple[list[Head], dict[str, float]]:
    """Of a ranker with one score for everything, such as trees: each action's sigmoid of it, and the figures.

    A score says nothing of an action that never happened, or always did: it has no head. What is worth less than
    nothing is believed to happen less where the score is greater, until the rows say otherwise: these sigmoids order
    nothing, so each may rise or fall (what tempts is clicked and hidden). Scores are fitted in their own deviations:
    those of trees that learn orders have any scale, and what is believed of a slope is believed of log-odds.
    """
    weights = weights_of(held_out)
    told = [action for action, happened in outcomes_of(held_out).items() if happened.any() and not happened.all()]
    scale = float(scores.std()) or 1.0
    units = {action: (-1.0 if weights[action] < 0 else 1.0) / scale for action in told}
    logits = {action: unit * scores for action, unit in units.items()}
    heads, figures = heads_of(logits, held_out, weights, flattest=-np.inf)
    return [replace(head, slope=units[head.action] * head.slope) for head in heads], figures
