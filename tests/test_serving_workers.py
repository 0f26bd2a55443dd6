"""Worker processes: they know what the service knows, hold nothing of it open, and no death of any is the end."""

from __future__ import annotations

import asyncio
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from shortlist.events.batch import Batch
from shortlist.events.log import MemoryLog
from shortlist.features.entities import Entities
from shortlist.features.table import FeatureTable
from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.query import Query, Slate
from shortlist.pipeline.runner import Pipeline
from shortlist.serving import service, workers
from shortlist.serving import turns as turns_module
from shortlist.serving.recommend import Champion
from shortlist.serving.turns import Crew, Turns
from shortlist.serving.workers import Worker
from tests.serving_world import fill, project, publish, running, settings_of
from tests.test_pipeline_runner import Rest, Shop, ask

HERE = os.getpid()
POLL = select.poll


@dataclass
class Telling:
    """A source that says in its item how many events the table knows, and dies where it is asked to, as a worker."""

    table: FeatureTable
    name: str = "telling"

    def propose(self, query: Query) -> Candidates:
        time.sleep(query.context.get("seconds", 0.01))
        if query.context.get("dies") and os.getpid() != HERE:
            os.kill(os.getpid(), signal.SIGSEGV)
        return Candidates(np.array([self.table.position], np.int32))


class World:
    """A log, its table, and two workers for a pipeline over them."""

    def __init__(self) -> None:
        self.log = MemoryLog(project().schemas)
        self.table = FeatureTable(project().feature_set())
        self.turns = Turns()
        self.log.subscribe(self.table.update)
        self.log.subscribe(self.turns.learn)
        self.pipeline = self.new_pipeline()
        self.crew: Crew

    def new_pipeline(self) -> Pipeline:
        pipeline = Pipeline(Shop(10_000), sources=[Telling(self.table)], last_resort=Rest(range(5)))
        pipeline.rank(ask(k=1))
        return pipeline

    async def hire(self) -> Crew:
        self.crew = self.turns.hire([self.pipeline], self.table, 2)
        await self.turns.begin(self.crew)
        return self.crew

    def slate(self, **context: Any) -> Coroutine[Any, Any, Slate]:
        return self.turns.slate(self.pipeline, ask(k=1, context=context))

    async def known(self, count: int = 4) -> list[tuple[str, ...]]:
        """How many events are known to those who make some slates at once."""
        return [slate.items for slate in await asyncio.gather(*(self.slate() for _ in range(count)))]

    def tell(self, count: int = 1) -> None:
        position = self.log.position
        receipt = self.log.append(
            [{"kind": "film", "at": 1, "film": f"film-{position + n}", "year": 1} for n in range(count)]
        )
        assert receipt.accepted == count


def with_world(work: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        world = World()
        await world.hire()
        try:
            await asyncio.wait_for(work(world), 30)
        finally:
            await world.turns.stop(5)

    asyncio.run(run())
    with pytest.raises(ChildProcessError):  # none is left, not even as a zombie
        os.waitpid(-1, os.WNOHANG)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def all_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Turns, "_nobody_waits", lambda *_: False)


def test_what_was_acknowledged_is_known_to_the_next_slate_whoever_makes_it() -> None:
    async def work(world: World) -> None:
        for number in range(1, 40):
            world.tell()
            assert await world.known() == [(f"i{number}",)] * 4
        world.tell(9_000)  # a large batch, of which a pipe holds a part
        assert await world.known() == [("i9039",)] * 4

    with_world(work)


class Preempted:
    """A poll that looked at one connection before something came there, and at the next one after that."""

    def __init__(self) -> None:
        self.true = POLL()
        self.register = self.true.register

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        return self.true.poll(timeout)[-1:]


