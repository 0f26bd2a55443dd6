"""Whose turn is it? Where a slate is made, and what is left out of one that waited too long.

A slate is made on the event loop where nobody is likely to wait for it, else by one of the workers of its release, in
the order of asking.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shortlist.events.batch import Batch
from shortlist.features.table import FeatureTable
from shortlist.pipeline.query import Query, Slate
from shortlist.pipeline.runner import Made, Pipeline
from shortlist.serving.workers import STUCK_SECONDS, Worker, fork_workers

logger = logging.getLogger(__name__)

INLINE_MS = 1.0
"""A pipeline that takes longer than this is left to a worker where other requests would wait for it."""
MARGIN = 2.0
"""How many times as long as it mostly takes a slate should have, if it waited: one in ten takes longer than mostly."""


@dataclass(frozen=True, eq=False)
class Waiting:
    """A query that waits for its slate since `asked`, on the clock of its deadline, and who waits for it."""

    pipeline: Pipeline
    query: Query
    asked: float
    future: asyncio.Future[Slate]

    def tell(self, made: Made | Exception) -> None:
        """Tell of the slate, or of what was raised instead."""
        try:
            if isinstance(made, Exception):
                raise made
            self.pipeline.tell(self.query, made)
        except Exception as error:  # it goes to whoever waits
            if not self.future.done():
                self.future.set_exception(error)
        else:
            if not self.future.done():  # whoever waited may have gone
                self.future.set_result(made.slate)


class Crew:
    """The workers of one release, and who waits for them. Lives on the event loop, but for `learn`."""

    def __init__(self, pipelines: Sequence[Pipeline], workers: Sequence[Worker]) -> None:
        self.pipelines, self.workers = tuple(pipelines), tuple(workers)
        self.lost = self.retired = False
        self._waiting: deque[Waiting] = deque()
        self._idle, self._busy = list(workers), dict[Worker, Waiting]()
        self._begun, self._gone = False, asyncio.Event()

    @property
    def works(self) -> bool:
        """Whether it can be asked."""
        return bool(self.workers) and not self.retired

    async def begin(self) -> None:
        """Listen to the workers, on the running loop."""
        if not self._begun:
            self._begun = True
            for worker in self.workers:
                await worker.begin(self._hear, self._bury)

    def learn(self, batch: Batch) -> None:
        """Every worker is to know of a batch; from any thread."""
        for worker in self.workers:
            worker.tell(batch)

    def ask(self, waiting: Waiting) -> None:
        """Let a worker make it, once its turn comes."""
        self._waiting.append(waiting)
        self._go_on()

    def retire(self) -> None:
        """Let each worker end when nobody waits."""
        self.retired = True
        self._go_on()

    def end_stuck(self) -> None:
        """End the workers whose answers are far too late."""
        for worker, waiting in list(self._busy.items()):
            if waiting.query.deadline.remaining_ms < -1000 * STUCK_SECONDS:
                logger.error("worker %d answers no more", worker.pid)
                self._bury(worker)

    async def stop(self, seconds: float) -> None:
        """Retire, for at most so long."""
        await self.begin()  # where it was hired when all was over already
        self.retire()
        try:
            async with asyncio.timeout(seconds):
                await self._gone.wait()
        except TimeoutError:
            for worker in self.workers:
                self._bury(worker)

    def _go_on(self) -> None:
        while self._waiting and (self._idle or not self.workers):
            waiting = self._waiting.popleft()
            if waiting.future.done():  # nobody waits for it
                continue
            if not self.workers:
                waiting.tell(without_optional(waiting))
                continue
            query = in_turn(waiting.pipeline, waiting.query, waiting.asked)
            worker = self._idle.pop()
            self._busy[worker] = waiting
            try:
                worker.ask(self.pipelines.index(waiting.pipeline), query)
            except Exception as error:  # a query that cannot be sent
                self._idle.append(worker)
                self._busy.pop(worker).tell(error)
        if self.retired and not self._waiting:
            for worker in self._idle:
                worker.finish()
            self._idle.clear()
            if not self.workers:
                self._gone.set()

    def _hear(self, worker: Worker, made: Made | Exception) -> None:
        waiting = self._busy.pop(worker)
        self._idle.append(worker)
        self._go_on()  # before anyone is told, so that the worker has no time to rest
        waiting.tell(made)

    def _bury(self, worker: Worker) -> None:
        """One is gone, or must be. Who waits for it gets what is popular: its query may have been what ended it."""
        if worker not in self.workers:
            return
        code = worker.buried()
        self.workers = tuple(other for other in self.workers if other is not worker)
        self._idle = [other for other in self._idle if other is not worker]
        if not self.retired:
            self.lost = True
            logger.error("worker %d ended (exit code %d); %d are left", worker.pid, code, len(self.workers))
        waiting = self._busy.pop(worker, None)
        if waiting is not None:
            waiting.tell(without_optional(waiting))
        self._go_on()


class Turns:
    """Makes slates, each in its turn."""

    def __init__(self) -> None:
        self._crews: tuple[Crew, ...] = ()
        self._under_way, self._ended = 0, 0.0

    @property
    def workers(self) -> int:
        """How many workers there are."""
        return sum(len(crew.workers) for crew in self._crews)

    @property
    def lost(self) -> bool:
        """Whether a worker has ended that should not have."""
        return any(crew.lost and not crew.retired for crew in self._crews)

    def learn(self, batch: Batch) -> None:
        """Every worker is to know of a batch. A listener of the log, behind the table."""
        for crew in self._crews:
            crew.learn(batch)

    def hire(self, pipelines: Sequence[Pipeline], table: FeatureTable, count: int) -> Crew:
        """So many workers for the pipelines of a release, which nobody uses yet; called beside the event loop.

        From now on they are told of batches. Raises OSError where there is no memory or process left.
        """
        with table.at_rest():
            crew = Crew(pipelines, fork_workers(pipelines, table, count))
            self._crews = (*self._crews, crew)
        return crew

    async def begin(self, crew: Crew | None) -> None:
        """Let the crew, or none, work in place of those before it; called on the event loop."""
        if crew is not None:
            await crew.begin()
        for other in self._crews:
            if other is not crew:
                other.retire()
        self._crews = tuple(one for one in self._crews if one.workers or one is crew)

    def end_stuck(self) -> None:
        """End the workers whose answers are far too late; whoever waits for one gets what is popular."""
        for crew in self._crews:
            crew.end_stuck()

    async def slate(self, pipeline: Pipeline, query: Query) -> Slate:
        """The pipeline's slate; called on the event loop, which goes on meanwhile if others may wait for it."""
        crew = next((one for one in self._crews if pipeline in one.pipelines and one.works), None)
        inline = crew is None or self._nobody_waits(pipeline)
        self._under_way += 1
        try:
            if crew is None or inline:
                return pipeline.rank(query)
            future: asyncio.Future[Slate] = asyncio.get_running_loop().create_future()
            crew.ask(Waiting(pipeline, query, query.deadline.clock(), future))
            return await future
        finally:
            self._under_way -= 1
            self._ended = time.perf_counter()

    async def stop(self, seconds: float) -> None:
        """Finish what is under way; what takes longer than that is ended."""
        await asyncio.gather(*(crew.stop(seconds) for crew in self._crews))
        self._crews = ()

    def _nobody_waits(self, pipeline: Pipeline) -> bool:
        """Whether the event loop may make a slate itself: a quick one, or one after a pause as long as it takes.

        Requests that come so rarely are unlikely to wait for each other, and to hand one to a worker and back wakes two
        processors, which takes a tenth of the time of an answer.
        """
        taken_ms, idle_ms = pipeline.pace.estimate_ms, (time.perf_counter() - self._ended) * 1000
        return taken_ms <= INLINE_MS or (self._under_way == 0 and idle_ms > taken_ms)


def in_turn(pipeline: Pipeline, query: Query, asked: float) -> Query:
    """The query, which has waited for its turn since `asked`, on the clock of its deadline, as it is to be answered.

    One that waited for longer than a slate takes, and may be late with it, has none of its optional stages begun: their
    work would be lost, and make those that wait behind it late as well.
    """
    waited_ms, takes_ms = (query.deadline.clock() - asked) * 1000, pipeline.pace.estimate_ms
    if waited_ms > takes_ms and query.deadline.remaining_ms < MARGIN * takes_ms:
        return late(query, asked)
    return query


def late(query: Query, at: float) -> Query:
    """The query with a deadline that has passed, so that no optional stage is begun."""
    return replace(query, deadline=replace(query.deadline, at=at))


def without_optional(waiting: Waiting) -> Made | Exception:
    """What is made here of a query at once: what is popular."""
    try:
        return waiting.pipeline.make(late(waiting.query, waiting.asked))
    except Exception as error:  # it goes to whoever waits
        return error
