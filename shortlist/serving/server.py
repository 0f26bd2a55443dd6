"""uvicorn with our limits, and a socket to listen on."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from shortlist.serving.limits import Limits
from shortlist.serving.protocol import bounded, sweep

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SWEEPS = 20
"""How many sweeps for overdue connections go into the shortest time limit."""


FILES_OF_OURS = 256
"""Files that the service itself may have open: the log, snapshots, releases, libraries."""


def within_system(limits: Limits) -> Limits:
    """The limits, with as many connections as the system lets the process open files, but for our own."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = limits.connections if files == resource.RLIM_INFINITY else max(1, files - FILES_OF_OURS)
    return replace(limits, connections=min(limits.connections, room))


class Server(uvicorn.Server):
    """uvicorn's server, which also ends overdue connections and takes a signal as a plain order to finish."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.limits = limits = within_system(limits)
        super().__init__(
            uvicorn.Config(
                app,
                http=bounded(limits),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=max(1, round(limits.keep_alive_seconds)),
                timeout_graceful_shutdown=max(1, round(limits.shutdown_seconds)),
            )
        )

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop."""
        every = min(self.limits.head_seconds, self.limits.body_seconds, SWEEPS) / SWEEPS
        sweeping = asyncio.create_task(sweep(self.server_state.connections, every))
        try:
            await super().serve(sockets)
        finally:
            sweeping.cancel()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """SIGINT and SIGTERM finish what was begun and end `serve`; a second one does not wait."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Finish; the second time at once."""
        self.force_exit, self.should_exit = self.should_exit, True


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises OSError with what to do."""
    try:
        return socket.create_server(
            (host, port), backlog=1024, family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise OSError(
            error.errno, f"cannot listen on {host}:{port} ({error.strerror}); set another host or port"
        ) from None
