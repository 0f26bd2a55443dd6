"""The HTTP shell, over real sockets: whatever a client sends, the answer is a reason and never a 500."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
import uvloop

from shortlist.serving.app import Answer, Routed, application
from shortlist.serving.limits import Limits
from shortlist.serving.messages import RefusedError
from shortlist.serving.metrics import Metrics
from shortlist.serving.server import FILES_OF_OURS, Server, listen, within_system

LIMITS = Limits(body_bytes=100_000, head_bytes=4_000, head_seconds=0.4, body_seconds=0.6, keep_alive_seconds=1)


@dataclass
class Life:
    """A lifecycle that remembers."""

    events: list[str] = field(default_factory=list)

    async def start(self) -> None:
        self.events.append("start")

    async def stop(self) -> None:
        self.events.append("stop")


async def echo(body: bytes) -> Answer:
    return Answer(body)


async def slow(_: bytes) -> Answer:
    await asyncio.sleep(0.5)
    return Answer(b'"late"')


async def picky(_: bytes) -> Answer:
    raise RefusedError(422, "invalid", "k is 0")


async def broken(_: bytes) -> Answer:
    raise RuntimeError("the disk is on fire")


ROUTES = [
    Routed("POST", "/echo", echo),
    Routed("GET", "/slow", slow),
    Routed("POST", "/picky", picky),
    Routed("GET", "/broken", broken),
]


@dataclass
class Shell:
    """A running shell."""

    port: int
    server: Server
    life: Life
    metrics: Metrics

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def raw(self, sent: bytes, wait: float = 5.0) -> bytes:
        """Send bytes, read until the server closes."""
        with closing(socket.create_connection(("127.0.0.1", self.port), timeout=wait)) as client:
            client.sendall(sent)
            return read_all(client)


def read_all(client: socket.socket) -> bytes:
    received = b""
    while True:
        try:
            part = client.recv(65_536)
        except ConnectionResetError:
            return received
        if not part:
            return received
        received += part


@contextmanager
def shell(limits: Limits = LIMITS) -> Iterator[Shell]:
    life, metrics = Life(), Metrics()
    server = Server(application(ROUTES, life, limits.body_bytes, metrics, lambda: "request-1"), limits)
    listening = listen("127.0.0.1", 0)

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(server.serve([listening]))

    port = listening.getsockname()[1]
    thread = threading.Thread(target=run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield Shell(port, server, life, metrics)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def running() -> Iterator[Shell]:
    with shell() as one:
        yield one


def reason(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) <= {"code", "message", "request"}
    assert error["message"]
    return error


def status_and_reason(received: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head[9:12]), json.loads(body)["error"]


def test_a_body_goes_in_and_an_answer_comes_out(running: Shell) -> None:
    answer = httpx.post(f"{running.url}/echo", json={"k": "ü"})
    assert (answer.status_code, answer.json()) == (200, {"k": "ü"})


def test_an_unknown_path_is_404_and_names_the_nearest(running: Shell) -> None:
    answer = httpx.post(f"{running.url}/ecko", json={})
    assert answer.status_code == 404
    assert reason(answer) == {"code": "not_found", "message": "there is nothing at '/ecko'; did you mean '/echo'?"}
    assert httpx.post(f"{running.url}/echo/", json={}).status_code == 404


def test_a_wrong_method_is_405_and_says_which_is_right(running: Shell) -> None:
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = httpx.request(method, f"{running.url}/echo")
        assert answer.status_code == 405
        assert answer.headers["allow"] == "POST"
        assert reason(answer)["code"] == "method_not_allowed"
    assert set(httpx.post(f"{running.url}/slow").headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_a_head_request_is_a_get_without_its_body(running: Shell) -> None:
    answer = httpx.head(f"{running.url}/slow")
    assert (answer.status_code, answer.content) == (200, b"")


def test_a_refusal_has_its_status_and_code(running: Shell) -> None:
    answer = httpx.post(f"{running.url}/picky", json={})
    assert (answer.status_code, reason(answer)) == (422, {"code": "invalid", "message": "k is 0"})


def test_an_unexpected_failure_is_500_with_the_id_that_the_log_has(
    running: Shell, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = httpx.get(f"{running.url}/broken")
    assert answer.status_code == 500
    assert reason(answer)["request"] == "request-1"
    assert "the disk is on fire" not in answer.text
    assert "request-1" in caplog.text
    assert "the disk is on fire" in caplog.text


def test_a_body_that_announces_too_much_is_refused_before_it_is_sent(running: Shell) -> None:
    started = time.monotonic()
    received = running.raw(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100001\r\n\r\n")
    status, error = status_and_reason(received)
    assert (status, error["code"]) == (413, "body_too_large")
    assert time.monotonic() - started < 2


def test_a_huge_body_is_refused_and_the_client_sees_why(running: Shell) -> None:
    answer = httpx.post(f"{running.url}/echo", content=b"x" * 150_000)
    assert (answer.status_code, reason(answer)["code"]) == (413, "body_too_large")


def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large(running: Shell) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(15):
            yield b"y" * 10_000

    answer = httpx.post(f"{running.url}/echo", content=chunks())
    assert (answer.status_code, reason(answer)["code"]) == (413, "body_too_large")


def test_a_refused_body_that_keeps_coming_is_cut_off(running: Shell) -> None:
    with closing(socket.create_connection(("127.0.0.1", running.port), timeout=5)) as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 900000000\r\n\r\n")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            client.sendall(b"z" * 50_000_000)


def test_a_body_at_the_limit_is_taken(running: Shell) -> None:
    body = b"x" * LIMITS.body_bytes
    assert httpx.post(f"{running.url}/echo", content=body).content == body


def test_a_compressed_body_is_refused(running: Shell) -> None:
    answer = httpx.post(f"{running.url}/echo", content=b"x", headers={"content-encoding": "gzip"})
    assert (answer.status_code, reason(answer)["code"]) == (415, "unsupported_encoding")


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"GET /slow HTTP/9.9\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: many\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999999999\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_is_400(running: Shell, sent: bytes) -> None:
    status, error = status_and_reason(running.raw(sent))
    assert (status, error["code"]) == (400, "malformed_http")


def test_a_head_that_is_too_large_is_431(running: Shell) -> None:
    head = b"GET /slow HTTP/1.1\r\nhost: x\r\n" + b"".join(b"h%d: %s\r\n" % (n, b"v" * 90) for n in range(50))
    status, error = status_and_reason(running.raw(head))
    assert (status, error["code"]) == (431, "head_too_large")


@pytest.mark.parametrize(
    "sent",
    [b"POST /echo HTTP/1.1\r\nhost:", b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc", b"\r\n"],
)
def test_half_a_request_is_ended_in_time(running: Shell, sent: bytes) -> None:
    started = time.monotonic()
    status, error = status_and_reason(running.raw(sent))
    assert (status, error["code"]) == (408, "timeout")
    assert 0.3 < time.monotonic() - started < 2


@pytest.mark.parametrize("sent", [b"POST /ec", b"\r\n", b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"])
def test_half_a_second_request_is_ended_in_time_too(running: Shell, sent: bytes) -> None:
    with closing(socket.create_connection(("127.0.0.1", running.port), timeout=5)) as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n7")
        assert client.recv(1_000).startswith(b"HTTP/1.1 200")
        client.sendall(sent)
        started = time.monotonic()
        status, error = status_and_reason(read_all(client))
        assert (status, error["code"]) == (408, "timeout")
        assert 0.3 < time.monotonic() - started < 2


def test_a_byte_now_and_then_does_not_hold_a_connection(running: Shell) -> None:
    with closing(socket.create_connection(("127.0.0.1", running.port), timeout=5)) as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nhost: x\r\n")
        started = time.monotonic()
        received = b""
        client.settimeout(0.05)
        while time.monotonic() - started < 4:
            try:
                client.sendall(b"a: b\r\n")
                received = client.recv(1_000)
                break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() - started < 2
    if received:
        assert status_and_reason(received)[0] == 408


def test_a_connection_that_says_nothing_is_closed(running: Shell) -> None:
    started = time.monotonic()
    assert running.raw(b"") == b""
    assert time.monotonic() - started < 2


def test_slow_clients_do_not_hold_up_the_others(running: Shell) -> None:
    idlers = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(200)]
    try:
        for idler in idlers:
            idler.sendall(b"POST /echo HTTP/1.1\r\ncontent-")
        started = time.monotonic()
        assert httpx.post(f"{running.url}/echo", json=1).status_code == 200
        assert time.monotonic() - started < 1
    finally:
        for idler in idlers:
            idler.close()


def test_one_connection_too_many_is_refused_and_the_others_go_on() -> None:
    asks = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n[]"
    with shell(replace(LIMITS, connections=3, head_seconds=10)) as running, ExitStack() as clients:

        def connected() -> socket.socket:
            return clients.enter_context(closing(socket.create_connection(("127.0.0.1", running.port), timeout=5)))

        for client in (few := [connected() for _ in range(3)]):
            client.sendall(asks)
            assert client.recv(1_000).startswith(b"HTTP/1.1 200")
        refused = read_all(connected())
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"there are 3 connections already" in refused
        few[1].sendall(asks)
        assert few[1].recv(1_000).endswith(b"[]")
        few[0].close()
        once = asks.replace(b"host", b"connection: close\r\nhost")
        begun = time.monotonic()
        while not (answer := running.raw(once)).startswith(b"HTTP/1.1 200"):
            assert time.monotonic() < begun + 5, answer
            time.sleep(0.01)


def test_there_are_no_more_connections_than_files_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1_024, 4_096))
    assert within_system(Limits()).connections == 1_024 - FILES_OF_OURS
    assert within_system(Limits(connections=10)).connections == 10
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert within_system(Limits()) == Limits()


def test_several_requests_on_one_connection_and_at_once(running: Shell) -> None:
    one = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n7"
    last = b"POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1\r\n\r\n8"
    received = running.raw(one * 20 + last)
    assert received.count(b"HTTP/1.1 200 OK") == 21
    assert received.endswith(b"8")


def test_a_client_that_leaves_is_no_failure(running: Shell, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        for sent in (b"POST /echo HTTP/1.1\r\ncontent-length: 10\r\n\r\nab", b"GET /slow HTTP/1.1\r\n\r\n"):
            with closing(socket.create_connection(("127.0.0.1", running.port))) as client:
                client.sendall(sent)
        time.sleep(0.7)
    assert not caplog.records
    assert httpx.post(f"{running.url}/echo", json=1).status_code == 200


def test_everything_is_counted(running: Shell) -> None:
    httpx.post(f"{running.url}/picky", json={})
    text = running.metrics.text().decode()
    assert 'shortlist_requests_total{route="/picky",status="422"}' in text
    assert 'shortlist_request_seconds_bucket{le="0.001",route="/echo"}' in text


def test_stopping_finishes_what_was_begun() -> None:
    with shell(replace(LIMITS, shutdown_seconds=5)) as one:
        answers: list[httpx.Response] = []
        client = threading.Thread(target=lambda: answers.append(httpx.get(f"{one.url}/slow")))
        client.start()
        time.sleep(0.2)
        one.server.should_exit = True
        client.join()
        assert answers[0].json() == "late"
        assert one.life.events[0] == "start"
    assert one.life.events == ["start", "stop"]


def test_a_port_that_is_taken_is_said_plainly() -> None:
    with closing(listen("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="set another host or port"):
        listen("127.0.0.1", taken.getsockname()[1])
