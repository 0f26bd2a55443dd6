"""Work beside the requests that leaves them the processor."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

NICE = 10


class Behind:
    """Threads that work behind the requests, until what they were given is done."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def run(self, name: str, work: Callable[[], None]) -> None:
        """Do some work on a thread of its own, which ends with the process."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(threading.Thread(target=work, name=name, daemon=True))
        self._threads[-1].start()

    def settle(self) -> None:
        """Return when all that was begun is done."""
        for thread in self._threads:
            thread.join()


def let_threads_sleep() -> None:
    """Let threads of OpenMP (torch, LightGBM) spin some microseconds and then sleep; before these libraries load.

    Those that spin for long take the cores from whoever works, us included: on two shared cores training took 154 s of
    processor time with spinning and 60 s without. The next part of a sum is not far away, and worth a moment.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def give_way() -> None:
    """Let this thread run where those that answer leave time, for good; where the system tells threads apart."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
