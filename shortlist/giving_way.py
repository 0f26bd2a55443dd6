"""Work beside the requests that leaves them the processor."""

from __future__ import annotations

import os
import sys
import threading

NICE = 10


def give_way() -> None:
    """Let this thread run where those that answer leave time, for good; where the system tells threads apart."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
