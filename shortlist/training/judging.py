"""Slates that were shown, judged: what is another order of them worth?

An order is worth what followed its items, as the objective weighs it (to hide one costs something), each discounted by
its new place, 1 / log2(1 + place). But people look at the top first: what stood there was acted on more, so an order
would look good that repeats the slate's. So what followed an item counts by the inverse of how likely its old place is
looked at (Joachims, Swaminathan and Schnabel, Unbiased learning-to-rank with biased feedback, WSDM 2017); what the
place adds to what the columns say of clicks is the estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shortlist.training.metrics import Floats, by_user
from shortlist.training.rankers.linear import PlaceEffect

MOST_LOOKS = 10.0
"""What followed at a place that hardly anybody looks at counts at most so often: a few clicks must not decide."""


def looks(effect: PlaceEffect | None, rank: Floats) -> Floats:
    """How often the first place is looked at for each look at these places, 1 where that is not known.

    Odds stand for probabilities: of rare actions they are the same.
    """
    if effect is None:
        return np.ones(len(rank))
    odds = np.exp(effect.log_odds(np.ones(1)) - effect.log_odds(rank))
    return np.where(np.isnan(rank), 1.0, np.clip(odds, 1.0, MOST_LOOKS))


@dataclass(frozen=True)
class ShownSlates:
    """Rows of slates, those of one side by side, `sizes` of them each; `user` is the number of each slate's user.

    `worth` is what followed on each row, by `looks`.
    """

    sizes: NDArray[np.int64]
    user: NDArray[np.int64]
    worth: Floats

    def values(self, score: Floats, k: int) -> Floats:
        """What the first k places of each user's slates are worth in the order of `score` (NaN ranks last).

        The mean over users is 1 where every slate is ordered best. NaN for users of whose slates nothing followed.
        """
        slate = self._slate
        held, best = (self._discounted(order, k, slate) for order in (score, self.worth))
        told = np.bincount(slate, self.worth != 0, len(self.sizes)) > 0
        users = int(self.user.max(initial=-1)) + 1
        table = np.where(told[:, None], np.column_stack([held, best]), np.nan)
        per_user = by_user(table, self.user, users)
        mean = np.nanmean(per_user[:, 1]) if told.any() else 0.0
        return per_user[:, 0] / mean if mean > 0 else np.full(users, np.nan)

    @property
    def _slate(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    def _discounted(self, score: Floats, k: int, slate: NDArray[np.int64]) -> Floats:
        """The worth of each slate's first k places."""
        order = np.lexsort((np.where(np.isnan(score), np.inf, -score), slate))
        place = np.arange(len(order)) - np.repeat(np.cumsum(self.sizes) - self.sizes, self.sizes)
        discount = np.where(place < k, 1.0 / np.log2(place + 2.0), 0.0)
        return np.bincount(slate, self.worth[order] * discount, len(self.sizes)).astype(np.float64)