def test_a_worker_that_is_preempted_while_it_looks_knows_what_was_written_before_the_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, batches = World(), list[Batch]()
    world.log.subscribe(batches.append)
    theirs = World()
    (our_told, told), (our_asked, asked) = socket.socketpair(), socket.socketpair()
    monkeypatch.setattr(select, "poll", Preempted)
    with our_told, told, our_asked, asked:
        for count in (3, 4):
            world.tell(count)
            our_told.sendall(workers.framed(pickle.dumps(batches[-1])))
        for content in (pickle.dumps((0, ask(k=1))), workers.END):
            our_asked.sendall(workers.framed(content))
        workers.answer_all([theirs.pipeline], theirs.table, told, asked)
        made = pickle.loads(workers.received(our_asked))
    assert made.slate.items == ("i7",)


def test_a_worker_that_is_hired_while_events_come_misses_none_and_counts_none_twice() -> None:
    async def work(world: World) -> None:
        loop, more = asyncio.get_running_loop(), True

        def keep_telling() -> None:
            while more:
                world.tell(7)

        telling = loop.run_in_executor(None, keep_telling)
        for _ in range(10):
            crew = await loop.run_in_executor(None, world.turns.hire, [world.pipeline], world.table, 2)
            await world.turns.begin(crew)
            await world.known()
        more = False
        await telling
        assert await world.known() == [(f"i{world.log.position}",)] * 4

    with_world(work)


def test_no_worker_is_hired_while_a_batch_is_half_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on, update = threading.Event(), threading.Event(), Entities.update

    def slowly(entities: Entities, batch: Batch) -> None:
        update(entities, batch)
        entered.set()
        go_on.wait(10)

    async def work(world: World) -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(Entities, "update", slowly)
        telling = loop.run_in_executor(None, world.tell)
        await until(entered.is_set)
        monkeypatch.undo()
        monkeypatch.setattr(Turns, "_nobody_waits", lambda *_: False)
        hiring = asyncio.ensure_future(loop.run_in_executor(None, world.turns.hire, [world.pipeline], world.table, 2))
        await asyncio.sleep(0.1)
        assert not hiring.done()
        go_on.set()
        await telling
        await world.turns.begin(await hiring)
        assert await world.known() == [("i1",)] * 4

    with_world(work)


def test_who_waits_for_one_that_dies_gets_what_is_popular_and_the_others_are_answered() -> None:
    async def work(world: World) -> None:
        world.tell(7)
        deadly, *others = await asyncio.gather(world.slate(dies=True), *(world.slate() for _ in range(6)))
        assert deadly.items == ("i0",)
        assert deadly.degraded == ("telling",)
        assert [slate.items for slate in others] == [("i7",)] * 6
        assert len(world.crew.workers) == 1
        assert [world.turns.lost] == [True]
        assert (await world.slate(dies=True)).items == ("i0",)
        assert world.turns.workers == 0
        assert (await world.slate()).items == ("i7",)  # by the event loop
        await world.hire()
        assert world.turns.workers == 2
        assert not world.turns.lost
        world.tell()
        assert await world.known() == [("i8",)] * 4

    with_world(work)


def test_those_that_wait_when_the_last_worker_dies_are_answered() -> None:
    async def work(world: World) -> None:
        asked = [asyncio.create_task(world.slate(seconds=0.2)) for _ in range(8)]
        await asyncio.sleep(0.05)
        for worker in world.crew.workers:
            os.kill(worker.pid, signal.SIGKILL)
        assert [slate.items for slate in await asyncio.gather(*asked)] == [("i0",)] * 8

    with_world(work)


def test_a_new_crew_takes_over_and_the_old_one_ends_when_nobody_waits_for_it() -> None:
    async def work(world: World) -> None:
        old = world.crew
        asked = [asyncio.create_task(world.slate(seconds=0.1)) for _ in range(6)]
        await asyncio.sleep(0.02)
        os.kill(old.workers[0].pid, signal.SIGKILL)
        await until(lambda: world.turns.lost)
        world.pipeline = world.new_pipeline()
        await world.hire()
        assert not world.turns.lost
        world.tell()
        assert await world.known() == [("i1",)] * 4
        assert len(old.workers) == 1
        assert {slate.items for slate in await asyncio.gather(*asked)} <= {("i0",), ("i1",)}
        await until(lambda: not old.workers)
        assert not world.turns.lost

    with_world(work)


