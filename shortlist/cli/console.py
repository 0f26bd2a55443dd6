"""What the commands share: where the project is, how results are shown to people and to programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shortlist.framing.problems import Problem

if TYPE_CHECKING:
    from shortlist.events.sqlite import SqliteLog
    from shortlist.features.program import FeatureSet
    from shortlist.project import Project
    from shortlist.settings import Settings
    from shortlist.training.releases import Registry

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Workplace:
    """A project where it runs."""

    project: Project
    settings: Settings

    def log(self, read_only: bool = True) -> SqliteLog:
        """The project's event log."""
        from shortlist.events.sqlite import SqliteLog

        if not read_only:
            self.settings.make_folders()
        return SqliteLog(self.settings.place("log"), self.project.schemas, read_only=read_only)

    def registry(self) -> Registry:
        """The project's releases."""
        from shortlist.training.releases import Registry

        return Registry(self.settings.place("releases"), self.project.objective.guardrails)

    def features(self) -> FeatureSet:
        """The project's features, compiled."""
        return self.project.feature_set()


def open_workplace(path: Path) -> Workplace:
    """The project at `path` (a folder or its file) with its settings. Raises ProjectError, UsageError where none is."""
    from shortlist.project import load_project
    from shortlist.settings import load_settings

    file = path / "project.py" if path.is_dir() else path
    if not file.is_file():
        raise click.UsageError(f"there is no {file}; name the project with -p DIR, or make one: shortlist init DIR")
    return Workplace(load_project(file), load_settings(file.parent))


def takes_project(command: Command) -> Command:
    """The option that says which project."""
    chosen = click.Path(exists=True, path_type=Path)
    return click.option(
        "-p", "--project", "path", type=chosen, default=".", help="The project's folder or file (default: here)."
    )(command)


def takes_json(command: Command) -> Command:
    """The option for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def say(text: str) -> None:
    """A line about the work, on standard error: standard output is for results."""
    click.echo(text, err=True)


def say_problems(problems: Sequence[Problem]) -> None:
    """Each problem with its place, what was found and what to do."""
    for problem in problems:
        click.echo(f"{click.style(problem.place, bold=True)}\n    {problem.found}\n    {problem.expected}", err=True)
    count = len(problems)
    click.echo(click.style(f"{count} problem{'s' if count != 1 else ''}", fg="red"), err=True)


def is_ours(error: Exception) -> bool:
    """Whether the error speaks to the user: our own exceptions and the operating system's. Others are bugs."""
    return isinstance(error, OSError) or type(error).__module__.startswith("shortlist.")
