"""How long a stage takes, so that one that would miss the deadline is not begun."""

from __future__ import annotations

QUANTILE = 0.9
STEP = 0.2
"""How far one duration moves the estimate, relative to it."""
FORGET = 0.95
"""What is left of the estimate after the stage was skipped: a stage that was slow once gets another chance."""


class Pace:
    """A moving 0.9-quantile of a stage's own durations, in milliseconds; 0 before the first.

    Stochastic approximation in constant memory (Ma, Muthukrishnan, Sandler: Frugal Streaming for Estimating
    Quantiles, 2013), with steps relative to the estimate so that it follows any scale. Threads may race on it: an
    update that is lost is one duration of many.
    """

    __slots__ = ("estimate_ms",)

    def __init__(self) -> None:
        self.estimate_ms = 0.0

    def took(self, duration_ms: float) -> None:
        """Learn one duration."""
        if self.estimate_ms == 0.0:
            self.estimate_ms = duration_ms
        elif duration_ms > self.estimate_ms:
            self.estimate_ms *= 1.0 + STEP * QUANTILE
        else:
            self.estimate_ms *= 1.0 - STEP * (1.0 - QUANTILE)

    def skipped(self) -> None:
        """Learn that the stage was not begun because of this estimate."""
        self.estimate_ms *= FORGET

    def forget(self) -> None:
        """Start anew."""
        self.estimate_ms = 0.0
