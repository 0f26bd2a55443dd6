"""Slates for everybody, computed ahead by the pipeline that serves.

A batch is a folder: `_batch.json` says of what release, log position and moment it is, `part-00000.parquet` and so on
hold the slates of so many users each. A part is written aside, fsynced and renamed, so one that is there is whole: a
run that was stopped goes on with the part that is missing, as of the same moment and log position, and comes to the
same slates.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from shortlist.durable import take_lock, write_durably
from shortlist.events.log import EventLog
from shortlist.features.table import FeatureTable
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Deadline, Query, Slate
from shortlist.pipeline.runner import Pipeline
from shortlist.project import Project
from shortlist.serving.impressions import UNLOGGED
from shortlist.serving.recommend import load_champion
from shortlist.serving.recovery import restored
from shortlist.training.releases import Release

DESCRIPTION, LOCK = "_batch.json", "_batch.lock"
"""Readers of data sets pass over files whose names begin with an underscore."""
PART_USERS = 5_000
REPORTED = 100
"""Users from one report of progress to the next."""
SLATES = pa.schema(
    [
        ("user", pa.string()),
        ("items", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float64())),
        ("propensities", pa.list_(pa.float64())),
        ("degraded", pa.list_(pa.string())),
    ]
)

Format = Literal["parquet", "jsonl"]


class BatchError(Exception):
    """The batch cannot be written there: what was found, and what to do."""


@dataclass(frozen=True)
class Batch:
    """What a folder of slates is of. Two runs that agree on everything but `now` (ms UTC) continue one another.

    `rules` are those of the slate, as the project declares them: they are in no release.
    """

    project: str
    rules: str
    release: str
    log_position: int
    users: int
    k: int
    format: Format
    part_users: int
    now: int

    @property
    def parts(self) -> int:
        """How many files the slates fill."""
        return -(-self.users // self.part_users)

    def differs_from(self, earlier: Batch) -> str:
        """Why an earlier batch cannot be continued as this one, in words; empty where it can."""
        pairs = [(name, value, getattr(earlier, name)) for name, value in asdict(self).items() if name != "now"]
        return "; ".join(f"{name.replace('_', ' ')} was {old}, is {new}" for name, new, old in pairs if new != old)


@dataclass(frozen=True)
class Written:
    """What a run came to. `resumed_parts` were there already; `degraded` counts slates by the stage that failed."""

    batch: Batch
    resumed_parts: int
    computed: int
    seconds: float
    anew: str
    degraded: dict[str, int]


def present(
    project: Project, log: EventLog, state: Path, release: Release, stop: int | None = None
) -> tuple[FeatureTable, Pipeline]:
    """The state as of log position `stop` (default: the log's end), and the release's pipeline over it.

    The log may be one that is only read. A snapshot that is newer than `stop` is of no use.
    """
    table, _ = restored(project.feature_set(), log, state)
    if stop is not None and table.position > stop:
        table = FeatureTable(project.feature_set())
    for events in log.scan(table.position, stop):
        table.update(events)
    champion = load_champion(project, release, table, Nobody(), lambda trace: None)  # noqa: ARG005
    return table, champion.recommend


def resumed_position(folder: Path, wanted: Batch) -> int | None:
    """The log position of the batch that was stopped in a folder, if it can go on as what is wanted at another one.

    None where there is none, or it is finished: that one is made again as of now.
    """
    try:
        earlier = Batch(**json.loads((folder / DESCRIPTION).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    differs = replace(wanted, log_position=earlier.log_position, users=earlier.users).differs_from(earlier)
    finished = all(part_of(folder, earlier, number).exists() for number in range(earlier.parts))
    return None if differs or finished or earlier.log_position > wanted.log_position else earlier.log_position


class Nobody:
    """The observer of slates that are shown to nobody yet."""

    name = "nobody"

    def observe(self, query: Query, slate: Slate, shown: Candidates) -> None:
        """Nothing is logged."""


def write_batch(
    folder: Path,
    batch: Batch,
    pipeline: Pipeline,
    users: Sequence[str],
    report: Callable[[str, float], None],
    warn: Callable[[str], None],
) -> Written:
    """Write the slate of every user into `folder`, going on where an equal batch was stopped.

    `warn` is told why another one is thrown away, before it is.

    Raises BatchError where the folder is somebody else's or another run writes to it, OSError where the disk refuses.
    """
    begun = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        batch, anew = prepared(folder, batch, warn)
        done, degraded = 0, Counter[str]()
        missing = [number for number in range(batch.parts) if not part_of(folder, batch, number).exists()]
        for number in missing:
            chosen = users[number * batch.part_users : min((number + 1) * batch.part_users, batch.users)]
            rows = []
            for user in chosen:
                slate = pipeline.rank(question(batch, user))
                degraded.update(slate.degraded)
                rows.append(row_of(user, slate))
                done += 1
                if done % REPORTED == 0:
                    report("recommend", (number * batch.part_users + len(rows)) / batch.users)
            write_part(part_of(folder, batch, number), rows, batch.format)
        report("recommend", 1.0)
    return Written(batch, batch.parts - len(missing), done, time.perf_counter() - begun, anew, dict(degraded))


def question(batch: Batch, user: str) -> Query:
    """What serving would be asked for this user; without a deadline no stage is left out.

    The request's id is what draws hang on: the batch's moment in it makes those of the next batch others.
    """
    known = {UNLOGGED: True}
    return Query(user, batch.k, batch.now, f"batch-{batch.now}-{user}", Deadline(math.inf), known=known)


def row_of(user: str, slate: Slate) -> dict[str, Any]:
    """One row of the slates."""
    scores = [score if math.isfinite(score) else None for score in slate.scores]
    return {
        "user": user,
        "items": list(slate.items),
        "scores": scores,
        "propensities": list(slate.propensities),
        "degraded": list(slate.degraded),
    }


def prepared(folder: Path, batch: Batch, warn: Callable[[str], None]) -> tuple[Batch, str]:
    """The batch to go on with, and why an earlier one is thrown away, in words.

    Old parts go before the new description comes: whatever happens in between, no part stands under a wrong one.
    """
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("_"))
    found = folder / DESCRIPTION
    if not found.exists() and others:
        raise BatchError(f"{folder} holds {others[0]!r} and no batch of slates; name a new folder with --out")
    why = ""
    if found.exists():
        try:
            earlier = Batch(**json.loads(found.read_bytes()))
        except (ValueError, TypeError) as error:
            why = f"{found} cannot be read ({error})"
        else:
            why = batch.differs_from(earlier)
            if not why:
                return earlier, ""
        warn(f"begins anew: {why}")
    for path in folder.glob("part-*"):
        path.unlink()
    write_durably(found, json.dumps(asdict(batch), indent=1).encode())
    return batch, why


def part_of(folder: Path, batch: Batch, number: int) -> Path:
    """The file of a part."""
    return folder / f"part-{number:05}.{batch.format}"


def write_part(path: Path, rows: Sequence[dict[str, Any]], form: Format) -> None:
    """The rows as a file that is whole when it is there."""
    if form == "jsonl":
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
        write_durably(path, "".join(lines).encode())
        return
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), SLATES), sink)
    write_durably(path, memoryview(sink.getvalue()))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One run at a time. Raises BatchError where another one writes there."""
    lock = take_lock(folder / LOCK)
    if lock is None:
        raise BatchError(f"another run writes to {folder}; wait for it, or name another folder")
    try:
        yield
    finally:
        os.close(lock)
