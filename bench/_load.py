"""A load generator for HTTP/1.1 in a process of its own: keep-alive connections on a raw event loop.

Open loop (`rate`): requests leave at their appointed times whatever the answers do, and latency counts from the
appointed time, so that a slow answer is not hidden by the requests that wait for it (coordinated omission). Closed loop
(`connections`): every connection sends the next request as soon as it has its answer.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

WAIT_SECONDS = 10.0
TIMER_SECONDS = 0.0015
"""How late a timer may fire; the rest is waited out actively, so that requests leave on time."""
WAITED_OUT = 100.0
"""Requests a second up to which that is done; beyond it the waiting would take the processor from the service, and a
request that leaves a millisecond late counts as answered a millisecond later."""


@dataclass(frozen=True)
class Figures:
    """What the clients saw: answers a second, latency in ms, and how many answers had each status."""

    rps: float
    p50_ms: float
    p99_ms: float
    answers: int
    statuses: dict[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """Answers that were no success, and requests without an answer."""
        return sum(count for status, count in self.statuses.items() if status != "200")

    @property
    def holds(self) -> bool:
        """Whether at most one answer in a hundred failed: p99 is then that of real answers, or worse."""
        return self.failed <= 0.01 * self.answers


@dataclass(frozen=True)
class Plan:
    """What to send where. Exactly one of `rate` (requests a second) and `connections` decides how."""

    port: int
    path: str
    bodies: str
    seconds: float
    rate: float = 0.0
    connections: int = 0
    warm_seconds: float = 1.0
    expected: str = ""


def load(
    port: int,
    path: str,
    bodies: Sequence[bytes],
    seconds: float,
    rate: float = 0.0,
    connections: int = 0,
    warm_seconds: float = 1.0,
    expected: str = "",
) -> Figures:
    """Send `bodies` in turn, round and round, from another process. Raises CalledProcessError when that fails.

    An answer that does not contain `expected` counts as failed, with the status "unexpected".
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bodies"
        file.write_bytes(b"\n".join(bodies))
        plan = Plan(port, path, str(file), seconds, rate, connections, warm_seconds, expected)
        command = [sys.executable, "-m", "bench._load", json.dumps(asdict(plan))]
        done = subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[1])
    return Figures(**json.loads(done.stdout))


def highest_rate(
    port: int, path: str, bodies: Sequence[bytes], p99_ms: float, seconds: float = 4.0, expected: str = ""
) -> float:
    """The highest rate, within 3 %, at which p99 stays under `p99_ms`; open loop, by bisection.

    A rate counts where two of three loads say so: a neighbour of a shared machine can spoil one.
    """

    def stays(rate: float) -> bool:
        seen = load(port, path, bodies, seconds, rate=rate, warm_seconds=0.5, expected=expected)
        return seen.p99_ms < p99_ms and seen.holds and seen.rps > 0.97 * rate

    top = load(port, path, bodies, seconds, connections=4).rps * 1.05
    low, high = 0.0, top
    while high - low > 0.03 * top:
        rate = high if low == 0.0 and high == top else (low + high) / 2
        first, second = stays(rate), stays(rate)
        if first if first == second else stays(rate):
            low = rate
            if rate == top:
                return low
        else:
            high = rate * 0.999
    return low


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time."""

    def __init__(self, expected: bytes) -> None:
        self.expected = expected
        self.buffer = bytearray()
        self.answer: asyncio.Future[str] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head = self.buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        start = self.buffer.find(b"content-length: ", 0, head)
        stop = self.buffer.find(b"\r\n", start)
        size = int(self.buffer[start + 16 : stop])
        if len(self.buffer) >= head + 4 + size:
            status = self.buffer[9:12].decode()
            if status == "200" and self.expected not in self.buffer:
                status = "unexpected"
            self.buffer.clear()
            if self.answer is not None and not self.answer.done():
                self.answer.set_result(status)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self.answer is not None and not self.answer.done():
            self.answer.set_result("")

    async def send(self, request: bytes) -> str:
        """The status of the answer; empty where the connection broke."""
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)  # type: ignore[attr-defined]
        return await self.answer


class Run:
    """One plan under way."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        lines = Path(plan.bodies).read_bytes().split(b"\n")
        head = f"POST {plan.path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: "
        self.requests = [b"%s%d\r\n\r\n%s" % (head.encode(), len(body), body) for body in lines]
        self.latencies: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.idle: deque[Connection] = deque()

    async def connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            partial(Connection, self.plan.expected.encode()), "127.0.0.1", self.plan.port
        )
        return connection

    async def one(self, number: int, appointed: float, counted: bool) -> None:
        while self.idle and self.idle[-1].transport.is_closing():
            self.idle.pop()  # it rested for longer than the service keeps one
        connection = self.idle.pop() if self.idle else await self.connect()
        status = await connection.send(self.requests[number % len(self.requests)])
        if counted:
            self.latencies.append(time.perf_counter() - appointed)
            self.statuses[status] += 1
        if status:
            self.idle.append(connection)

    async def open_loop(self) -> float:
        plan, under_way = self.plan, set()
        self.idle.extend([await self.connect() for _ in range(8)])
        begin = time.perf_counter() + 0.05
        total = int(plan.rate * (plan.seconds + plan.warm_seconds))
        ahead = TIMER_SECONDS if plan.rate <= WAITED_OUT else 0.0
        for number in range(total):
            appointed = begin + number / plan.rate
            while (delay := appointed - time.perf_counter()) > 0:
                await asyncio.sleep(max(delay - ahead, 0.0))
            counted = appointed >= begin + plan.warm_seconds
            task = asyncio.create_task(self.one(number, appointed, counted))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        waiting = list(under_way)
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=WAIT_SECONDS)
            self.statuses["late"] += len(late)
            for task in late:
                task.cancel()
        return max(time.perf_counter() - begin - plan.warm_seconds, plan.seconds)

    async def closed_loop(self) -> float:
        plan = self.plan
        begin = time.perf_counter()
        start, stop = begin + plan.warm_seconds, begin + plan.warm_seconds + plan.seconds

        async def client(offset: int) -> None:
            self.idle.append(await self.connect())
            number = offset
            while (now := time.perf_counter()) < stop:
                await self.one(number, now, now >= start)
                number += plan.connections

        await asyncio.gather(*(client(offset) for offset in range(plan.connections)))
        return time.perf_counter() - start

    async def figures(self) -> Figures:
        seconds = await (self.open_loop() if self.plan.rate else self.closed_loop())
        ms = np.array(self.latencies or [float("inf")]) * 1000
        p50, p99 = np.percentile(ms, [50, 99])
        return Figures(len(self.latencies) / seconds, float(p50), float(p99), len(self.latencies), dict(self.statuses))


def main() -> None:
    """Run the plan in the first argument; print its figures as JSON."""
    import uvloop

    plan = Plan(**json.loads(sys.argv[1]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(asdict(runner.run(Run(plan).figures()))))


if __name__ == "__main__":
    main()
