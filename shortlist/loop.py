"""One turn of everything: what happened is learned from, measured, and served if it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shortlist.events.sqlite import SqliteLog
from shortlist.project import Project
from shortlist.settings import Settings
from shortlist.training.releases import Registry, Release
from shortlist.training.train import train

Report = Callable[[str, float], None]
FIRST = "the first release"


@dataclass(frozen=True)
class Turn:
    """What a turn came to. `failed` are the checks that the release did not pass; `champion` is who serves now."""

    release: Release
    failed: tuple[str, ...]
    champion: str | None

    @property
    def promoted(self) -> bool:
        """Whether the new release serves."""
        return self.champion == self.release.version


def learn(project: Project, settings: Settings, seed: int, report: Report, force: bool = False) -> Turn:
    """Train on the log as it is now, measure on its last part, and publish.

    What is worse than popularity is published only where it is `force`d; else the release serves popular items.
    The very first release becomes the champion whatever the checks say, because there is nothing better to serve.
    """
    log = SqliteLog(settings.place("log"), project.schemas, read_only=True)
    registry = Registry(settings.place("releases"), project.objective.guardrails)
    release = train(project, log, registry, seed, report, force)
    failed = tuple(registry.failed_checks(release.manifest))
    pointer = registry.pointer()
    if pointer.champion is None:
        pointer = registry.promote(release.version, FIRST, force=True)
    return Turn(release, failed, pointer.champion)


def turn(project: Project, settings: Settings, seed: int, report: Report) -> Turn:
    """Train, gate, promote: the champion changes only for a release that passes every check."""
    learned = learn(project, settings, seed, report)
    if learned.promoted or learned.failed:
        return learned
    registry = Registry(settings.place("releases"), project.objective.guardrails)
    pointer = registry.promote(learned.release.version, "a turn of the loop: every check holds")
    return Turn(learned.release, (), pointer.champion)
