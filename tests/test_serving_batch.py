"""Slates for everybody: the same as the service's, whole or not there, and a run that was stopped goes on."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from shortlist.events.sqlite import SqliteLog
from shortlist.features.table import FeatureTable
from shortlist.pipeline.candidates import Candidates, Column
from shortlist.pipeline.query import Query
from shortlist.pipeline.runner import Pipeline
from shortlist.serving.batch import (
    DESCRIPTION,
    LOCK,
    Batch,
    BatchError,
    Format,
    Written,
    present,
    resumed_position,
    write_batch,
)
from shortlist.serving.recovery import take_snapshot
from shortlist.slate.selector import Arranged, Rules
from shortlist.slate.specs import Cap, Explore, RuleSpec, Seen
from shortlist.training.releases import Registry
from tests.serving_world import FILMS, USERS, fill, project, publish, running, settings_of, watch

PART = 12


@dataclass(frozen=True)
class Ready:
    """A state that has caught up, and the pipeline over it."""

    folder: Path
    release: str
    users: tuple[str, ...]
    position: int
    pipeline: Pipeline
    table: FeatureTable

    def batch(self, **changes: Any) -> Batch:
        whole = Batch(
            "films", "", self.release, self.position, len(self.users), 10, "parquet", PART, int(time.time() * 1e3)
        )
        return replace(whole, **changes)

    def write(self, out: Path, pipeline: Pipeline | None = None, **changes: Any) -> Written:
        return write_batch(out, self.batch(**changes), pipeline or self.pipeline, self.users, lambda *_: None, print)


def ready_in(folder: Path, *slate: RuleSpec, stop: int | None = None) -> Ready:
    settings, declared = settings_of(folder), replace(project(), slate=slate)
    log = SqliteLog(settings.place("log"), project().schemas, read_only=True)
    release = Registry(settings.place("releases")).fetch("champion")
    table, pipeline = present(declared, log, settings.place("state"), release, stop)
    return Ready(folder, release.version, tuple(table.entities["user"].ids), table.position, pipeline, table)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    folder = tmp_path_factory.mktemp("world")
    fill(folder)
    publish(folder)
    return ready_in(folder)


def rows_in(out: Path, form: Format = "parquet") -> list[dict[str, Any]]:
    if form == "jsonl":
        files = sorted(out.glob("part-*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
    found: list[dict[str, Any]] = pq.read_table(out).to_pylist()  # a data set: readers pass over our own files
    return found


class Interrupted:
    """A scorer in whose middle somebody presses Ctrl-C."""

    name = "interrupted"

    def __init__(self, pipeline: Pipeline, after: int) -> None:
        self.scorer, self.left = pipeline.scorer, after

    def score(self, query: Query, candidates: Candidates) -> Column:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        assert self.scorer is not None
        return self.scorer.score(query, candidates)


class Broken:
    name = "broken"

    def score(self, query: Query, candidates: Candidates) -> Column:  # noqa: ARG002
        raise OSError("the model is gone")


def test_everybody_gets_what_the_service_answers(ready: Ready, tmp_path: Path) -> None:
    written = ready.write(tmp_path / "slates")
    assert (written.computed, written.resumed_parts, written.degraded, written.anew) == (USERS, 0, {}, "")
    rows: Mapping[str, Any] = {row["user"]: row for row in rows_in(tmp_path / "slates")}
    assert set(rows) == {f"user-{n}" for n in range(USERS)}
    with running(ready.folder, deadline_ms=10_000.0) as server:
        server.wait_ready()
        for user in ("user-0", "user-3", "user-17"):
            answer = httpx.post(f"{server.url}/recommend", json={"user": user, "log": False}).json()
            assert [shown["item"] for shown in answer["items"]] == rows[user]["items"]
    assert not {f"film-{n}" for n in range(10)} & set(rows["user-0"]["items"])
    assert all(len(row["items"]) == len(row["scores"]) == 10 for row in rows.values())
    assert all(row["propensities"] == [1.0] * 10 for row in rows.values())


@pytest.mark.parametrize(
    ("rule", "again"),
    [(Seen(), True), (Seen(watch, within="1h"), True), (Seen(watch, within="2d"), False), (Seen(watch), False)],
    ids=str,
)
def test_what_counts_as_seen_holds_for_everybodys_slates(
    ready: Ready, rule: RuleSpec, again: bool, tmp_path: Path
) -> None:
    """A day ago user-0 watched ten films."""
    ready_in(ready.folder, rule).write(tmp_path / "slates", k=FILMS)
    mine = next(row for row in rows_in(tmp_path / "slates") if row["user"] == "user-0")
    watched = {f"film-{n}" for n in range(10)}
    assert watched & set(mine["items"]) == (watched if again else set())
    assert len(mine["items"]) == FILMS - (0 if again else 10)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(ready: Ready, tmp_path: Path) -> None:
    stopped = replace(ready.pipeline, scorer=Interrupted(ready.pipeline, after=2 * PART + 3))
    moment = int(time.time() * 1000) - 3_600_000
    with pytest.raises(KeyboardInterrupt):
        ready.write(tmp_path / "slates", stopped, now=moment)
    assert len(list((tmp_path / "slates").glob("part-*"))) == 2
    first = (tmp_path / "slates" / "part-00000.parquet").stat()
    written = ready.write(tmp_path / "slates")
    assert (written.resumed_parts, written.computed, written.anew) == (2, USERS - 2 * PART, "")
    assert written.batch.now == moment
    assert (tmp_path / "slates" / "part-00000.parquet").stat().st_mtime_ns == first.st_mtime_ns
    ready.write(tmp_path / "whole", now=moment)
    assert rows_in(tmp_path / "slates") == rows_in(tmp_path / "whole")
    assert ready.write(tmp_path / "slates").computed == 0


@pytest.mark.parametrize("snapshot", [False, True], ids=["no snapshot", "a newer snapshot"])
def test_a_run_that_was_stopped_goes_on_though_the_log_has_grown(tmp_path: Path, snapshot: bool) -> None:
    fill(tmp_path)
    publish(tmp_path)
    ready, out, moment = ready_in(tmp_path), tmp_path / "slates", int(time.time() * 1000) - 3_600_000
    assert resumed_position(out, ready.batch()) is None
    ready.write(tmp_path / "whole", now=moment)
    stopped = replace(ready.pipeline, scorer=Interrupted(ready.pipeline, after=PART + 3))
    with pytest.raises(KeyboardInterrupt):
        ready.write(out, stopped, now=moment)
    log = SqliteLog(settings_of(tmp_path).place("log"), project().schemas)
    now = int(time.time() * 1000)
    log.append([{"kind": "watch", "at": now, "user": user, "film": "film-3"} for user in ("new", f"user-{USERS - 1}")])
    log.close()
    grown = ready_in(tmp_path)
    if snapshot:
        take_snapshot(grown.table, settings_of(tmp_path).place("state"))
    assert resumed_position(out, grown.batch(k=3)) is None
    stop = resumed_position(out, grown.batch(users=0))
    assert stop == ready.position < grown.position
    written = ready_in(tmp_path, stop=stop).write(out)
    assert (written.resumed_parts, written.computed, written.anew) == (1, USERS - PART, "")
    assert rows_in(out) == rows_in(tmp_path / "whole")
    assert resumed_position(out, grown.batch()) is None  # it is finished: the next one is as of its own moment


def test_what_is_thrown_away_is_said_before(ready: Ready, tmp_path: Path) -> None:
    def refuse(why: str) -> None:
        raise KeyboardInterrupt(why)

    ready.write(tmp_path)
    before = rows_in(tmp_path)
    with pytest.raises(KeyboardInterrupt, match="begins anew: k was 10, is 3"):
        write_batch(tmp_path, ready.batch(k=3), ready.pipeline, ready.users, lambda *_: None, refuse)
    assert rows_in(tmp_path) == before


def test_each_batch_draws_anew_and_one_that_goes_on_draws_the_same(ready: Ready, tmp_path: Path) -> None:
    exploring = replace(ready.pipeline, selector=Arranged(Rules(explore=Explore(2))))
    moment = int(time.time() * 1000) - 3_600_000
    for name, now in (("first", moment), ("next", moment + 1)):
        ready.write(tmp_path / name, exploring, now=now)
    first, following = rows_in(tmp_path / "first"), rows_in(tmp_path / "next")
    assert [row["items"][:8] for row in first] == [row["items"][:8] for row in following]
    again = sum(row["items"][8:] == other["items"][8:] for row, other in zip(first, following, strict=True))
    assert again < USERS / 4
    assert all(0 < propensity < 1 for row in first for propensity in row["propensities"][8:])
    stopped = replace(exploring, scorer=Interrupted(exploring, after=PART + 3))
    with pytest.raises(KeyboardInterrupt):
        ready.write(tmp_path / "resumed", stopped, now=moment)
    assert ready.write(tmp_path / "resumed", exploring, now=moment + 1).resumed_parts == 1
    assert rows_in(tmp_path / "resumed") == first


def test_what_does_not_continue_begins_anew_and_says_why(tmp_path: Path) -> None:
    fill(tmp_path)
    first = publish(tmp_path)
    ready, out = ready_in(tmp_path), tmp_path / "slates"
    ready.write(out)
    log = SqliteLog(settings_of(tmp_path).place("log"), project().schemas)
    log.append([{"kind": "watch", "at": int(time.time() * 1000), "user": "new", "film": "film-3"}])
    log.close()
    grown = ready_in(tmp_path)
    written = grown.write(out)
    assert written.anew == f"log position was {ready.position}, is {grown.position}; users was {USERS}, is {USERS + 1}"
    assert [row["user"] for row in rows_in(out)][-1] == "new"
    second = publish(tmp_path, seed=1)
    assert f"release was {first}, is {second}" in ready_in(tmp_path).write(out).anew
    assert "rules was , is Cap(" in ready_in(tmp_path).write(out, rules=repr(Cap("maker", 2))).anew
    assert "k was 10, is 3; format was parquet, is jsonl" in ready_in(tmp_path).write(out, k=3, format="jsonl").anew
    assert not list(out.glob("*.parquet"))
    (out / DESCRIPTION).write_text("{")
    assert "cannot be read" in ready_in(tmp_path).write(out).anew


def test_both_formats_say_the_same(ready: Ready, tmp_path: Path) -> None:
    moment = int(time.time() * 1000)
    ready.write(tmp_path / "a", now=moment, k=FILMS + 5)
    ready.write(tmp_path / "b", now=moment, k=FILMS + 5, format="jsonl")
    assert rows_in(tmp_path / "a") == rows_in(tmp_path / "b", "jsonl")
    unseen = next(row for row in rows_in(tmp_path / "a") if row["user"] == "user-0")
    assert len(unseen["items"]) == FILMS - 10


def test_a_stage_that_fails_is_counted(ready: Ready, tmp_path: Path) -> None:
    written = ready.write(tmp_path / "slates", replace(ready.pipeline, scorer=Broken()))
    assert written.degraded == {"broken": USERS}
    assert {tuple(row["degraded"]) for row in rows_in(tmp_path / "slates")} == {("broken",)}


def test_nobody_is_no_error(tmp_path: Path) -> None:
    fill(tmp_path)
    publish(tmp_path)
    ready = replace(ready_in(tmp_path), users=())
    written = ready.write(tmp_path / "slates")
    assert (written.batch.parts, written.computed) == (0, 0)


def test_a_folder_of_somebody_else_is_left_alone(ready: Ready, tmp_path: Path) -> None:
    (tmp_path / "part-thesis.txt").write_text("years of work")
    with pytest.raises(BatchError, match=r"holds 'part-thesis.txt' and no batch of slates; name a new folder"):
        ready.write(tmp_path)
    assert (tmp_path / "part-thesis.txt").exists()


def test_two_runs_do_not_write_into_one_folder(ready: Ready, tmp_path: Path) -> None:
    with (tmp_path / LOCK).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BatchError, match="another run writes to"):
            ready.write(tmp_path)
