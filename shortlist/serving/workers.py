"""Worker processes: copies of the service that make slates, so that several are made at once.

Threads cannot do that: half of a slate is the interpreter's work, which they take from each other. On two processors
two threads made 1.3 times as many slates as one, and two processes twice as many.

A worker is forked once a release is loaded. It shares the memory of the service, copied page by page where either
changes it, so that gigabytes of vectors and features lie there once. With every query it is told what has been
committed to the log since the last one, and folds that first: its answers are those that the service would give. It
ends with the service, however that ends, because its connections do.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import select
import signal
import socket
import struct
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from threading import Lock
from typing import Any, NoReturn

from shortlist.events.batch import Batch, joined
from shortlist.features.table import FeatureTable
from shortlist.pipeline.query import Query
from shortlist.pipeline.runner import Made, Pipeline

logger = logging.getLogger(__name__)

STUCK_SECONDS = 10.0
"""A worker that takes no events for so long is ended: its state is older than it should be, and the log waits. So is
one whose answer is so late."""
AT_ONCE = 512
"""Events that a worker is told of without being asked anything: what it is told later waits in the service's memory."""
STANDARD_FILES = 3
SIGNALS = (signal.SIGINT, signal.SIGTERM)
HEAD = struct.Struct("!Q")
"""The size of a message, which goes before it."""
END = b""
"""The last thing that a worker is asked."""


