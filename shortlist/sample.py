"""Where the demo's events come from: MovieLens on disk or from its publisher, else the simulated world."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from shortlist.events.log import EventLog, Progress
from shortlist.movielens import DAY_MS, MovieLens, MovieLensError, date, read_movielens, shift_to
from shortlist.starter import copy_template

PUBLISHER = "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip"
CONNECT_SECONDS = 5.0
LARGEST = 50_000_000
WORLD_PROJECT = '''"""The simulated world's own project: its declarations are in shortlist/simulation/project.py."""

from shortlist.simulation.project import project as project
'''

Share = Callable[[float], None]
"""Told the share of the events that is in the log."""


class Sample(Protocol):
    """Events to show the system with."""

    @property
    def about(self) -> str:
        """What they are, in one line."""

    def write_project(self, folder: Path) -> None:
        """Put the project that they belong to into a folder."""

    def fill(self, log: EventLog, share: Share) -> None:
        """Append them all."""


@dataclass(frozen=True)
class Films:
    """A MovieLens release, moved in time so that it ends today: windows like "the last 30 days" then hold some."""

    path: Path

    @cached_property
    def release(self) -> MovieLens:
        """The release; read once."""
        return read_movielens(self.path)

    @property
    def about(self) -> str:
        """Its size and its time."""
        found = self.release
        counts = f"{found.films.num_rows:,} films, {len(found.watches):,} ratings, {len(found.tags):,} tags"
        return f"MovieLens: {counts}, until {date(found.last)} (moved to end today)"

    def write_project(self, folder: Path) -> None:
        """The films template."""
        copy_template("films", folder)

    def fill(self, log: EventLog, share: Share) -> None:
        """Append table after table, in the order of time."""
        shift, done = shift_to(self.release.last, int(time.time() * 1000)), 0
        for table in self.release.events(shift):
            done += table.num_rows
            receipt = log.append_imported(table, Progress("movielens", "", done))
            if receipt.refusals:
                raise MovieLensError(
                    f"{self.path}: {len(receipt.refusals)} events refused, first: {receipt.refusals[0]}"
                )
            share(done / len(self.release))


@dataclass(frozen=True)
class Simulated:
    """Users with hidden tastes who click. The world is the same every time; only its days move."""

    users: int = 1_000
    items: int = 2_000
    events: int = 150_000
    days: int = 60

    @property
    def about(self) -> str:
        """Its size."""
        return f"the simulated world: {self.items:,} items, {self.users:,} users who click as their tastes have it"

    def write_project(self, folder: Path) -> None:
        """A file that names the world's project."""
        (folder / "project.py").write_text(WORLD_PROJECT)

    def fill(self, log: EventLog, share: Share) -> None:
        """Generate the world's history."""
        from shortlist.simulation.generate import generate
        from shortlist.simulation.world import World

        start = (int(time.time() * 1000) // DAY_MS - self.days) * DAY_MS
        world = World(0, self.users, self.items, start=start, days=self.days)
        generate(world, log, self.events, 0, progress=lambda done, of: share(done / of))


def choose(data: Path | None, say: Callable[[str], None]) -> Sample:
    """The given release, else the one that its publisher sends, else the simulated world; `say` is told why."""
    if data is not None:
        return Films(data)
    cached = cache() / "ml-latest-small.zip"
    if cached.exists():
        say(f"MovieLens latest-small was fetched before: {cached}")
        return Films(cached)
    try:
        fetch(PUBLISHER, cached)
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        say(f"MovieLens cannot be fetched from its publisher ({reason}): the simulated world takes its place.")
        say("With a MovieLens release on disk: --data DIR.")
        return Simulated()
    say(f"fetched MovieLens latest-small from {PUBLISHER} (its terms of use are in its README)")
    return Films(cached)


def cache() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shortlist"


def fetch(url: str, file: Path) -> None:
    """Download to a file, whole or not at all. Raises URLError, OSError, ValueError for what is no such release."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as answer:
        content = answer.read(LARGEST)
    aside = file.with_suffix(".part.zip")
    aside.write_bytes(content)
    try:
        read_movielens(aside)
    except MovieLensError as error:
        aside.unlink()
        raise ValueError(f"what arrived is no MovieLens release: {error}") from error
    aside.replace(file)
