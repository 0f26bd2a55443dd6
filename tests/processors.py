"""What kernels compute on a processor without anything special."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def printed_on_a_plain_processor(code: str, cache: Path) -> str:
    """What the code prints where numba compiles for any processor at all; its kernels are kept in `cache`."""
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(cache)}
    environment = {**os.environ, **plain, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
