"""A service on a socket: in this thread until it is told to stop, or in one of its own."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from types import TracebackType

import uvloop

from shortlist.project import Project
from shortlist.serving.answers import Answers
from shortlist.serving.app import application
from shortlist.serving.limits import Limits
from shortlist.serving.server import Server, listen
from shortlist.serving.service import Service
from shortlist.settings import Settings


def limits_of(settings: Settings) -> Limits:
    """The limits that the settings ask for."""
    return Limits(body_bytes=settings.body_bytes)


class Running:
    """A service on a socket. `run` serves in this thread; as a context manager it serves in one of its own.

    `url` is where it listens. Raises OSError where it cannot.
    """

    def __init__(self, project: Project, settings: Settings, limits: Limits | None = None) -> None:
        self.limits = limits or limits_of(settings)
        self.service = Service(project, settings, self.limits)
        routes = Answers(self.service).routes()
        app = application(routes, self.service, self.limits.body_bytes, self.service.metrics, self.service.request_id)
        self.server = Server(app, self.limits)
        self.service.on_failure = self.stop
        self.socket = listen(settings.host, settings.port)
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        number: int = self.socket.getsockname()[1]
        return number

    @property
    def url(self) -> str:
        """Where it listens."""
        host = self.socket.getsockname()[0]
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def run(self) -> None:
        """Serve until SIGINT, SIGTERM or `stop`. Raises what kept the state from being loaded, such as a locked log."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self.server.serve([self.socket]))
        if self.service.failure is not None and self._thread is None:
            raise self.service.failure

    def stop(self) -> None:
        """Finish the requests, log the impressions, take a snapshot."""
        self.server.should_exit = True

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether the condition came true within that time, while the server runs."""
        pause = threading.Event()
        for _ in range(round(seconds / 0.02)):
            if condition():
                return True
            if self._thread is not None and not self._thread.is_alive():
                return False
            pause.wait(0.02)
        return condition()

    def wait_ready(self, seconds: float = 60.0) -> None:
        """Return when requests can be answered. Raises RuntimeError with what is missing after that time."""
        if not self.wait_until(lambda: not self.service.waiting_for(), seconds):
            raise RuntimeError(f"not ready after {seconds:g} s: waiting for {'; '.join(self.service.waiting_for())}")

    def __enter__(self) -> Running:
        self._thread = threading.Thread(target=self.run, name="server", daemon=True)
        self._thread.start()
        self.wait_until(lambda: self.server.started, 30.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join()


SWITCH_SECONDS = 0.0005
"""How long a thread may keep the interpreter while another waits; Python's own 5 ms is as long as an answer takes."""


def serve(project: Project, settings: Settings, announce: Callable[[str], None] | None = None) -> None:
    """Serve a project until SIGINT or SIGTERM. `announce` is told the URL. Raises OSError where it cannot listen."""
    sys.setswitchinterval(SWITCH_SECONDS)
    running = Running(project, settings)
    if announce is not None:
        announce(running.url)
    running.run()
