"""What is in a log: volume, coverage, freshness and the balance of its labels. The data report of the loop."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shortlist.events.batch import Batch
from shortlist.events.labelling import join_labels
from shortlist.events.labels import Labels, ObservedPositives
from shortlist.events.log import EventLog
from shortlist.events.schema import EventSchema


@dataclass(frozen=True)
class KindReport:
    """One kind of event. Times are ms UTC, None where there is no event.

    `coverage` is the share of events that have a value, by field. `delay_ms_p99` is the 99th percentile of
    `received - at`: how long after it happened an event is known (0 for imported history).
    """

    kind: str
    events: int
    coverage: dict[str, float]
    first_at: int | None
    last_at: int | None
    delay_ms_p99: float | None


@dataclass(frozen=True)
class LabelReport:
    """How the labels are balanced: rows by gain, and the impressions whose window is still open.

    Without impressions there are no observed negatives: every row is a positive.
    """

    gains: dict[float, int]
    left_out: int
    has_impressions: bool

    @property
    def rows(self) -> int:
        """How many labels are known."""
        return sum(self.gains.values())

    @property
    def positive_rate(self) -> float:
        """The share of rows with a gain above 0; NaN without rows."""
        return sum(count for gain, count in self.gains.items() if gain > 0) / self.rows if self.rows else float("nan")


@dataclass(frozen=True)
class DataReport:
    """The state of a log at `position`. `entities` counts the different values of each entity key."""

    position: int
    kinds: list[KindReport]
    entities: dict[str, int]
    labels: LabelReport


@dataclass
class Tally:
    """What is counted of one kind while the log is scanned."""

    schema: EventSchema
    events: int = 0
    filled: Counter[str] = field(default_factory=Counter)
    spans: list[tuple[int, int]] = field(default_factory=list)
    delays: list[NDArray[np.int64]] = field(default_factory=list)

    def add(self, batch: Batch) -> None:
        """Count the events of this kind in a batch."""
        rows = batch.take(batch.of_kind(self.schema.kind))
        if len(rows):
            self.events += len(rows)
            self.spans.append((int(rows.at.min()), int(rows.at.max())))
            self.delays.append(rows.received - rows.at)
            for name in self.schema.fields:
                self.filled[name] += len(rows) - rows.strings(self.schema.column(name)).null_count

    def report(self) -> KindReport:
        """What was counted."""
        if not self.events:
            return KindReport(self.schema.kind, 0, dict.fromkeys(self.schema.fields, 0.0), None, None, None)
        coverage = {name: self.filled[name] / self.events for name in self.schema.fields}
        first, last = min(start for start, _ in self.spans), max(stop for _, stop in self.spans)
        delay = float(np.percentile(np.concatenate(self.delays), 99))
        return KindReport(self.schema.kind, self.events, coverage, first, last, delay)


def data_report(log: EventLog, labels: Labels | ObservedPositives, user: str, item: str) -> DataReport:
    """Scan the log once for its events, and once more for its labels."""
    position = log.position
    tallies = [Tally(schema) for schema in log.door.schemas.values()]
    keys = {key.name for schema in log.door.schemas.values() for key in schema.keys}
    values: dict[str, pa.Array] = {key: pa.array([], pa.string()) for key in sorted(keys)}
    for batch in log.scan(0, position):
        for tally in tallies:
            tally.add(batch)
        for key, seen in values.items():
            values[key] = pc.unique(pa.chunked_array([seen, batch.strings(key).drop_null()]))
    rows = join_labels(log, labels, user, item, 0, position)
    gains, counts = np.unique(rows.gain, return_counts=True)
    balance = dict(zip(gains.tolist(), counts.tolist(), strict=True))
    label_report = LabelReport(balance, rows.left_out, isinstance(labels, Labels))
    entities = {key: len(seen) for key, seen in values.items()}
    return DataReport(position, [tally.report() for tally in tallies], entities, label_report)
