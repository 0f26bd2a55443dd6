"""Which values a declaration may hold: numbers, counts and durations, and the settings of sources and rankers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from shortlist.framing.durations import duration_ms
from shortlist.framing.problems import Problem

COUNTS: Mapping[str, int] = {
    "quota": 1,
    "neighbours": 1,
    "most_items": 2,
    "rank": 1,
    "dimensions": 1,
    "batch": 2,
    "epochs": 1,
    "trees": 1,
    "leaves": 2,
    "rows_per_leaf": 1,
    "layers": 0,
}
"""Settings that are whole numbers, each with its least."""
ABOVE_ZERO = ("learning_rate", "temperature", "ridge")
BETWEEN: Mapping[str, tuple[float, float]] = {"popularity": (-1.0, 1.0)}


def settings_problems(part: Any, place: str) -> Iterator[Problem]:
    """The settings of a source or a ranker that training could not work with. None stands where it is the default."""
    for setting in fields(part):
        value = getattr(part, setting.name)
        expected = None if value is None and setting.default is None else _expected(setting.name, value)
        if expected:
            yield Problem(place, f"{part.name}'s {setting.name} is {value!r}", f"expected {expected}")


def _expected(name: str, value: Any) -> str | None:
    """What a setting of that name has to be, where the value is something else."""
    if name in COUNTS and not is_count(value, COUNTS[name]):
        return f"a whole number of at least {COUNTS[name]}"
    if name in ABOVE_ZERO and not (is_number(value) and value > 0):
        return "a number above 0"
    if name in BETWEEN and not (is_number(value) and BETWEEN[name][0] <= value <= BETWEEN[name][1]):
        return "a number from {:g} to {:g}".format(*BETWEEN[name])
    if name == "half_life" and not is_duration(value):
        return "a duration, such as '30d'"
    if name == "sequence" and not isinstance(value, bool):
        return "True or False"
    return None


def is_number(value: Any) -> bool:
    """Whether the value is a finite number (and no bool)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any, least: int) -> bool:
    """Whether a value is a whole number, and large enough."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_duration(value: Any) -> bool:
    """Whether the value is a duration as people write them."""
    try:
        return isinstance(value, str) and duration_ms(value) > 0
    except ValueError:
        return False
