"""What one query went through: the steps with their counts and times, and what was skipped."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from shortlist.pipeline.pace import Pace
from shortlist.pipeline.query import Deadline

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class Step(NamedTuple):
    """One call of a stage. `kept` is how many candidates it returned; `outcome` is done, skipped or failed."""

    verb: str
    stage: str
    ms: float
    given: int
    kept: int
    outcome: str = "done"

    def to_dict(self) -> dict[str, Any]:
        """For the explanation."""
        return {
            "verb": self.verb,
            "stage": self.stage,
            "ms": round(self.ms, 3),
            "given": self.given,
            "kept": self.kept,
            "outcome": self.outcome,
        }


class Paces:
    """The pace of every verb of every stage of a pipeline, and how often each stage failed."""

    def __init__(self) -> None:
        self._paces: dict[tuple[str, str], Pace] = {}
        self._failures: Counter[str] = Counter()

    def of(self, verb: str, stage: str) -> Pace:
        """The pace of one stage at one of the things that it does."""
        pace = self._paces.get((verb, stage))
        return self._paces.setdefault((verb, stage), Pace()) if pace is None else pace

    def forget(self) -> None:
        """Forget every pace: what was measured so far is not typical, because caches and kernels were cold."""
        self._paces.clear()

    def failed(self, stage: str) -> None:
        """Log the exception in flight: the 1st, 2nd, 4th, 8th … time, so that a broken stage does not flood the log."""
        self._failures[stage] += 1
        count = self._failures[stage]
        if count & (count - 1) == 0:
            logger.exception("stage %s failed (time %d) and was replaced by its default", stage, count)

    @property
    def failures(self) -> Mapping[str, int]:
        """How often each stage failed."""
        return self._failures


@dataclass
class Trace:
    """The steps of one query, in order, and the stages that were skipped or replaced by their defaults."""

    deadline: Deadline
    paces: Paces
    steps: list[Step] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)

    def attempt(self, verb: str, stage: str, given: int, run: Callable[[], Result], default: Result) -> Result:
        """The result of an optional stage, or its default where it would miss the deadline or raises."""
        pace, remaining_ms = self.paces.of(verb, stage), self.deadline.remaining_ms
        if remaining_ms < pace.estimate_ms or remaining_ms <= 0:
            pace.skipped()
            return self.skip(verb, stage, given, default)
        return self.call(verb, stage, given, run, default)

    def skip(self, verb: str, stage: str, given: int, default: Result) -> Result:
        """The default of a stage that is not begun."""
        self._note(verb, stage, 0.0, given, default, "skipped")
        return default

    def call(self, verb: str, stage: str, given: int, run: Callable[[], Result], default: Result) -> Result:
        """The result of a stage that must run whatever the deadline, or its default where it raises."""
        started = self.deadline.clock()
        try:
            result, outcome = run(), "done"
        except Exception:
            self.paces.failed(stage)
            result, outcome = default, "failed"
        took_ms = (self.deadline.clock() - started) * 1000
        self.paces.of(verb, stage).took(took_ms)
        self._note(verb, stage, took_ms, given, result, outcome)
        return result

    def _note(self, verb: str, stage: str, ms: float, given: int, result: object, outcome: str) -> None:
        kept = len(result) if hasattr(result, "__len__") else 0
        self.steps.append(Step(verb, stage, ms, given, kept, outcome))
        if outcome != "done" and stage not in self.degraded:
            self.degraded.append(stage)
