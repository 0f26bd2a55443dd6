"""The figures of record: one section per benchmark in RESULTS.md, replaced by each recorded run."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = """# Figures

Measured, full size, by the commands shown; each section is written by `python -m bench NAME --record`. Ratios are
against parts or peers of the same run. Milliseconds and bytes of a shared machine drift; the ratios drift less.
"""


def record(command: str, figures: Mapping[str, Any]) -> None:
    """Replace the section of this benchmark (and its options) in RESULTS.md, sections sorted by command."""
    text = RESULTS.read_text() if RESULTS.exists() else HEAD
    head, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    title = f"## `python -m bench {command}`"
    commit = _output("git", "rev-parse", "--short", "HEAD") or "unknown commit"
    when = f"{datetime.now(UTC):%Y-%m-%d}, {_machine()}, commit {commit}"
    body = f"{title}\n\n{when}\n\n```json\n{json.dumps(figures, indent=2)}\n```"
    kept = [section.rstrip() for section in sections if not section.startswith(title + "\n")]
    RESULTS.write_text("\n\n".join([head.rstrip(), *sorted([*kept, body])]) + "\n")


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores {platform.machine()}, {memory:.0f} GiB, Python {platform.python_version()}"


def _output(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=RESULTS.parent)
    return result.stdout.strip()
