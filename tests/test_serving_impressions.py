"""Impressions behind the answer: all are written before the end, and what cannot be written is counted."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from shortlist.events.log import MemoryLog
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Deadline, Query, Slate
from shortlist.serving import impressions as module
from shortlist.serving.impressions import Impressions
from tests.serving_world import project

NOW = int(time.time() * 1000)


def shown(number: int, user: str | None = "ann") -> tuple[Query, Slate, Candidates]:
    query = Query(user, 2, NOW, f"r{number}", Deadline.after(1_000))
    slate = Slate(query.request, ("a", "b"), (2.0, float("nan")), (1.0, 0.5), release="7-x")
    return query, slate, Candidates(np.array([0, 1], np.int32))


def writer(log: MemoryLog, sample: float = 0.0) -> tuple[Impressions, Counter[str]]:
    counts: Counter[str] = Counter()

    def count(outcome: str, number: int) -> None:
        counts[outcome] += number

    return Impressions(log, "user", "film", "f" * 64, sample, count), counts


def test_everything_that_was_shown_is_written_before_the_end() -> None:
    log = MemoryLog(project().schemas)
    log.subscribe(lambda batch: time.sleep(0.2))  # noqa: ARG005 - a log that is slow
    one, counts = writer(log)
    one.start()
    for number in range(2_000):
        one.observe(*shown(number))
    assert one.pending > 0
    one.stop(30)
    assert (log.position, one.pending, one.lost) == (4_000, 0, 0)
    assert counts == {"logged": 4_000}


def test_slates_that_come_one_after_the_other_are_written_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHER_SECONDS", 60.0)
    log, sizes = MemoryLog(project().schemas), []
    log.subscribe(lambda batch: sizes.append(len(batch)))
    one, _ = writer(log)
    one.start()
    for number in range(5):
        one.observe(*shown(number))
        time.sleep(0.02)
    assert sizes == []
    one.stop(20)  # who stops does not wait for others
    assert sizes == [10]


def test_a_slate_alone_is_written_soon() -> None:
    log = MemoryLog(project().schemas)
    one, _ = writer(log)
    one.start()
    one.observe(*shown(1))
    deadline = time.monotonic() + 10
    while log.position < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    one.stop(10)


def test_a_slate_becomes_one_event_per_position() -> None:
    log = MemoryLog(project().schemas)
    one, _ = writer(log)
    one.start()
    one.observe(*shown(1))
    one.stop(10)
    rows = [row for batch in log.scan() for row in batch.table.to_pylist()]
    assert [(row["film"], row["impression.position"], row["impression.propensity"]) for row in rows] == [
        ("a", 1, 1.0),
        ("b", 2, 0.5),
    ]
    assert [row["impression.score"] for row in rows] == [2.0, None]
    assert {row["at"] for row in rows} == {NOW}


def test_a_slate_for_nobody_is_no_impression() -> None:
    log = MemoryLog(project().schemas)
    one, _ = writer(log)
    one.start()
    one.observe(*shown(1, user=None))
    one.stop(10)
    assert log.position == 0


def test_what_does_not_fit_the_queue_is_lost_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PENDING", 3)
    one, counts = writer(MemoryLog(project().schemas))
    for number in range(5):
        one.observe(*shown(number))
    assert (one.pending, one.lost, counts) == (3, 4, {"lost": 4})


@pytest.mark.parametrize(("sample", "low", "high"), [(0.0, 0, 0), (1.0, 10_000, 10_000), (0.01, 60, 150)])
def test_the_sample_has_its_share(sample: float, low: int, high: int) -> None:
    one, _ = writer(MemoryLog(project().schemas), sample)
    assert low <= sum(one.draws(f"request-{number}") for number in range(10_000)) <= high
