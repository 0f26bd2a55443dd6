"""The objective: which number stands for business value, and what must not break while it rises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Guardrail:
    """A bound that a metric of the evaluation report must respect before a release is promoted."""

    metric: str
    at_least: float | None = None
    at_most: float | None = None

    def holds(self, value: float) -> bool:
        """Whether `value` lies within the bounds; NaN never does."""
        above = self.at_least is None or value >= self.at_least
        below = self.at_most is None or value <= self.at_most
        return above and below and value == value


@dataclass(frozen=True)
class Objective:
    """The business metric in words, the proxies that models are trained on, and the guardrails.

    `proxies` maps an event kind to its gain: what one such action is worth relative to the others.
    """

    business: str
    proxies: Mapping[str, float] = field(default_factory=dict)
    guardrails: tuple[Guardrail, ...] = ()


@dataclass(frozen=True)
class Constraints:
    """What the service must live within. Times in milliseconds, memory in MiB."""

    deadline_ms: float = 100.0
    memory_mb: float = 4096.0
