"""Recovery: a snapshot of the state where there is a good one, and the tail of the log."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from shortlist.events.log import EventLog
from shortlist.features.program import FeatureSet
from shortlist.features.snapshot import SnapshotError
from shortlist.features.table import FeatureTable

SNAPSHOT = "features.snapshot"


@dataclass(frozen=True)
class Recovery:
    """How the state came to be: from a snapshot at offset `restored` (0: from nothing), then the log up to `position`.

    `problem` says why there was no use for the snapshot, where there was one.
    """

    restored: int
    position: int
    seconds: float
    problem: str = ""

    def __str__(self) -> str:
        tail = f"{self.position - self.restored} events of the log replayed, {self.seconds:.1f} s"
        if self.problem:
            return f"{self.problem}; the state is built anew from the log: {tail}"
        if self.restored:
            return f"state restored from the snapshot at offset {self.restored}; {tail}"
        return f"no snapshot; the state is built from the log: {tail}"


def recover(features: FeatureSet, log: EventLog, directory: Path) -> tuple[FeatureTable, Recovery]:
    """A table that knows everything in the log and is told what comes. A bad snapshot is not used."""
    started = time.monotonic()
    table, problem = restored(features, log, directory)
    start = table.position
    log.subscribe(table.update, start=start)
    return table, Recovery(start, table.position, time.monotonic() - started, problem)


def restored(features: FeatureSet, log: EventLog, directory: Path) -> tuple[FeatureTable, str]:
    """The table that the snapshot holds, an empty one without a good snapshot; and what is wrong with the snapshot."""
    table, problem = FeatureTable(features), ""
    path = directory / SNAPSHOT
    if path.exists():
        try:
            table.restore(path)
        except SnapshotError as error:
            problem = str(error)
        if table.position > log.position:
            problem = f"{path} knows {table.position} events, the log has {log.position}: it belongs to another log"
            table = FeatureTable(features)
    return table, problem


def take_snapshot(table: FeatureTable, directory: Path) -> None:
    """Write the table's state aside and put it in place of the last one. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    table.snapshot(directory / SNAPSHOT)
