"""Whose turn is it? Where a slate is made, and what is left out of one that waited too long.

A slate is made on the event loop where nobody is likely to wait for it, else on one of two threads, in the order of
asking: two, because more take the interpreter from each other. The threads and the loop share a bare queue: an executor
makes a second future with locks of its own for every call, which costs a fifteenth of the answers.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from threading import Thread

from shortlist.pipeline.query import Query, Slate
from shortlist.pipeline.runner import Pipeline

INLINE_MS = 1.0
"""A pipeline that takes longer than this runs beside the event loop where other requests would wait for it."""
THREADS = 2
MARGIN = 2.0
"""How many times as long as it mostly takes a slate should have, if it waited: one in ten takes longer than mostly."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A query that waits for its slate since `asked`, on the clock of its deadline, and who waits for it."""

    pipeline: Pipeline
    query: Query
    asked: float
    future: asyncio.Future[Slate]

    def answer(self) -> None:
        """Make the slate, on any thread, and tell the event loop of it."""
        try:
            slate = in_turn(self.pipeline, self.query, self.asked)
            told = partial(self._give, slate)
        except Exception as error:  # it goes to whoever waits
            told = partial(self._fail, error)
        loop = self.future.get_loop()
        if not loop.is_closed():  # else nobody is left to be told
            loop.call_soon_threadsafe(told)

    def _give(self, slate: Slate) -> None:
        if not self.future.done():  # whoever waited may have gone
            self.future.set_result(slate)

    def _fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Turns:
    """Makes slates, each in its turn."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[Waiting | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._under_way, self._ended = 0, 0.0

    async def slate(self, pipeline: Pipeline, query: Query) -> Slate:
        """The pipeline's slate; called on the event loop, which goes on meanwhile if others may wait for it."""
        inline = self._nobody_waits(pipeline)
        self._under_way += 1
        try:
            if inline:
                return pipeline.rank(query)
            if not self._threads:
                self._start()
            future: asyncio.Future[Slate] = asyncio.get_running_loop().create_future()
            self._waiting.put(Waiting(pipeline, query, query.deadline.clock(), future))
            return await future
        finally:
            self._under_way -= 1
            self._ended = time.perf_counter()

    def stop(self) -> None:
        """Finish what is under way."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _start(self) -> None:
        self._threads += [Thread(target=self._work, name=f"ranking-{number}", daemon=True) for number in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            waiting.answer()

    def _nobody_waits(self, pipeline: Pipeline) -> bool:
        """Whether the event loop may make a slate itself: a quick one, or one after a pause as long as it takes.

        Requests that come so rarely are unlikely to wait for each other, and to hand one to a thread and back wakes two
        processors, which takes a tenth of the time of an answer.
        """
        taken_ms, idle_ms = pipeline.pace.estimate_ms, (time.perf_counter() - self._ended) * 1000
        return taken_ms <= INLINE_MS or (self._under_way == 0 and idle_ms > taken_ms)


def in_turn(pipeline: Pipeline, query: Query, asked: float) -> Slate:
    """The slate of a query that has waited for its turn since `asked`, on the clock of its deadline.

    One that waited for longer than a slate takes, and may be late with it, has none of its optional stages begun: their
    work would be lost, and make those that wait behind it late as well.
    """
    waited_ms, takes_ms = (query.deadline.clock() - asked) * 1000, pipeline.pace.estimate_ms
    if waited_ms > takes_ms and query.deadline.remaining_ms < MARGIN * takes_ms:
        query = replace(query, deadline=replace(query.deadline, at=asked))
    return pipeline.rank(query)
