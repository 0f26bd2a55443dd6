"""Where a project runs: `shortlist.toml` beside it, and the environment, which wins.

Definitions stay in the project file; these are the settings of one deployment. Secrets come only from the environment.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from shortlist.framing.problems import Problem, ProjectError, nearest

FILE = "shortlist.toml"
PREFIX = "SHORTLIST_"
SCHEMES = {"log": "sqlite", "state": "file", "releases": "file"}
"""The settings that say where something is kept, and the one scheme that each takes."""
LATER = ("kafka", "redis", "spark", "s3", "dynamodb")
LATER_KEYS = ("archive", "engine")


FORKS = sys.platform == "linux"
"""Whether a process may be copied while its threads run: what other systems' libraries do then is not known."""
MOST_WORKERS = 4
"""More take memory, a page for every page that events change; who has it says so."""


def processors() -> int:
    """The processors that this process may use for workers."""
    return len(os.sched_getaffinity(0)) if FORKS else 0


@dataclass(frozen=True)
class Settings:
    """One deployment. Paths are relative to `folder`, which is where `shortlist.toml` lies.

    `log`, `state` and `releases` are URLs: `sqlite:PATH` and `file:PATH`. `deadline_ms` of 0 takes the project's own
    constraint. `body_bytes` is the largest request body. `vector_sample` is the share of requests whose feature
    vectors are logged for the audit. `cache_seconds` is for how long an answer may be given again (0: never).
    `workers` are the processes that make slates beside the one that answers, by default one for each processor, up to
    four (0: none; other systems than Linux have none). `port` 0 takes a free one.
    """

    log: str = "sqlite:data/log.db"
    state: str = "file:data/state"
    releases: str = "file:data/releases"
    host: str = "127.0.0.1"
    port: int = 8000
    deadline_ms: float = 0.0
    body_bytes: int = 8 * 1024 * 1024
    vector_sample: float = 0.01
    cache_seconds: float = 0.0
    workers: int = field(default_factory=lambda: min(processors(), MOST_WORKERS))
    folder: Path = Path()

    def place(self, name: str) -> Path:
        """The path that the URL setting `name` (log, state, releases) points at."""
        url: str = getattr(self, name)
        return self.folder / url.partition(":")[2]

    def make_folders(self) -> None:
        """Make the folders in which the log, the state and the releases will lie. Raises OSError."""
        self.place("log").parent.mkdir(parents=True, exist_ok=True)
        for name in ("state", "releases"):
            self.place(name).mkdir(parents=True, exist_ok=True)


LIMITS: Mapping[str, tuple[float, float]] = {
    "port": (0, 65_535),
    "deadline_ms": (0, 600_000),
    "body_bytes": (1_024, 2**31),
    "vector_sample": (0, 1),
    "cache_seconds": (0, 86_400),
    "workers": (0, 64 if FORKS else 0),
}
NAMES = tuple(field.name for field in fields(Settings) if field.name != "folder")


def load_settings(folder: str | Path = ".", environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of the project in `folder`: its `shortlist.toml` where there is one, then `SHORTLIST_*`.

    `environment` is the process's own where it is not given. Raises ProjectError with everything that is wrong:
    unknown names with the nearest known one, wrong types, values out of range, URLs of systems that this version
    does not speak to.
    """
    folder = Path(folder)
    problems: list[Problem] = []
    values = from_file(folder / FILE, problems)
    values |= from_environment(os.environ if environment is None else environment, problems)
    settings = Settings(folder=folder)
    for name, (place, value) in values.items():
        checked = check(name, value, place)
        if isinstance(checked, Problem):
            problems.append(checked)
        else:
            settings = replace(settings, **{name: checked})
    if problems:
        raise ProjectError(problems)
    return settings


def from_file(file: Path, problems: list[Problem]) -> dict[str, tuple[str, Any]]:
    """`name -> (place, value)` of the file; mistakes go to `problems`."""
    if not file.exists():
        return {}
    try:
        text = file.read_text("utf-8")
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        problems.append(Problem(str(file), f"cannot be read: {error}", "expected TOML: one `name = value` a line"))
        return {}
    places = {
        match[1]: f"{file}:{number}"
        for number, line in enumerate(text.splitlines(), start=1)
        if (match := re.match(r"\s*[\[\"']*([\w-]+)", line))
    }
    values: dict[str, tuple[str, Any]] = {}
    for name, value in table.items():
        place = places.get(name, str(file))
        if name in NAMES:
            values[name] = (place, value)
        else:
            problems.append(Problem(place, f"unknown setting {name!r}", unknown(name)))
    return values


def from_environment(environment: Mapping[str, str], problems: list[Problem]) -> dict[str, tuple[str, Any]]:
    """`name -> (place, text)` of the variables that are ours.

    A variable that merely starts like ours (the platform sets SHORTLIST_SERVICE_HOST for a service of that name) is
    left alone; one that is a misspelt setting is a mistake.
    """
    values: dict[str, tuple[str, Any]] = {}
    for variable, text in environment.items():
        name = variable.removeprefix(PREFIX).lower()
        if not variable.startswith(PREFIX):
            continue
        if name in NAMES:
            values[name] = (f"environment {variable}", text)
        elif (hint := unknown(name)).startswith("did you mean") or name in LATER_KEYS:
            problems.append(Problem(f"environment {variable}", f"unknown setting {name!r}", hint))
    return values


def unknown(name: str) -> str:
    """What to do about a setting that is not known."""
    return "not in this version" if name in LATER_KEYS else nearest(name, NAMES)


def check(name: str, value: Any, place: str) -> Any | Problem:
    """The value with its right type, or the problem with it. Text from the environment is read as what is expected."""
    expected: type = get_type_hints(Settings)[name]
    if expected is not str:
        return check_number(name, value, place, expected)
    if not isinstance(value, str) or not value:
        return Problem(place, f"{name} is {value!r}", "expected text")
    if name not in SCHEMES:
        return value
    scheme, colon, path = value.partition(":")
    if scheme in LATER:
        return Problem(place, f"{name} is {value!r}: {scheme} is not in this version", f"use {SCHEMES[name]}:PATH")
    if not colon or scheme != SCHEMES[name] or not path:
        return Problem(place, f"{name} is {value!r}", f"expected {SCHEMES[name]}:PATH")
    return f"{scheme}:{path.removeprefix('//')}"


def check_number(name: str, value: Any, place: str, expected: type[float]) -> Any | Problem:
    """A number of the expected type within its limits."""
    written = value
    if isinstance(value, str) and place.startswith("environment"):
        try:
            value = expected(value)
        except ValueError:
            return Problem(place, f"{name} is {written!r}", f"expected {expected.__name__}")
    if isinstance(value, bool) or not isinstance(value, (int, expected)):
        return Problem(place, f"{name} is {written!r}", f"expected {expected.__name__}")
    low, high = LIMITS[name]
    if not low <= value <= high:
        return Problem(place, f"{name} is {written!r}", f"expected {low:g} to {high:g}")
    return expected(value)
