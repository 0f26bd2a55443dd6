"""The demo on MovieLens latest-small: from files to the first slate over HTTP, nothing compiled before.

Data: $SHORTLIST_DATA/ml-latest-small (default ../shared/data). Gorse takes 155 s for its full cycle on these ratings.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def run(arguments: argparse.Namespace) -> dict[str, Any]:  # noqa: ARG001
    """One run in a fresh folder with an empty compilation cache; `--quick` leaves nothing out."""
    data = Path(os.environ.get("SHORTLIST_DATA", "../shared/data")) / "ml-latest-small"
    if not data.is_dir():
        sys.exit(f"{data} is missing: name the folder that holds ml-latest-small in SHORTLIST_DATA")
    with tempfile.TemporaryDirectory() as place:
        environment = {**os.environ, "NUMBA_CACHE_DIR": f"{place}/compiled"}
        command = [sys.executable, "-m", "shortlist", "demo", "--data", str(data), "--dir", f"{place}/demo", "--json"]
        begun = time.perf_counter()
        with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, env=environment, text=True) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            seconds = time.perf_counter() - begun
    if process.returncode:
        sys.exit(f"the demo failed with exit code {process.returncode}")
    told = json.loads(line)
    for step, took in told["steps"].items():
        print(f"{step:<10}{took:8.1f} s")
    print(f"{'in all':<10}{seconds:8.1f} s, the interpreter's start included; server {told['rss_mb']:.0f} MiB")
    return {"seconds": round(seconds, 2), "rss_mb": round(told["rss_mb"], 1)}
