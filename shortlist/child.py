"""A service in a process of its own, as it runs in production: without anything that training needs."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

READY_SECONDS = 120.0
STOP_SECONDS = 30.0


class ChildError(Exception):
    """The service did not start or did not answer; the message ends with what it said last."""


class Child:
    """`shortlist serve` for the project in `folder`, stopped when the block ends. `url` is where it listens.

    `port` 0, or one that is taken, becomes a free one. What the service logs goes to `serve.log` in the folder.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.log = folder / "serve.log"
        command = [sys.executable, "-m", "shortlist", "serve", "-p", str(folder), "--port", str(available(port))]
        with self.log.open("wb") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            self.process.stdout.close()
            self.process.wait()
            raise ChildError(f"the service did not start: {self.last_words()}")

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def wait_ready(self) -> None:
        """Return when it answers. Raises ChildError when it ends before, or takes too long."""
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise ChildError(f"the service ended: {self.last_words()}")
            try:
                if ask(f"{self.url}/ready")["ready"]:
                    return
            except OSError:  # not listening yet, or 503: not ready
                time.sleep(0.05)
        raise ChildError(f"the service was not ready within {READY_SECONDS:.0f} s: {self.last_words()}")

    def last_words(self) -> str:
        """The end of what the service logged."""
        return "\n".join(["", *self.log.read_text("utf-8", "replace").splitlines()[-8:]])

    def memory_mb(self) -> float | None:
        """Resident memory in MiB; None where the system does not tell."""
        status = Path(f"/proc/{self.process.pid}/status")
        if not status.exists():
            return None
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


def available(port: int) -> int:
    """The port, or 0 (any free one) when somebody listens on it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
    return port


def ask(url: str, body: Any = None, seconds: float = 30.0) -> Any:
    """The JSON answer to a GET, or to a POST where there is a body. Raises OSError."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        return json.load(answer)