class Worker(asyncio.Protocol):
    """The service's end of one. All but `tell` is for the event loop alone.

    `hear` is told what it made, or raised; `lose` that it is gone.
    """

    def __init__(self, pid: int, told: socket.socket, asked: socket.socket) -> None:
        self.pid, self._told, self._asked = pid, told, asked
        self._told.settimeout(STUCK_SECONDS)
        self._telling = Lock()  # held by whoever writes to `told`, or ends it
        self._untold, self._events = list[Batch](), 0
        self._ended = False
        self._received = bytearray()
        self._transport: asyncio.WriteTransport
        self._open: asyncio.WriteTransport | socket.socket = asked  # what is to be closed

    async def begin(self, hear: Callable[[Worker, Made | Exception], None], lose: Callable[[Worker], None]) -> None:
        """Listen to it, on the running loop."""
        self.hear, self.lose = hear, lose
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=self._asked)

    def tell(self, batch: Batch) -> None:
        """It is to know of a batch; from any thread."""
        with self._telling:
            self._untold.append(batch)
            self._events += len(batch)
            if self._events >= AT_ONCE:
                self._catch_up()

    def ask(self, number: int, query: Query) -> None:
        """Let it make the slate of a query by one of its pipelines, knowing all batches. Raises what pickle raises."""
        question = framed(pickle.dumps((number, query)))
        with self._telling:
            self._catch_up()
        self._transport.write(question)

    def _catch_up(self) -> None:
        """Tell it what it is to know. One that does not take it is killed."""
        untold, self._untold, self._events = self._untold, [], 0
        if not untold or self._ended:
            return
        try:
            self._told.sendall(framed(pickle.dumps(joined(untold))))
        except OSError as error:
            logger.error("worker %d takes no events (%s) and is ended", self.pid, error)
            os.kill(self.pid, signal.SIGKILL)

    def finish(self) -> None:
        """Let it end once it has done what it was asked."""
        self._transport.write(framed(END))

    def buried(self) -> int:
        """Its exit code, once it is gone or if it must be; negative where a signal ended it."""
        os.kill(self.pid, signal.SIGKILL)  # no other can have its number before it is waited for
        with self._telling:
            self._ended = True
            self._told.close()
            self._open.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It can be asked."""
        self._transport = self._open = transport  # type: ignore[assignment]  # that of a connection can be written to

    def data_received(self, data: bytes) -> None:
        """Some of its answer."""
        self._received += data
        if len(self._received) >= HEAD.size:
            stop = HEAD.size + HEAD.unpack_from(self._received)[0]
            if len(self._received) >= stop:  # it is asked one thing at a time
                answer = pickle.loads(memoryview(self._received)[HEAD.size :])  # our own copy wrote it
                self._received = bytearray()
                self.hear(self, answer)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """It is gone."""
        self.lose(self)


def fork_workers(pipelines: Sequence[Pipeline], table: FeatureTable, count: int) -> list[Worker]:
    """So many workers for these pipelines, which nobody may use meanwhile.

    The table must be at rest (`FeatureTable.at_rest`), and stay so until the workers are among those who are told of
    batches. Raises OSError where there is no memory or process left.
    """
    workers: list[Worker] = []
    for _ in range(count):
        (our_told, told), (our_asked, asked) = socket.socketpair(), socket.socketpair()
        try:
            pid = fork()
        except OSError:
            for end in (our_told, told, our_asked, asked):
                end.close()
            for worker in workers:
                worker.buried()
            raise
        if not pid:
            work(pipelines, table, told, asked)
        told.close()
        asked.close()
        workers.append(Worker(pid, our_told, our_asked))
    return workers


def fork() -> int:
    """`os.fork`, whose copy the signals that end a service never reach: the service says when it is over.

    Threads that are left behind may hold locks, of which Python warns since 3.12; none that a worker takes.
    """
    kept, pid = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS), -1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
    finally:
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, kept)
    return pid


def work(pipelines: Sequence[Pipeline], table: FeatureTable, told: socket.socket, asked: socket.socket) -> NoReturn:
    """Be a worker, from the fork to the end of the process."""
    code = 1
    try:
        gc.freeze()  # else the first collection writes to every page that holds an object, which copies it
        keep_only({told.fileno(), asked.fileno()})
        table.forked()
        answer_all(pipelines, table, told, asked)
        code = 0
    except (EOFError, ConnectionError):
        code = 0  # the service is gone
    except BaseException:
        logger.exception("worker %d ends", os.getpid())
    finally:
        os._exit(code)  # nothing of what the service would clean up is this process's own


def answer_all(pipelines: Sequence[Pipeline], table: FeatureTable, told: socket.socket, asked: socket.socket) -> None:
    """Fold what was told, and make what is asked for, until there is no more."""
    anything, events = select.poll(), select.poll()
    for connection in (told, asked):
        anything.register(connection, select.POLLIN)
    events.register(told, select.POLLIN)
    while True:
        readable = dict(anything.poll())
        while events.poll(0):  # looked at behind the question: what was written before it may have come after the look
            batch: Batch = pickle.loads(received(told))  # the service wrote it
            table.update(batch)
        if asked.fileno() not in readable:
            continue
        content = received(asked)
        if content == END:
            return
        number, query = pickle.loads(content)
        asked.sendall(framed(made(pipelines[number], query)))


def made(pipeline: Pipeline, query: Query) -> bytes:
    """The slate, or what was raised instead, to be sent."""
    answer: Any
    try:
        answer = pipeline.make(query)
    except Exception as error:  # it goes to whoever waits
        answer = error
    try:
        return pickle.dumps(answer)
    except Exception as error:  # some exceptions hold what cannot be sent
        return pickle.dumps(RuntimeError(f"{type(answer).__name__}: {answer} (as a worker saw it; {error})"))


def framed(content: bytes) -> bytes:
    """A message as it is sent."""
    return HEAD.pack(len(content)) + content


def received(source: socket.socket) -> bytes:
    """The next message. Raises EOFError where there is none any more."""
    return exactly(source, HEAD.unpack(exactly(source, HEAD.size))[0])


def exactly(source: socket.socket, size: int) -> bytes:
    """So many bytes. Raises EOFError where they end before."""
    content = source.recv(size, socket.MSG_WAITALL)
    if len(content) < size:
        raise EOFError(f"{len(content)} bytes of {size}")
    return content


def keep_only(files: set[int]) -> None:
    """Close all files but these and the standard ones: a connection that a copy holds open is never seen to end."""
    bounds = [STANDARD_FILES - 1, *sorted(files), os.sysconf("SC_OPEN_MAX")]
    for low, high in pairwise(bounds):
        os.closerange(low + 1, high)
