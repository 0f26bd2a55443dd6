"""Turns: where slates are made, and what becomes of those that waited too long."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from shortlist.features.table import FeatureTable
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Query
from shortlist.pipeline.runner import Pipeline
from shortlist.pipeline.trace import Trace
from shortlist.serving.turns import Turns, in_turn
from tests.serving_world import project
from tests.test_pipeline_runner import FirstCome, HandClock, Rest, Shop, Slow, ask

WORKERS = 2
HERE = os.getpid()
BY_LOOP, BY_WORKER, POPULAR = ("i4",), ("i3",), ("i0",)


@dataclass
class Sleeping:
    """A source that takes real time; what it proposes says in which process it was asked."""

    seconds: float
    name: str = "sleeping"
    asked: int = 0

    def propose(self, query: Query) -> Candidates:  # noqa: ARG002
        self.asked += 1
        time.sleep(self.seconds)
        return Candidates(np.array([4 if os.getpid() == HERE else 3], np.int32))


def sleeping(seconds: float) -> Pipeline:
    pipeline = Pipeline(Shop(5), sources=[Sleeping(seconds)], last_resort=Rest(range(5)))
    pipeline.rank(ask(k=1))
    return pipeline


def with_workers(pipelines: Sequence[Pipeline], work: Callable[[Turns], Awaitable[None]]) -> None:
    """Do some work with workers for these pipelines; none of them is left when it is done."""

    async def run() -> None:
        turns = Turns()
        await turns.begin(turns.hire(pipelines, FeatureTable(project().feature_set()), WORKERS))
        try:
            await asyncio.wait_for(work(turns), 20)
        finally:
            await turns.stop(5)

    asyncio.run(run())
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


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
    slate = pipeline.rank(in_turn(pipeline, ask(k=1, ms=left_ms, clock=clock), asked))
    assert quick.calls == 1 + begun  # whether the slow one fits is for its own pace to say
    assert slate.items == (("i3",) if begun else ("i0",))


def test_of_a_burst_as_many_are_whole_as_there_is_time_for_and_the_others_do_not_wait() -> None:
    pipeline = sleeping(0.02)
    whole: list[int] = []

    async def work(turns: Turns) -> None:
        async def burst(count: int, ms: float) -> float:
            begun = time.perf_counter()
            slates = await asyncio.gather(*(turns.slate(pipeline, ask(k=1, ms=ms)) for _ in range(count)))
            took = time.perf_counter() - begun
            whole.append(sum(not slate.degraded for slate in slates))
            assert all((slate.items == POPULAR) == bool(slate.degraded) for slate in slates)
            return took

        took = await burst(100, ms=200)
        assert WORKERS <= whole[0] <= 2 * WORKERS * 200 / 20
        assert took < 0.7  # all of them would take a second
        assert await burst(1, ms=200) < 0.2
        assert whole[1] == 1

    with_workers([pipeline], work)


def test_a_worker_does_not_begin_what_waited_until_it_would_be_late() -> None:
    pipeline = sleeping(0.3)

    async def work(turns: Turns) -> None:
        turns._ended = time.perf_counter()  # nobody has rested: the event loop makes none of them
        slates = await asyncio.gather(*(turns.slate(pipeline, ask(k=1, ms=1150)) for _ in range(3 * WORKERS)))
        assert [slate.items for slate in slates] == [BY_WORKER] * 2 * WORKERS + [POPULAR] * WORKERS

    with_workers([pipeline], work)


def test_a_quick_slate_is_made_on_the_event_loop_and_a_slow_one_by_a_worker_where_others_come() -> None:
    quick, slow, unknown = sleeping(0.0), sleeping(0.03), sleeping(0.03)
    quick.pace.estimate_ms = 0.1  # whatever the first call took

    async def work(turns: Turns) -> None:
        async def three(pipeline: Pipeline, seconds: float) -> list[tuple[str, ...]]:
            await asyncio.sleep(2 * seconds)
            first = await turns.slate(pipeline, ask(k=1))  # after a pause as long as it takes
            others = await asyncio.gather(*(turns.slate(pipeline, ask(k=1)) for _ in range(2)))
            return [slate.items for slate in (first, *others)]

        assert await three(quick, 0.0) == [BY_LOOP] * 3
        assert await three(slow, 0.03) == [BY_LOOP, BY_WORKER, BY_WORKER]
        assert await three(unknown, 0.03) == [BY_LOOP] * 3  # of a release that has no workers (any more)

    with_workers([quick, slow], work)


def test_what_a_worker_made_is_told_as_if_it_were_made_here() -> None:
    seen: list[tuple[str, ...]] = []
    traces: list[Trace] = []

    @dataclass
    class Seeing:
        name: str = "seeing"

        def observe(self, query: Query, slate: object, shown: Candidates) -> None:
            seen.append((query.request, repr(slate), str(shown.items.tolist())))

    pipeline = replace(sleeping(0.03), observers=[Seeing()], watch=traces.append)

    async def work(turns: Turns) -> None:
        await asyncio.gather(*(turns.slate(pipeline, ask(k=1)) for _ in range(4)))
        assert sorted(shown for _, _, shown in seen) == ["[3]", "[3]", "[3]", "[4]"]  # the first one by the loop
        assert [[step.verb for step in trace.steps] for trace in traces] == [["propose", "select", "observe"]] * 4
        assert all(trace.steps[0].ms >= 30 for trace in traces)
        assert pipeline.pace.estimate_ms > 25

    with_workers([pipeline], work)


def test_what_a_pipeline_raises_reaches_whoever_waits_and_the_workers_go_on() -> None:
    class UnsendableError(Exception):
        """No other process knows this class."""

    class Broken(Shop):
        raises: type[Exception] = LookupError

        @property
        def ids(self) -> Sequence[str]:
            raise self.raises("the catalogue is broken")

    class Worse(Broken):
        raises = UnsendableError

    def raising(_: Trace) -> None:
        raise LookupError("the watcher is broken")

    pipeline = sleeping(0.02)
    by_worker, worse = replace(pipeline, catalogue=Broken(5)), replace(pipeline, catalogue=Worse(5))
    here = replace(pipeline, watch=raising)

    async def work(turns: Turns) -> None:
        asked = [one for one in (by_worker, worse, here, pipeline) for _ in range(WORKERS)]
        answers = [turns.slate(one, ask(k=1)) for one in asked]
        found = await asyncio.gather(*answers, return_exceptions=True)
        raised = [str(one) if isinstance(one, Exception) else "" for one in found]
        assert raised[:2] == ["the catalogue is broken"] * 2
        assert all("UnsendableError: the catalogue is broken" in one for one in raised[2:4])
        assert raised[4:6] == ["the watcher is broken"] * 2
        assert raised[6:] == [""] * 2

    with_workers([pipeline, by_worker, worse, here], work)


def test_a_query_that_cannot_be_sent_says_so_and_the_next_one_is_answered() -> None:
    pipeline = sleeping(0.02)

    async def work(turns: Turns) -> None:
        odd = replace(ask(k=1), context={"sent": lambda: None})
        answers = [turns.slate(pipeline, query) for query in (ask(k=1), odd, odd, odd, ask(k=1))]
        first, *raised, last = await asyncio.gather(*answers, return_exceptions=True)
        assert all(isinstance(one, Exception) and "pickle" in str(one) for one in raised)
        assert not isinstance(first, BaseException)
        assert not isinstance(last, BaseException)

    with_workers([pipeline], work)


def test_who_no_longer_waits_is_not_told_nor_begun_and_the_next_one_is_answered() -> None:
    pipeline = sleeping(0.05)
    complaints: list[object] = []

    async def work(turns: Turns) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        gone = [asyncio.create_task(turns.slate(pipeline, ask(k=1))) for _ in range(20 * WORKERS)]
        await asyncio.sleep(0.01)
        for task in gone:
            task.cancel()
        begun = time.perf_counter()
        slate = await turns.slate(pipeline, ask(k=1, ms=5_000))
        assert slate.items == BY_WORKER
        assert time.perf_counter() - begun < 0.5  # all of them would take a second

    with_workers([pipeline], work)
    assert not complaints
