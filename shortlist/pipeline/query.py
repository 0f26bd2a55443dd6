"""What is asked, and what is answered: `Query` in, `Slate` out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Clock = Callable[[], float]
"""Seconds that only ever rise, such as `time.perf_counter`."""
PATH, EVENTS = "path", "events"
"""Names in `Query.known`: by which path the query is answered, and how many events of its user are known at least."""


@dataclass(frozen=True)
class Deadline:
    """When the answer must be ready, on a monotonic clock; it travels with the query."""

    at: float
    clock: Clock = time.perf_counter

    @classmethod
    def after(cls, milliseconds: float, clock: Clock = time.perf_counter) -> Deadline:
        """The deadline that many milliseconds from now."""
        return cls(clock() + milliseconds / 1000, clock)

    @property
    def remaining_ms(self) -> float:
        """Milliseconds left; negative once it has passed."""
        return (self.at - self.clock()) * 1000


@dataclass(frozen=True)
class Query:
    """A request for `k` items for `user` as of `now` (ms UTC).

    `items` restricts the candidates to the caller's own, `where` to items that have, of each attribute which it names,
    one of the values. `known` is what the query hydrators learned about it: each name is written once.
    """

    user: str | None
    k: int
    now: int
    request: str
    deadline: Deadline
    context: Mapping[str, Any] = field(default_factory=dict)
    items: tuple[str, ...] | None = None
    exclude: frozenset[str] = frozenset()
    where: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    explain: bool = False
    known: dict[str, Any] = field(default_factory=dict)

    def learn(self, name: str, value: Any) -> None:
        """Write `known[name]`; a second write is a programming error and raises KeyError."""
        if name in self.known:
            raise KeyError(f"{name!r} is already known of this query")
        self.known[name] = value


@dataclass(frozen=True)
class Slate:
    """The answer: item ids in order with their scores, and how they came about.

    `degraded` names the stages that were skipped or replaced by defaults. `propensities` are the probabilities with
    which the policy put each item at its position: 1 where it is deterministic, None where the item was drawn for an
    earlier request and is shown again. `path` and `events` say what was known of who asked, where a query hydrator
    learned it.
    """

    request: str
    items: tuple[str, ...]
    scores: tuple[float, ...]
    propensities: tuple[float | None, ...] = ()
    release: str = ""
    arm: str = ""
    degraded: tuple[str, ...] = ()
    explanation: Mapping[str, Any] | None = None
    path: str = ""
    events: int = 0
