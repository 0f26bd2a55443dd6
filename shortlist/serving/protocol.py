"""Connections that cannot be held for ever: uvicorn's HTTP protocol with bounds on time and size.

Behind the bounds stands the slow client (slowloris): one that sends a byte now and then to keep a connection busy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from shortlist.serving.limits import Limits
from shortlist.serving.messages import error_body


class Together:
    """A transport that sends in one piece what is written in one turn of the loop: the head of an answer and its body.

    A system call each would be a quarter of the time of a small answer.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._written: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send the data at the end of this turn."""
        if not self._written:
            self._loop.call_soon(self._send)
        self._written.append(data)

    def close(self) -> None:
        """Close when all that was written is sent."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._written and not self._transport.is_closing():
            self._transport.write(b"".join(self._written))
        self._written.clear()

    def __getattr__(self, name: str) -> Any:
        """Everything else is the transport's own business."""
        return getattr(self._transport, name)


class BoundedProtocol(HttpToolsProtocol):
    """Refuses, in JSON, a request whose head or body comes too slowly (408), or whose head is too large (431).

    Beyond so many connections a new one is refused (503) before it says anything.

    A refused body that keeps coming (413 was answered already) is read and thrown away, so that the client sees the
    answer, up to as many bytes again as the limit.
    """

    limits = Limits()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.due = self.loop.time() + self.limits.head_seconds
        self.in_head = True
        self.head_bytes = 0
        self.body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there. One too many is told so at once: what others wait for is not shared further."""
        super().connection_made(Together(transport, self.loop))  # type: ignore[arg-type]
        most = self.limits.connections
        if len(self.connections) > most:
            self._refuse(503, "too_many_connections", f"there are {most} connections already; come again in a moment")

    def data_received(self, data: bytes) -> None:
        """Bytes from the client. The clock of a head starts with its first byte, even if that begins no request."""
        if self.due == NEVER and self._idle():
            self._begin()
        super().data_received(data)
        if self.in_head and not self.transport.is_closing():
            self.head_bytes += len(data)
            if self.head_bytes > self.limits.head_bytes:
                self._refuse(431, "head_too_large", f"the request's head is larger than {self.limits.head_bytes} bytes")

    def _idle(self) -> bool:
        cycle: RequestResponseCycle | None = getattr(self, "cycle", None)
        return cycle is None or cycle.response_complete

    def on_message_begin(self) -> None:
        """A request begins; it may be one of several that came at once."""
        if not self.in_head:
            self._begin()
        super().on_message_begin()

    def _begin(self) -> None:
        self.due = self.loop.time() + self.limits.head_seconds
        self.in_head, self.head_bytes, self.body_bytes = True, 0, 0

    def on_headers_complete(self) -> None:
        """The head is here; from now on the time of the body runs."""
        self.in_head = False
        self.due = self.loop.time() + self.limits.body_seconds
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Bytes of the body."""
        self.body_bytes += len(body)
        if self.body_bytes > 2 * self.limits.body_bytes and self.cycle.response_complete:
            self.transport.abort()
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is here; from now on it is the server's turn."""
        self.due = NEVER
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in JSON."""
        self._refuse(400, "malformed_http", msg)

    def overdue(self) -> None:
        """Refuse a request that did not arrive in time; a connection that sent nothing is just closed."""
        self.due = NEVER
        if self.in_head and not self.head_bytes:
            self.transport.close()
        elif not self.in_head and self.cycle.response_started:
            self.transport.abort()
        else:
            part = "head" if self.in_head else "body"
            seconds = self.limits.head_seconds if self.in_head else self.limits.body_seconds
            self._refuse(408, "timeout", f"the request's {part} did not arrive within {seconds:g} seconds")

    def _refuse(self, status: int, code: str, message: str) -> None:
        content = error_body(code, message)
        head = [b"content-type: application/json\r\n", b"content-length: %d\r\n" % len(content)]
        self.transport.write(b"".join([STATUS_LINE[status], *head, b"connection: close\r\n\r\n", content]))
        self.transport.close()


NEVER = float("inf")


def bounded(limits: Limits) -> type[BoundedProtocol]:
    """The protocol with these limits."""
    return type("LimitedProtocol", (BoundedProtocol,), {"limits": limits})


async def sweep(connections: Iterable[Any], every_seconds: float) -> None:
    """End the connections that are overdue, for ever. One sweep for all is cheaper than a timer per request."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(every_seconds)
        now = loop.time()
        for connection in list(connections):
            if isinstance(connection, BoundedProtocol) and connection.due < now:
                connection.overdue()
