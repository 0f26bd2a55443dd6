"""The skew audit: what was served is what replay says, or here is the feature that differs.

Every impression whose feature vector was logged is computed again by replay, at the log position that was known when it
was served, and compared bit by bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shortlist.events.log import EventLog
from shortlist.features.columns import Rows
from shortlist.features.context import context_of
from shortlist.features.program import FeatureSet
from shortlist.features.replay import replay
from shortlist.features.vectors import MARK, Served, decode

EXAMPLES = 3
MOST = 100_000
"""How many impressions one audit compares at most: the newest."""


@dataclass(frozen=True)
class Difference:
    """One value that was served otherwise than replay computes it; NaN is a missing value."""

    offset: int
    user: str
    item: str
    served: float
    replayed: float


@dataclass(frozen=True)
class Comparison:
    """One feature: how many values were compared, and what became of them.

    `different` includes the values that were missing when served only, or when replayed only.
    """

    feature: str
    compared: int
    different: int
    missing_served: int
    missing_replayed: int
    examples: tuple[Difference, ...]

    @property
    def equal(self) -> int:
        """Values that agree to the last bit, or are missing on both sides."""
        return self.compared - self.different


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    `vectors` were compared. `other_features` are logged vectors of a feature set that is not the project's any more,
    `unreadable` those that are damaged; `left_out` are older ones beyond the limit of one audit.
    """

    vectors: int
    other_features: int
    unreadable: int
    left_out: int
    comparisons: tuple[Comparison, ...]

    @property
    def different(self) -> int:
        """Values that differ, over all features."""
        return sum(comparison.different for comparison in self.comparisons)

    @property
    def compared(self) -> int:
        """Values compared, over all features."""
        return sum(comparison.compared for comparison in self.comparisons)

    @property
    def upper_bound(self) -> float:
        """The mismatch rate of values is below this with 95 % confidence (one-sided Clopper-Pearson); 1 where none."""
        return upper_bound(self.different, self.compared)

    @property
    def passed(self) -> bool:
        """Whether something was compared and nothing differed or was unreadable."""
        return self.vectors > 0 and self.different == 0 and self.unreadable == 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; a missing value is null."""
        return {
            "passed": self.passed,
            "vectors": self.vectors,
            "values": self.compared,
            "different": self.different,
            "mismatch_rate_below": self.upper_bound,
            "other_features": self.other_features,
            "unreadable": self.unreadable,
            "left_out": self.left_out,
            "features": {comparison.feature: _comparison_json(comparison) for comparison in self.comparisons},
        }


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "compared": comparison.compared,
        "equal": comparison.equal,
        "different": comparison.different,
        "missing_served": comparison.missing_served,
        "missing_replayed": comparison.missing_replayed,
        "examples": [
            {
                "offset": example.offset,
                "user": example.user,
                "item": example.item,
                "served": None if math.isnan(example.served) else example.served,
                "replayed": None if math.isnan(example.replayed) else example.replayed,
            }
            for example in comparison.examples
        ],
    }


@dataclass(frozen=True)
class _Logged:
    """Impressions with vectors, in log order."""

    offset: list[int]
    user: list[str]
    item: list[str]
    position: list[int]
    now: list[int]
    context: list[str | None]
    served: list[Served]


def audit(features: FeatureSet, log: EventLog, user: str, item: str, limit: int = MOST) -> AuditReport:
    """Replay the newest `limit` logged vectors and compare them bit by bit.

    `user` and `item` are the names of the entities that an impression names.
    """
    logged, other, unreadable, left_out = _logged(features, log, user, item, limit)
    if not logged.offset:
        return AuditReport(0, other, unreadable, left_out, ())
    rows = Rows(
        ids={user: logged.user, item: logged.item},
        position=np.array(logged.position, np.int64),
        now=np.array(logged.now, np.int64),
        context=context_of(features.context, pa.array(logged.context, pa.string()))[0],
    )
    replayed = replay(log, features, rows)
    served = np.stack([vector.values for vector in logged.served], axis=1)
    comparisons = tuple(
        _compare(name, served[row], replayed[name], logged) for row, name in enumerate(features.columns)
    )
    return AuditReport(len(logged.offset), other, unreadable, left_out, comparisons)


def _logged(features: FeatureSet, log: EventLog, user: str, item: str, limit: int) -> tuple[_Logged, int, int, int]:
    """The newest comparable impressions, and the counts of those of other features, damaged ones and older ones."""
    found: list[tuple[int, str, str, int, int, str | None, Served]] = []
    other = unreadable = left_out = 0
    for batch in log.scan():
        chosen = batch.of_kind("impression")
        if not chosen.any() or not batch.has("impression.vector"):
            continue
        part = batch.take(chosen)
        columns = [part.strings(name).to_pylist() for name in (user, item, "impression.vector")]
        places = [part.strings(f"impression.{name}").to_pylist() for name in ("log_position", "now", "context")]
        for offset, who, what, text, position, now, context in zip(
            part.offset.tolist(), *columns, *places, strict=True
        ):
            if text is None:
                continue
            try:
                served = decode(text)
            except ValueError:
                unreadable += 1
                continue
            if served.mark != features.fingerprint[:MARK]:
                other += 1
            elif len(served.values) != len(features.columns) or position is None or now is None:
                unreadable += 1
            else:
                found.append((offset, who, what, position, now, context, served))
        if len(found) > 2 * limit:
            left_out += len(found) - limit
            found = found[-limit:]
    left_out += max(0, len(found) - limit)
    fields = [list(column) for column in zip(*found[-limit:], strict=True)] if found else [[] for _ in range(7)]
    return _Logged(*fields), other, unreadable, left_out


def _compare(name: str, served: NDArray[np.float64], replayed: NDArray[np.float64], logged: _Logged) -> Comparison:
    lost, gained = np.isnan(served), np.isnan(replayed)
    same = (served.view(np.int64) == replayed.astype(np.float64).view(np.int64)) | (lost & gained)
    places = np.flatnonzero(~same)
    examples = tuple(
        Difference(logged.offset[p], logged.user[p], logged.item[p], float(served[p]), float(replayed[p]))
        for p in places[:EXAMPLES].tolist()
    )
    return Comparison(
        name, len(served), len(places), int((lost & ~gained).sum()), int((gained & ~lost).sum()), examples
    )


def upper_bound(different: int, compared: int, confidence: float = 0.95) -> float:
    """The one-sided Clopper-Pearson bound: the rate at which so few differences become improbable (Biometrika, 1934).

    The p with P(X <= different) = 1 - confidence for X ~ Binomial(compared, p), found by bisection; 1 where all differ.
    """
    if different >= compared:
        return 1.0
    successes = np.arange(1, different + 1)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log((compared - successes + 1) / successes))])
    low, high = different / compared, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        odds = math.log(middle) - math.log1p(-middle)
        terms = log_choose + np.arange(different + 1) * odds + compared * math.log1p(-middle)
        peak = terms.max()
        tail = float(np.exp(peak) * np.exp(terms - peak).sum())
        low, high = (middle, high) if tail > 1 - confidence else (low, middle)
    return high