def test_a_worker_holds_no_file_of_the_service() -> None:
    async def work(world: World) -> None:
        ours, theirs = socket.socketpair()
        await world.hire()
        await world.known()  # both are at work, and have closed what they do not need
        ours.close()
        theirs.settimeout(5)
        assert theirs.recv(1) == b""  # the other side sees the end
        theirs.close()
        for worker in world.crew.workers:
            assert len(list(Path(f"/proc/{worker.pid}/fd").iterdir())) <= workers.STANDARD_FILES + 2

    with_world(work)


def test_one_that_takes_no_events_is_ended_and_the_log_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "STUCK_SECONDS", 0.2)

    async def work(world: World) -> None:
        stuck, other = world.crew.workers
        os.kill(stuck.pid, signal.SIGSTOP)
        await asyncio.get_running_loop().run_in_executor(None, world.tell, 9_000)
        await until(lambda: world.crew.workers == (other,))
        assert "takes no events" in caplog.text
        assert await world.known() == [("i9000",)] * 4

    with_world(work)


def test_one_whose_answer_is_far_too_late_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "STUCK_SECONDS", 0.1)

    async def work(world: World) -> None:
        query = ask(k=1, ms=50, context={"seconds": 60})
        asked = asyncio.create_task(world.turns.slate(world.pipeline, query))
        for _ in range(2):
            world.turns.end_stuck()
            assert world.turns.workers == 2
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.1)
        world.turns.end_stuck()
        assert (await asked).items == ("i0",)
        assert world.turns.workers == 1

    with_world(work)


def test_signals_to_the_whole_group_leave_it_to_the_service_to_end() -> None:
    async def work(world: World) -> None:
        for worker in world.crew.workers:
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(worker.pid, number)
        await asyncio.sleep(0.05)
        assert await world.known() == [("i0",)] * 4
        assert world.turns.workers == 2

    with_world(work)


