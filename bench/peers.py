"""Environments for peers whose pins clash with ours: made once, in the user's cache, with pinned versions."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

CACHE = Path(os.environ.get("SHORTLIST_BENCH_CACHE", Path.home() / ".cache" / "shortlist" / "bench"))


def environment(name: str, *requirements: str) -> Path:
    """The Python of a virtual environment that holds `requirements`; made on first use. Raises CalledProcessError."""
    place = CACHE / name
    python = place / "bin" / "python"
    done = place / "requirements.txt"
    wanted = "\n".join(requirements)
    if not done.exists() or done.read_text() != wanted:
        print(f"making an environment for {name} in {place} ...", file=sys.stderr, flush=True)
        venv.create(place, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True)
        done.write_text(wanted)
    return python
