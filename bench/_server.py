"""A service in a process of its own, for the benches: `python -m bench._server PROJECT_FILE FOLDER`."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Served:
    """A running service: where it listens, how long it took to be ready, and its process."""

    port: int
    startup_s: float
    process: psutil.Process

    @property
    def rss_mb(self) -> float:
        """Resident memory of the service, and what each of its workers has to itself beside it, MiB.

        Their proportional shares (PSS) would be less where the bench has mapped the same files.
        """
        own = sum(int(worker.memory_full_info().uss) for worker in self.process.children(recursive=True))
        return (int(self.process.memory_info().rss) + own) / 2**20


@contextmanager
def served(project: Path, folder: Path, release: bool = True, seconds: float = 600.0) -> Iterator[Served]:
    """The project's service with its log, state and releases in `folder`, ready. Raises TimeoutError.

    Without `release` it is ready as soon as events are accepted.
    """
    begun = time.perf_counter()
    command = [sys.executable, "-m", "bench._server", str(project), str(folder)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    try:
        assert running.stdout is not None
        port = int(running.stdout.readline().decode().rsplit(":", 1)[1])
        while not ready(port, release):
            if time.perf_counter() - begun > seconds or running.poll() is not None:
                raise TimeoutError(f"the service is not ready after {time.perf_counter() - begun:.0f} s")
            time.sleep(0.05)
        yield Served(port, time.perf_counter() - begun, psutil.Process(running.pid))
    finally:
        running.terminate()
        running.wait(60)


def ready(port: int, release: bool) -> bool:
    """Whether the service answers; without `release`, whether it accepts events."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
            return int(answer.status) == 200
    except urllib.error.HTTPError as error:
        return not release and not any("state" in missing for missing in json.load(error)["waiting_for"])


def main() -> None:
    """Serve until told to stop; the first line of the output is the URL."""
    from shortlist.project import load_project
    from shortlist.serving.running import serve
    from shortlist.settings import load_settings

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    settings = load_settings(Path(sys.argv[2]), {"SHORTLIST_PORT": "0"})
    serve(load_project(sys.argv[1]), settings, announce=lambda url: print(url, flush=True))


if __name__ == "__main__":
    main()
