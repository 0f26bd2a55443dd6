"""From scores to probabilities: each action's sigmoid, as training fitted it on rows that the model had not seen.

One shape for all rankers. A network has log-odds for each action; trees and logistic regression have one score, and
every action its own sigmoid of it. No sigmoid changes a score or an order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shortlist.framing.values import is_number

CALIBRATION = "calibration.json"

Floats = NDArray[np.float64]


class CalibrationError(ValueError):
    """The file holds no calibration: where, what was found, and what to do."""


@dataclass(frozen=True)
class Head:
    """One action: what it is worth, and the probability sigmoid(slope * score + intercept)."""

    action: str
    weight: float
    slope: float = 1.0
    intercept: float = 0.0

    def __post_init__(self) -> None:
        for name in ("weight", "slope", "intercept"):
            value: Any = getattr(self, name)
            if not is_number(value):
                raise ValueError(f"found {name} {value!r} of {self.action!r}: not finite, or not a number")


def sigmoid(odds: Floats) -> Floats:
    """The probability of log-odds."""
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-odds)))


def probabilities(scores: Floats, heads: Sequence[Head]) -> Mapping[str, Floats]:
    """How probable each action is where the model gives these scores."""
    return {head.action: sigmoid(head.slope * scores + head.intercept) for head in heads}


def save_heads(directory: Path, heads: Sequence[Head]) -> None:
    """Write the heads beside their model; no file where there are none."""
    if heads:
        text = json.dumps({"heads": [asdict(head) for head in heads]}, indent=1, allow_nan=False)
        (directory / CALIBRATION).write_text(text, encoding="utf-8")


def load_heads(directory: Path) -> tuple[Head, ...]:
    """What `save_heads` wrote; nothing where there is no file. Raises CalibrationError."""
    path = directory / CALIBRATION
    if not path.exists():
        return ()
    try:
        return tuple(Head(**each) for each in json.loads(path.read_text(encoding="utf-8"))["heads"])
    except (KeyError, TypeError, ValueError) as error:
        raise CalibrationError(f"{path}: the calibration cannot be read ({error}); train the ranker again") from error
