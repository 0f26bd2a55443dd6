"""Turns: where slates are made, and what becomes of those that waited too long."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Query
from shortlist.pipeline.runner import Pipeline
from shortlist.pipeline.trace import Trace
from shortlist.serving.turns import THREADS, Turns, in_turn
from tests.test_pipeline_runner import FirstCome, HandClock, Rest, Shop, Slow, ask


@dataclass
class Sleeping:
    """A source that takes real time, and notes on which thread it was asked."""

    seconds: float
    name: str = "sleeping"
    threads: list[int] = field(default_factory=list)

    def propose(self, query: Query) -> Candidates:  # noqa: ARG002
        self.threads.append(threading.get_ident())
        time.sleep(self.seconds)
        return Candidates(np.array([4], np.int32))


@pytest.mark.parametrize(
    ("waited_ms", "left_ms", "begun"),
    [(0, 85, True), (15, 85, True), (95, 5, False), (5, 5, True)],
    ids=["at once", "in time", "too late", "the deadline's fault"],
)
def test_a_query_that_waited_until_it_would_be_late_is_not_begun(waited_ms: float, left_ms: float, begun: bool) -> None:
    clock = HandClock()
    quick, slow = Slow(clock, 1, [3], "quick"), Slow(clock, 9, [4])
    pipeline = Pipeline(Shop(5), sources=[quick, slow], merger=FirstCome(), last_resort=Rest(range(5)))
    pipeline.rank(ask(k=1, clock=clock))
    asked = clock.now
    clock.now += waited_ms / 1000
    slate = in_turn(pipeline, ask(k=1, ms=left_ms, clock=clock), asked)
    assert quick.calls == 1 + begun  # whether the slow one fits is for its own pace to say
    assert slate.items == (("i3",) if begun else ("i0",))


def test_of_a_burst_as_many_are_whole_as_there_is_time_for_and_the_others_do_not_wait() -> None:
    pipeline = Pipeline(Shop(5), sources=[Sleeping(0.02)], last_resort=Rest(range(5)))
    pipeline.rank(ask(k=1))
    turns = Turns()

    async def burst(count: int, ms: float) -> float:
        begun = time.perf_counter()
        slates = await asyncio.gather(*(turns.slate(pipeline, ask(k=1, ms=ms)) for _ in range(count)))
        took = time.perf_counter() - begun
        whole.append(sum(not slate.degraded for slate in slates))
        assert all(slate.items == (("i0",) if slate.degraded else ("i4",)) for slate in slates)
        return took

    whole: list[int] = []
    took = asyncio.run(burst(100, ms=200))
    assert THREADS <= whole[0] <= 2 * THREADS * 200 / 20
    assert took < 0.7  # all of them would take a second
    assert asyncio.run(burst(1, ms=200)) < 0.2
    assert whole[1] == 1
    turns.stop()


def test_a_quick_slate_is_made_on_the_event_loop_and_a_slow_one_beside_it_where_others_come() -> None:
    here = threading.get_ident()
    turns = Turns()

    async def three(source: Sleeping) -> list[int]:
        pipeline = Pipeline(Shop(5), sources=[source], last_resort=Rest(range(5)))
        pipeline.rank(ask(k=1))
        source.threads.clear()
        await asyncio.sleep(2 * source.seconds)
        await turns.slate(pipeline, ask(k=1))  # after a pause as long as it takes
        await asyncio.gather(*(turns.slate(pipeline, ask(k=1)) for _ in range(2)))
        return source.threads

    assert asyncio.run(three(Sleeping(0.0))) == [here] * 3
    first, *others = asyncio.run(three(Sleeping(0.03)))
    assert first == here
    assert here not in others
    turns.stop()


def test_what_a_pipeline_raises_reaches_whoever_waits_and_the_threads_go_on() -> None:
    pipeline = Pipeline(Shop(5), sources=[Sleeping(0.02)], last_resort=Rest(range(5)))
    pipeline.rank(ask(k=1))

    def raising(_: Trace) -> None:
        raise LookupError("the watcher is broken")

    broken = replace(pipeline, watch=raising)
    turns = Turns()

    async def both() -> None:
        answers = [turns.slate(one, ask(k=1)) for one in (broken, pipeline) for _ in range(2 * THREADS)]
        found = await asyncio.wait_for(asyncio.gather(*answers, return_exceptions=True), 5)
        assert [isinstance(each, LookupError) for each in found] == [True] * 2 * THREADS + [False] * 2 * THREADS

    asyncio.run(both())
    turns.stop()


def test_who_no_longer_waits_is_not_told_and_the_next_one_is_answered() -> None:
    source = Sleeping(0.05)
    pipeline = Pipeline(Shop(5), sources=[source], last_resort=Rest(range(5)))
    pipeline.rank(ask(k=1))
    turns, complaints = Turns(), []

    async def leaving() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        gone = [asyncio.create_task(turns.slate(pipeline, ask(k=1))) for _ in range(2 * THREADS)]
        await asyncio.sleep(0.01)
        for task in gone:
            task.cancel()
        slate = await turns.slate(pipeline, ask(k=1))
        assert slate.items == ("i4",)

    asyncio.run(leaving())
    turns.stop()
    assert not complaints
    assert len(source.threads) == 2 + 2 * THREADS