SERVER = """
import sys
from pathlib import Path
from shortlist.serving.running import serve
from tests.serving_world import project, settings_of
serve(project(), settings_of(Path(sys.argv[1])), announce=lambda url: print(url.rsplit(":")[-1], flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_service_however_it_ends(tmp_path: Path, number: signal.Signals) -> None:
    fill(tmp_path)
    publish(tmp_path)
    command = [sys.executable, "-c", SERVER, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    assert process.stdout is not None
    url = f"http://127.0.0.1:{int(process.stdout.readline())}"
    while httpx.get(f"{url}/ready").status_code != 200:
        time.sleep(0.05)
    hired = psutil.Process(process.pid).children()
    assert len(hired) == settings_of(tmp_path).workers
    process.send_signal(number)
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(hired, timeout=10)
    assert not alive


def test_a_service_whose_worker_died_says_so_and_has_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "RENEW_SECONDS", 0.0)
    fill(tmp_path)
    publish(tmp_path)
    with running(tmp_path, workers=2) as server, httpx.Client(base_url=server.url) as client:
        server.wait_ready()
        before = set(psutil.Process().children())
        assert "shortlist_workers 2.0" in client.get("/metrics").text
        min(before, key=lambda child: child.pid).kill()
        assert server.wait_until(lambda: server.service.turns.workers == 1, 10)
        assert client.post("/recommend", json={"user": "user-3"}).status_code == 200
        assert server.wait_until(lambda: "workers" in server.service.problems, 10)
        assert "worker" in str(client.get("/health").json()["problems"])
        assert server.wait_until(lambda: server.service.turns.workers == 2 and not server.service.problems, 20)
        assert not before & set(psutil.Process().children())


def test_workers_of_a_release_end_where_the_next_one_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing() -> int:
        raise OSError(11, "Resource temporarily unavailable")

    fill(tmp_path)
    publish(tmp_path)
    with running(tmp_path, workers=2) as server, httpx.Client(base_url=server.url) as client:
        server.wait_ready()
        assert len(psutil.Process().children()) == 2
        monkeypatch.setattr(os, "fork", refusing)
        version = publish(tmp_path, seed=1)
        assert server.wait_until(lambda: client.get("/health").json()["release"] == version, 10)
        assert server.wait_until(lambda: not psutil.Process().children(), 10)
        assert len(client.post("/recommend", json={"user": "user-3"}).json()["items"]) == 10


def test_a_service_ends_workers_that_answer_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "STUCK_SECONDS", 0.1)
    fill(tmp_path)
    publish(tmp_path)
    with running(tmp_path, workers=1) as server, httpx.Client(base_url=server.url, timeout=10) as client:
        server.wait_ready()
        psutil.Process().children()[0].suspend()
        answer = client.post("/recommend", json={"user": "user-3", "deadline_ms": 50}).json()
        assert len(answer["items"]) == 10
        assert answer["degraded"]


def test_what_is_kept_of_an_answer_is_never_older_than_what_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = Worker.tell

    def slowly(worker: Worker, batch: Batch) -> None:
        time.sleep(0.3)
        tell(worker, batch)

    monkeypatch.setattr(Worker, "tell", slowly)
    fill(tmp_path)
    publish(tmp_path)
    with running(tmp_path, workers=1, cache_seconds=600) as server, httpx.Client(base_url=server.url) as client:
        server.wait_ready()

        def best() -> str:
            answer = client.post("/recommend", json={"user": "user-3", "k": 1, "log": False}).json()
            return str(answer["items"][0]["item"])

        first = best()
        event = {"kind": "watch", "at": 1, "user": "user-3", "film": first}
        telling = threading.Thread(target=lambda: httpx.post(f"{server.url}/events", json=event))
        telling.start()
        while telling.is_alive():
            best()  # computed while the worker does not know of it yet
        assert best() != first


def test_threads_behind_a_release_have_settled_before_it_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm, hire = Champion.warm, Turns.hire
    settled, seen = threading.Event(), list[bool]()

    def slow() -> None:
        time.sleep(0.3)
        settled.set()

    def busy(champion: Champion, *rest: Any) -> None:
        warm(champion, *rest)
        champion.behind.run("slow", slow)

    def hired(turns: Turns, *rest: Any) -> Crew:
        seen.append(settled.is_set())
        return hire(turns, *rest)

    monkeypatch.setattr(Champion, "warm", busy)
    monkeypatch.setattr(Turns, "hire", hired)
    fill(tmp_path)
    publish(tmp_path)
    with running(tmp_path, workers=1) as server:
        server.wait_ready()
    assert seen == [True]


def test_without_workers_the_event_loop_makes_every_slate(tmp_path: Path) -> None:
    fill(tmp_path)
    publish(tmp_path)
    with running(tmp_path, workers=0) as server, httpx.Client(base_url=server.url) as client:
        server.wait_ready()
        assert not psutil.Process().children()
        assert len(client.post("/recommend", json={"user": "user-3"}).json()["items"]) == 10
        assert client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize("given", [0, 1])
def test_a_system_that_gives_too_few_processes_is_said_and_slates_are_made_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: int
) -> None:
    fork, forked = os.fork, list[int]()

    def refusing() -> int:
        if len(forked) == given:
            raise OSError(11, "Resource temporarily unavailable")
        forked.append(fork())
        return forked[-1]

    monkeypatch.setattr(os, "fork", refusing)
    fill(tmp_path)
    publish(tmp_path)
    with running(tmp_path, workers=2) as server, httpx.Client(base_url=server.url) as client:
        server.wait_ready()
        assert len(client.post("/recommend", json={"user": "user-3"}).json()["items"]) == 10
        assert "no workers" in str(client.get("/health").json()["problems"])
        assert not psutil.Process().children()
