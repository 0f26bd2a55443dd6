"""Durations as people write them: `"5m"`, `"24h"`, `"30d"`."""

from __future__ import annotations

import re
from collections.abc import Mapping

UNITS_MS: Mapping[str, int] = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def duration_ms(text: str) -> int:
    """`"5m"` as milliseconds. Units: ms, s, m, h, d. Raises ValueError on anything else, zero included."""
    match = re.fullmatch(r"(\d+)\s*(ms|s|m|h|d)", text.strip())
    if match is None or int(match[1]) == 0:
        raise ValueError(f"{text!r} is no duration; write a whole number and a unit of {', '.join(UNITS_MS)}: '5m'")
    return int(match[1]) * UNITS_MS[match[2]]
