"""Group commit: submissions from any number of threads, stored together by one thread.

Knows no disk: `store` makes a group durable or raises, and then nothing of the group is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import TypeVar

from shortlist.events.batch import Batch
from shortlist.events.door import Admitted, Door
from shortlist.events.identity import SeenIds
from shortlist.events.log import Listener, LogError, Numbered, Progress, Receipt, number, tell

GROUP_EVENTS = 65_536
"""How many events are stored together at most, unless one submission alone has more."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Submission:
    """Admitted events on their way to the log."""

    admitted: Admitted
    progress: Progress | None
    future: Future[Receipt]


@dataclass(frozen=True)
class Job:
    """Something that must not run beside a commit."""

    run: Callable[[], None]


class Committer:
    """The one thread that writes. `position` and `seen` change only in it, after `store` has returned."""

    def __init__(
        self, door: Door, position: int, seen: SeenIds, store: Callable[[Numbered, Sequence[Progress]], None]
    ) -> None:
        self.position = position
        self.listeners: list[Listener] = []
        self._door = door
        self._seen = seen
        self._store = store
        self._queue: SimpleQueue[Submission | Job | None] = SimpleQueue()
        self._closed = False
        self._lock = Lock()
        self._thread = Thread(target=self._work, name="shortlist-log", daemon=True)
        self._thread.start()

    def submit(self, admitted: Admitted, progress: Progress | None = None) -> Future[Receipt]:
        """Queue events; the future is done when they are durable and every listener has seen them."""
        future: Future[Receipt] = Future()
        self._put(Submission(admitted, progress, future))
        return future

    def run(self, job: Callable[[], Result]) -> Result:
        """Run `job` in the committer's thread, between two commits, and return what it returns."""
        future: Future[Result] = Future()
        self._put(Job(lambda: settle(future, job)))
        return future.result()

    def close(self) -> None:
        """Store what was submitted, then end the thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()

    def _put(self, item: Submission | Job) -> None:
        with self._lock:
            if self._closed:
                raise LogError("the log is closed; open it again")
            self._queue.put(item)

    def _work(self) -> None:
        item = self._queue.get()
        while item is not None:
            if isinstance(item, Job):
                item.run()
                item = self._queue.get()
                continue
            group, count = [item], len(item.admitted)
            try:
                item = self._queue.get_nowait()
                while isinstance(item, Submission) and count + len(item.admitted) <= GROUP_EVENTS:
                    group.append(item)
                    count += len(item.admitted)
                    item = self._queue.get_nowait()
                self._commit(group)
            except Empty:
                self._commit(group)
                item = self._queue.get()

    def _commit(self, group: Sequence[Submission]) -> None:
        kept = [submission for submission in group if submission.future.set_running_or_notify_cancel()]
        try:
            receipts = self._commit_all(kept)
        except Exception as error:  # whoever waits for the receipt gets it, and the thread goes on
            for submission in kept:
                submission.future.set_exception(error)
            return
        for submission, receipt in zip(kept, receipts, strict=True):
            submission.future.set_result(receipt)

    def _commit_all(self, group: Sequence[Submission]) -> list[Receipt]:
        numbered = number(self._door, [submission.admitted for submission in group], self._seen, self.position)
        progress = [submission.progress for submission in group if submission.progress is not None]
        if len(numbered.table) or progress:
            self._store(numbered, progress)
        if len(numbered.table):
            self.position += len(numbered.table)
            tell(self.listeners, Batch(numbered.table, self._door.columns))
        return numbered.receipts


def settle(future: Future[Result], job: Callable[[], Result]) -> None:
    """Run `job` and give the future its outcome."""
    try:
        future.set_result(job())
    except Exception as error:  # it is raised again where the outcome is awaited
        future.set_exception(error)
