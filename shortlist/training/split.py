"""Where the past ends: parts of the log for fitting, choosing and testing, one after the other.

All boundaries are log positions, because a position is what "known by then" means: whatever is fitted on a part knows
nothing of the parts behind it, whatever the clocks of the events say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TEST_SHARE = 0.2
RANKER_SHARE = 0.25
VALIDATION_SHARE = 0.3


@dataclass(frozen=True)
class Split:
    """Log positions, rising. The test part is `[cut, stop)`, the training part everything before.

    While the rankers are fitted, sources know `[0, sources)`, rankers learn on requests in `[sources, rankers)` and
    are compared on requests in `[rankers, cut)`. Afterwards the sources are fitted on all of `[0, cut)`.
    """

    sources: int
    rankers: int
    cut: int
    stop: int


def split_by_time(position: NDArray[np.int64], at: NDArray[np.int64], stop: int, test: float = TEST_SHARE) -> Split:
    """Cut so that the last `test` share of the positives is held out; `position` and `at` are those of all positives.

    Positives of the same moment (`at`, ms) stay on one side where the log has them side by side. With too few
    positives some parts are empty.
    """
    order = np.argsort(position, kind="stable")
    position, at = position[order], at[order]
    training = 1.0 - test
    shares = (
        training * (1.0 - RANKER_SHARE),
        training * (1.0 - RANKER_SHARE * VALIDATION_SHARE),
        training,
    )
    sources, rankers, cut = (_boundary(position, at, share, stop) for share in shares)
    return Split(sources, rankers, cut, stop)


def _boundary(position: NDArray[np.int64], at: NDArray[np.int64], share: float, stop: int) -> int:
    """The position of the first positive behind the share, moved back to the first of its moment."""
    index = int(np.ceil(share * len(position) - 1e-9))
    if index >= len(position):
        return stop
    first = index
    while first > 0 and at[first - 1] == at[index]:
        first -= 1
    return int(position[first if first > 0 else index])
