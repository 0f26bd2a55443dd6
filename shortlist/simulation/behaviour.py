"""What a user does with an item on the screen, as probabilities.

The model, in the field's terms:

- **Examination** (position-based model, Craswell et al., WSDM 2008): the item at position p is looked at with
  probability `1 / log2(1 + p)`, whatever it is: 1, .63, .5, .43 ... .29 at position 10.
- **Click** of an examined item: `sigmoid(intercept + interest + freshness + bait)`.
- **Watch** of a clicked item: `sigmoid(0.6 interest - 0.8 - 1.5 bait)`: bait wins clicks and loses watches.
- **Like** of a watched item: `sigmoid(0.6 interest - 2.5)`.
- **Hide** of an item that was examined and not clicked: `sigmoid(-0.8 interest - 3.5)`.

`interest` is `5 <taste, item vector> + quality`, both vectors of length 1; freshness is `0.8 exp(-age / 5 days)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

GAINS: Mapping[str, float] = {"click": 1.0, "watch": 2.0, "like": 3.0, "hide": -1.0}
"""What one action of each kind is worth; the value of an impression is the expected sum."""

DAY_MS = 86_400_000
TASTE, FRESHNESS, FRESH_DAYS = 5.0, 0.8, 5.0


def examination(positions: Integers) -> NDArray[np.float64]:
    """The probability that the item at each position (1 is the top) is looked at: `1 / log2(1 + position)`."""
    return np.asarray(1.0 / np.log2(1.0 + positions), np.float64)


def freshness(age_ms: Integers) -> NDArray[np.float64]:
    """What newness adds to the logit of a click, for items of that age in milliseconds."""
    return np.asarray(FRESHNESS * np.exp(age_ms / (-FRESH_DAYS * DAY_MS)), np.float64)


def sigmoid(logit: Floats) -> NDArray[np.float64]:
    """`1 / (1 + e^-logit)`."""
    return np.asarray(1.0 / (1.0 + np.exp(-logit)), np.float64)


@dataclass(frozen=True)
class Chances:
    """The probabilities of what follows an examined impression, one value per impression in each array."""

    interest: NDArray[np.float64]
    click: NDArray[np.float64]
    watch: NDArray[np.float64]
    like: NDArray[np.float64]
    hide: NDArray[np.float64]

    @property
    def value(self) -> NDArray[np.float64]:
        """The expected gain of each impression once it is examined, by `GAINS`."""
        after_click = GAINS["click"] + self.watch * (GAINS["watch"] + self.like * GAINS["like"])
        return self.click * after_click + (1 - self.click) * self.hide * GAINS["hide"]


def chances(affinity: Floats, quality: Floats, bait: Floats, age_ms: Integers, intercept: float) -> Chances:
    """The probabilities for impressions of these affinities (dot products in -1..1), qualities, baits and ages."""
    interest = np.asarray(TASTE * affinity + quality, np.float64)
    return Chances(
        interest,
        sigmoid(intercept + interest + freshness(age_ms) + bait),
        sigmoid(0.6 * interest - 0.8 - 1.5 * bait),
        sigmoid(0.6 * interest - 2.5),
        sigmoid(-0.8 * interest - 3.5),
    )


@dataclass(frozen=True)
class Responses:
    """What was done, one value per impression: four masks, seconds watched, and how long after the impression (ms)."""

    click: NDArray[np.bool_]
    watch: NDArray[np.bool_]
    like: NDArray[np.bool_]
    hide: NDArray[np.bool_]
    seconds: NDArray[np.float64]
    acted_after: NDArray[np.int64]
    watched_after: NDArray[np.int64]
    liked_after: NDArray[np.int64]

    def take(self, chosen: NDArray[np.bool_]) -> Responses:
        """The responses of some of the impressions."""
        return Responses(*(getattr(self, part.name)[chosen] for part in fields(self)))


def respond(chance: Chances, positions: Integers, rng: np.random.Generator) -> Responses:
    """Draw what users do with impressions at these positions.

    A click comes some seconds after the impression, later further down the slate; the watch event when the watching
    ends (5 s to 1 h, lognormal around 40 s times e^(0.35 interest)); a like while watching; a hide like a click.
    """
    n = len(positions)
    draws = rng.random((5, n))
    examined = draws[0] < examination(positions)
    click = examined & (draws[1] < chance.click)
    watch = click & (draws[2] < chance.watch)
    like = watch & (draws[3] < chance.like)
    hide = examined & ~click & (draws[4] < chance.hide)
    lengths = np.exp(np.log(40.0) + 0.35 * chance.interest + 0.6 * rng.standard_normal(n))
    seconds = np.round(np.clip(lengths, 5.0, 3600.0), 1)
    acted = (200 + 700 * positions + 2500 * rng.standard_exponential(n)).astype(np.int64)
    watched = acted + (seconds * 1000).astype(np.int64)
    liked = acted + 1 + (seconds * 1000 * rng.random(n)).astype(np.int64)
    return Responses(click, watch, like, hide, seconds, acted, watched, liked)
