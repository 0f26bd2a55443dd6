"""Mistakes found in what a user declared: each with its place, what was found and what to do."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = str(Path(__file__).parents[1] / "_")[:-1]
PROJECTS = tuple(f"{PACKAGE}{folder}" for folder in ("simulation", "templates"))
"""Where the package itself declares projects, as a user does."""


@dataclass(frozen=True)
class Problem:
    """One mistake: where it stands, what was found there, and what was expected instead."""

    place: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.place}: {self.found}; {self.expected}"


class ProjectError(Exception):
    """Everything that is wrong with a project, found in one pass."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def declared_at() -> str:
    """`file:line` of the nearest caller outside this package: where the user wrote the declaration."""
    frame = sys._getframe(1)
    while frame.f_back is not None and is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def is_ours(file: str) -> bool:
    """Whether a file belongs to this package, and declares no project."""
    return file.startswith((PACKAGE, "<string>")) and not file.startswith(PROJECTS)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that ends an error message: the most similar known name, or the known names when none is similar."""
    names = sorted(known)
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if match:
        return f"did you mean {match[0]!r}?"
    return f"known: {', '.join(names[:12])}" if names else "none is declared"


def describe(value: Any) -> str:
    """A value in an error message: its type, and itself where that is short."""
    if value is None:
        return "None"
    written = repr(value)
    kind = type(value).__name__
    return f"{kind} {written}" if len(written) <= 40 and kind not in written else kind
